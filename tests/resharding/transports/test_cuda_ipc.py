"""What of the transport between GPUs runs on any device; tests/gpu has the rest."""

import gc
import os
import pickle
import subprocess
import sys
import weakref
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import xxhash

from megatron_rl.errors import SwapError
from megatron_rl.resharding.execute import flat
from megatron_rl.resharding.layouts.megatron import megatron_layout
from megatron_rl.resharding.layouts.sglang import EngineSizes, sglang_layout
from megatron_rl.resharding.plan import Copy, make_plan
from megatron_rl.resharding.transports.cuda_ipc import Batched, DeviceMemory, Handle, HeldOnDevice, make_batches, offer
from megatron_rl.resharding.transports.device_hash import LIMIT, PERIOD, device_hashes, hash_keys
from megatron_rl.resharding.transports.shared_memory import Place
from tests.conftest import ROOT
from tests.resharding.reference import hf_tensors, megatron_shards
from tests.resharding.transports.test_transport import CONFIG, ENGINE, SIZES

KEYS = hash_keys(torch.device("cpu"))


def by_the_formula(tensor: torch.Tensor) -> int:
    """Element times key, summed over every PERIOD elements, in Python's integers and numpy's."""
    kinds = {1: np.uint8, 2: np.int16, 4: np.int32}
    numbers = np.frombuffer(
        tensor.contiguous().view(-1).view(torch.uint8).numpy(), dtype=kinds[tensor.element_size()]
    ).astype(np.int64)
    keys = KEYS.numpy()
    pieces = [numbers[i : i + PERIOD] for i in range(0, len(numbers), PERIOD)]
    with np.errstate(over="ignore"):
        sums = np.array([np.sum(piece * keys[: len(piece)], dtype=np.int64) for piece in pieces])
    return xxhash.xxh3_64_intdigest(sums.tobytes())


def one_hash(tensor: torch.Tensor, dtype: torch.dtype | None = None) -> int:
    return int(device_hashes([tensor], [dtype or tensor.dtype], KEYS)[0])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float8_e4m3fn])
