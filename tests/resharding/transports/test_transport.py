"""Transports behind the interface, those that can run in one process; messages have a file of their own."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from megatron_rl.errors import SwapError
from megatron_rl.resharding.execute import flat
from megatron_rl.resharding.layout import ParallelSizes
from megatron_rl.resharding.layouts.megatron import megatron_layout
from megatron_rl.resharding.layouts.sglang import EngineSizes, sglang_layout
from megatron_rl.resharding.plan import Copy, Plan, make_plan
from megatron_rl.resharding.swap import Landing, merge_hashes
from megatron_rl.resharding.transports.cuda_ipc import Batched, HeldOnDevice
from megatron_rl.resharding.transports.files import FilesDestination, FilesSource
from megatron_rl.resharding.transports.shared_memory import publish
from megatron_rl.resharding.transports.transport import HeldStill, Inbound, InProcess, Outbound, SharedMemory
from tests.resharding.reference import Tensors, hf_tensors, megatron_shards
from tests.resharding.sglang_reference import sglang_shards

CONFIG: dict[str, Any] = {
    "model_type": "llama",
    "hidden_size": 8,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 4,
    "intermediate_size": 12,
    "vocab_size": 13,
    "num_hidden_layers": 2,
    "tie_word_embeddings": False,
}
SIZES, ENGINE = ParallelSizes(tensor=2, pipeline=2), EngineSizes(tensor=2, pipeline=2)
Ends = tuple[list[Outbound], list[Inbound]]  # by rank
Connect = Callable[[Plan, list[Tensors], list[Tensors], Path], Ends]


def copies_to(plan: Plan, rank: int) -> list[Copy]:
    return [plan.copies[i] for i in plan.copies_to(rank)]


def flattened(tensors: Tensors) -> Tensors:
    return {name: flat(t) for name, t in tensors.items()}


def in_process(plan: Plan, held: list[Tensors], wanted: list[Tensors], folder: Path) -> Ends:
    sources = {(r, name): flat(t) for r, tensors in enumerate(held) for name, t in tensors.items()}
    inbound: list[Inbound] = [InProcess(copies_to(plan, r), sources, flattened(t)) for r, t in enumerate(wanted)]
    return [HeldStill(plan, r, tensors) for r, tensors in enumerate(held)], inbound


def shared_memory(plan: Plan, held: list[Tensors], wanted: list[Tensors], folder: Path) -> Ends:
    memories = [publish(tensors) for tensors in held]
    inbound: list[Inbound] = [SharedMemory(copies_to(plan, r), memories, flattened(t)) for r, t in enumerate(wanted)]
    return [HeldStill(plan, r, tensors) for r, tensors in enumerate(held)], inbound


def files(plan: Plan, held: list[Tensors], wanted: list[Tensors], folder: Path) -> Ends:
    inbound: list[Inbound] = [FilesDestination(plan, r, t, folder, "run", 5) for r, t in enumerate(wanted)]
    return [FilesSource(plan, r, t, torch.float32, folder, "run") for r, t in enumerate(held)], inbound


def batched(plan: Plan, held: list[Tensors], wanted: list[Tensors], folder: Path) -> Ends:
    sources = {(r, name): flat(t) for r, tensors in enumerate(held) for name, t in tensors.items()}
    inbound: list[Inbound] = [Batched(copies_to(plan, r), sources, flattened(t)) for r, t in enumerate(wanted)]
    return [HeldOnDevice(plan, r, tensors) for r, tensors in enumerate(held)], inbound


def check_swap(connect: Connect, folder: Path, device: str = "cpu") -> None:
    """Every stage of the engine, those without the final norm too, is NaN somewhere between swaps."""
    torch.manual_seed(0)
    hf = hf_tensors(CONFIG, tags=False)
    held = [{n: t.to(device) for n, t in rank.items()} for rank in megatron_shards(hf, CONFIG, SIZES)]
    layout = sglang_layout(CONFIG, ENGINE)
    wanted = [
        {n: torch.full(shape, -1.0, device=device) for n, shape in shard.locals.items()} for shard in layout.ranks
    ]
    plan = make_plan(megatron_layout(CONFIG, SIZES), layout)
    owners, ends = connect(plan, held, wanted, folder)
    landings = [Landing(plan, r, t, ends[r]) for r, t in enumerate(wanted)]
    hashes = merge_hashes(plan, [owner.push(1) for owner in owners])
    for landing, tensors, expected in zip(landings, wanted, sglang_shards(hf, CONFIG, ENGINE), strict=True):
        landing.poison()
        assert any(t.isnan().any() for t in tensors.values())
        landing.pull(1)
        landing.verify(1, hashes)
        assert any(t.isnan().any() for t in tensors.values())
        landing.commit(1)
        assert tensors.keys() == expected.keys()
        assert all(torch.equal(tensors[name].cpu(), tensor) for name, tensor in expected.items())
        wrong = hashes.copy()
        wrong[landing.indices[3]] ^= 1
        name = landing.copies[3].tensor
        with pytest.raises(
            SwapError, match=rf"Tensor {name}.* did not arrive in version 1: .*\(1 of \d+ copies differ"
        ):
            landing.verify(1, wrong)
        assert any(t.isnan().any() for t in tensors.values())
    assert np.array_equal(merge_hashes(plan, [owner.push(2) for owner in owners]), hashes)
    for landing, tensors in zip(landings, wanted, strict=True):
        landing.pull(2)
        landing.verify(2, hashes)
        landing.commit(2)
        assert not any(t.isnan().any() for t in tensors.values())
        landing.close()
        with pytest.raises((KeyError, SwapError)):
            landing.pull(3)
        assert landing.version == -1 and any(t.isnan().any() for t in tensors.values())


@pytest.mark.parametrize("connect", [in_process, shared_memory, files, batched])
def test_a_swap_is_proved_poisons_and_heals(connect: Connect, tmp_path: Path) -> None:
    check_swap(connect, tmp_path)