@pytest.mark.parametrize("count", [1, 1000, PERIOD, PERIOD + 1, 2 * LIMIT // 4 + 3 * PERIOD + 5])
def test_the_hash_is_its_formula(dtype: torch.dtype, count: int) -> None:
    numbers = torch.randn(count).to(dtype)
    assert one_hash(numbers) == by_the_formula(numbers)
    assert one_hash(numbers.float(), dtype) == by_the_formula(numbers)


def test_no_tensors_have_no_hashes() -> None:
    none = device_hashes([], [], KEYS)
    assert none.shape == (0,) and none.dtype == np.uint64


def test_the_hash_does_not_depend_on_strides_or_cuts() -> None:
    """Columns of a large matrix, in bands that end within periods, and the same numbers in one row."""
    wide = torch.randn(1500, 3000, dtype=torch.float32)
    columns = wide[:, 1:2100]
    assert one_hash(columns) == one_hash(columns.contiguous().view(-1)) == by_the_formula(columns)
    assert one_hash(columns, torch.bfloat16) == by_the_formula(columns.bfloat16())


def test_the_hash_sees_permutations_and_every_bit() -> None:
    weights = torch.randn(4, PERIOD)
    whole = one_hash(weights)
    assert (
        len({whole, one_hash(weights[[1, 0, 2, 3]]), one_hash(weights.roll(2, 0)), one_hash(weights.roll(1, 1))}) == 4
    )
    row = torch.randn(64).bfloat16()
    bits = row.view(torch.int16)
    seen = {one_hash(row)}
    for i in range(64):
        for bit in range(16):
            flipped = bits.clone()
            flipped[i] ^= torch.tensor(1 << bit, dtype=torch.int32).to(torch.int16)
            seen.add(one_hash(flipped.view(torch.bfloat16)))
    assert len(seen) == 1 + 64 * 16
    assert KEYS.unique().numel() == PERIOD and bool((KEYS % 2 != 0).all())


def test_batches_hold_every_copy_once_and_only_alike_ones() -> None:
    held = megatron_shards(hf_tensors(CONFIG, tags=False), CONFIG, SIZES)
    layout = sglang_layout(CONFIG, EngineSizes())
    plan = make_plan(megatron_layout(CONFIG, SIZES), layout)
    copies = [plan.copies[i] for i in plan.copies_to(0)]
    wanted = {n: torch.zeros(shape).view(-1) for n, shape in layout.ranks[0].locals.items()}
    wanted["model.embed_tokens.weight"] = wanted["model.embed_tokens.weight"].bfloat16()
    batches = make_batches(copies, {(r, n): flat(t) for r, rank in enumerate(held) for n, t in rank.items()}, wanted)
    assert sum(len(batch.sources) for batch in batches) == len(copies)
    assert sum(t.numel() for batch in batches for t in batch.destinations) == sum(c.elements for c in copies)
    kinds = set()
    for batch in batches:
        (kind,) = {
            (s.dtype, d.dtype, s.is_contiguous() and d.is_contiguous())
            for s, d in zip(batch.sources, batch.destinations, strict=True)
        }
        kinds.add(kind)
        assert [s.shape for s in batch.sources] == [d.shape for d in batch.destinations]
    real, cast = torch.float32, torch.bfloat16
    assert len(kinds) == len(batches) and kinds == {(real, real, True), (real, real, False), (real, cast, True)}


def test_what_a_source_does_not_offer_is_named() -> None:
    copy = Copy("w", (0, 0), (2, 3), 1, "s", 2, (4, 1), 0, "d", 0, (3, 1))
    wanted = {"d": torch.zeros(6)}
    assert len(make_batches([copy], {(1, "s"): torch.zeros(9)}, wanted)) == 1
    for sources in ({}, {(0, "s"): torch.zeros(9)}, {(1, "s"): torch.zeros(8)}):
        with pytest.raises(SwapError, match="Trainer rank 1 does not offer all of s, where tensor w lies"):
            Batched([copy], sources, wanted)


def test_offers_travel_and_are_checked() -> None:
    handle = Handle("GPU-1", 64, (b"handle", 64, 0, b"counter", 0, b"event", True))
    memory = DeviceMemory(
        7, (handle,), {"w": Place(0, 32, (2, 4), torch.float32), "b": Place(0, 0, (2,), torch.bfloat16)}
    )
    assert pickle.loads(pickle.dumps(memory)) == memory
    cut = DeviceMemory(7, (handle,), {"w": Place(0, 36, (2, 4), torch.float32)})
    with pytest.raises(SwapError, match="Parameter w of process 7 ends behind the memory that it offers"):
        cut.open()
    with pytest.raises(ValueError, match="parameter w on cpu cannot be offered: contiguous CUDA tensors can"):
        offer({"w": torch.zeros(2)})


def test_what_is_hashed_is_read_from_the_destination() -> None:
    """Rows that lie over each other there: what is written first does not stay."""
    over = Copy("w", (0, 0), (2, 3), 0, "s", 0, (3, 1), 0, "d", 0, (2, 1))
    source, destination = torch.arange(6.0), torch.zeros(5)
    (landed,) = Batched([over], {(0, "s"): source}, {"d": destination}).pull(1)
    assert landed == one_hash(destination.as_strided((2, 3), (2, 1))) != one_hash(source)


def test_owners_of_another_dtype_hash_what_lands() -> None:
    held = megatron_shards(hf_tensors(CONFIG, tags=False), CONFIG, SIZES)
    layout = sglang_layout(CONFIG, ENGINE)
    plan = make_plan(megatron_layout(CONFIG, SIZES), layout)
    wanted = {n: torch.zeros(shape, dtype=torch.bfloat16).view(-1) for n, shape in layout.ranks[1].locals.items()}
    copies = [plan.copies[i] for i in plan.copies_to(1)]
    sources = {(r, n): flat(t) for r, rank in enumerate(held) for n, t in rank.items()}
    landed = Batched(copies, sources, wanted).pull(1)
    owned = {}
    for rank, tensors in enumerate(held):
        indices, hashes = HeldOnDevice(plan, rank, tensors, torch.bfloat16).push(1)
        owned |= dict(zip(indices.tolist(), hashes.tolist(), strict=True))
    assert landed.tolist() == [owned[i] for i in plan.copies_to(1)]


def test_kernels_do_what_torch_does() -> None:
    pytest.importorskip("triton")
    script = Path(__file__).with_name("kernel_checks.py")
    done = subprocess.run(
        [sys.executable, "-W", "ignore", str(script)],
        env=os.environ | {"TRITON_INTERPRET": "1", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_what_runs_read_stays_mapped_until_the_end_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A kernel knows addresses only; memory of another process is unmapped with the last tensor that lies in it."""
    copied = []

    class Runs:
        def __init__(self, runs: np.ndarray, device: torch.device) -> None:
            self.runs = runs.tolist()

        def copy(self) -> None:
            copied.extend(self.runs)

    kernels = SimpleNamespace(Runs=Runs)
    monkeypatch.setattr("megatron_rl.resharding.transports.cuda_ipc.device_kernels", lambda device: kernels)
    held, wanted = torch.arange(6.0), torch.zeros(6)
    alive = weakref.ref(held)
    copy = Copy("t", (0,), (6,), 0, "s", 0, (1,), 0, "d", 0, (1,))
    end = Batched([copy], {(0, "s"): held}, {"d": wanted})
    address = held.data_ptr()
    del held
    gc.collect()
    assert alive() is not None
    end.copy()
    assert copied == [[address, wanted.data_ptr(), 24]]
    end.close()
    gc.collect()
    assert alive() is None
