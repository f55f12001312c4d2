"""Swaps over gloo between real processes, and everything that must stop one, by name and in time."""

import os
import re
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from megatron_rl.errors import InputError
from megatron_rl.resharding.layout import ParallelSizes
from megatron_rl.resharding.layouts.fp8 import SCALE, cut_tensors, quantised_engine, quantised_source
from megatron_rl.resharding.layouts.megatron import megatron_layout
from megatron_rl.resharding.layouts.sglang import EngineSizes, sglang_layout
from megatron_rl.resharding.layouts.transformers import transformers_layout
from megatron_rl.resharding.plan import make_plan
from megatron_rl.resharding.quantise import quantised_names
from megatron_rl.resharding.swap import merge_hashes
from megatron_rl.resharding.transports.chunks import ALONE
from megatron_rl.resharding.transports.cuda_ipc import HeldOnDevice
from megatron_rl.resharding.transports.endpoints import Endpoints
from megatron_rl.resharding.transports.point_to_point import PointToPointSource
from megatron_rl.resharding.transports.transport import owned_hashes
from tests import forked
from tests.conftest import PATIENCE
from tests.resharding.layouts.test_fp8 import offers, quantised_model
from tests.resharding.reference import Tensors, hf_tensors, megatron_shards, transformers_parameters
from tests.resharding.sglang_reference import sglang_shards
from tests.resharding.transports.point_to_point_ranks import Job, Round

CONFIG: dict[str, Any] = {
    "model_type": "qwen3_moe",
    "hidden_size": 32,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "intermediate_size": 48,
    "vocab_size": 61,
    "num_hidden_layers": 2,
    "tie_word_embeddings": True,
    "num_experts": 4,
    "moe_intermediate_size": 12,
    "mlp_only_layers": [0],
}
SIZES = ParallelSizes(tensor=2, pipeline=2)
TWO = EngineSizes(tensor=2)
SMALL = 6144  # bytes: four links with two slots of 768 bytes; the embedding alone has 7808 in float32
NORM = "model.norm.weight"
RANKS = Path(__file__).parent / "point_to_point_ranks.py"
Outcome = dict[str, Any]


def job(dtype: torch.dtype, engine: EngineSizes | None, sizes: ParallelSizes = SIZES, **settings: Any) -> Job:
    torch.manual_seed(0)
    hf = hf_tensors(CONFIG, tags=False)
    layout = sglang_layout(CONFIG, engine) if engine else transformers_layout(CONFIG)
    wanted = [{n: torch.full(s, -1, dtype=dtype) for n, s in shard.locals.items()} for shard in layout.ranks]
    held = megatron_shards(hf, CONFIG, sizes)
    return Job(megatron_layout(CONFIG, sizes), layout, held, wanted, **({"rounds": [Round(1)]} | settings))


def expected(dtype: torch.dtype, engine: EngineSizes | None) -> list[Tensors]:
    torch.manual_seed(0)
    hf = {name: t.to(dtype) for name, t in hf_tensors(CONFIG, tags=False).items()}
    return sglang_shards(hf, CONFIG, engine) if engine else [transformers_parameters(hf, CONFIG)]


def swap(work: Job, folder: Path) -> list[dict[int, Outcome]]:
    """Every round's outcomes by rank; a killed rank has none."""
    torch.save(work, folder / "job.pt")
    streams = (Path(os.devnull), folder / "stdout", folder / "stderr")
    process = forked.start(str(RANKS), [str(folder)], os.environ | forked.SURROUNDINGS, streams)
    try:
        process.join(PATIENCE)
    finally:
        if process.exitcode is None:
            os.killpg(process.pid, signal.SIGKILL)
    assert process.exitcode == 0, streams[2].read_text()[-3000:]
    world = len(work.held) + len(work.wanted)
    return [
        {r: torch.load(p, weights_only=False) for r in range(world) if (p := folder / f"{n}.{r}.pt").exists()}
        for n in range(len(work.rounds))
    ]


def assert_arrived(outcomes: dict[int, Outcome], real: list[Tensors], version: int) -> None:
    assert [o["error"] for o in outcomes.values()] == [""] * len(outcomes)
    landed = list(outcomes.values())[-len(real) :]
    for outcome, tensors in zip(landed, real, strict=True):
        assert outcome["version"] == version and outcome["tensors"].keys() == tensors.keys()
        for name, tensor in tensors.items():
            assert outcome["tensors"][name].dtype == tensor.dtype and torch.equal(outcome["tensors"][name], tensor), (
                name
            )


def assert_poisoned(outcome: Outcome) -> None:
    assert outcome["version"] == -1 and outcome["tensors"][NORM].isnan().all()


@pytest.mark.parametrize("engine", [None, TWO], ids=["one rank", "two ranks"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_rank_receives_its_copies(tmp_path: Path, dtype: torch.dtype, engine: EngineSizes | None) -> None:
    """Twice in a row, from float32 weights, through a buffer that is smaller than a tensor."""
    work = job(dtype, engine, buffer=SMALL, rounds=[Round(1), Round(2)])
    for outcomes, version in zip(swap(work, tmp_path), (1, 2), strict=True):
        assert_arrived(outcomes, expected(dtype, engine), version)
        assert all(outcome["staging"] <= SMALL for outcome in outcomes.values())
        plan = make_plan(work.source, work.destination)
        owned = merge_hashes(plan, [owned_hashes(plan, r, held, dtype) for r, held in enumerate(work.held)])
        for rank in range(len(work.wanted)):
            assert np.array_equal(outcomes[4 + rank]["hashes"], owned[plan.copies_to(rank)])


def test_a_wrong_byte_is_named_and_the_next_swap_heals(tmp_path: Path) -> None:
    rounds = [Round(1, {0: "truncate 3"}), Round(2, {1: "corrupt 2"}), Round(3), Round(4, connect=True, overlap=True)]
    work = job(torch.bfloat16, TWO, ParallelSizes(tensor=2), buffer=SMALL, rounds=rounds)
    truncated, corrupt, healed, overlapped = swap(work, tmp_path)
    copies = make_plan(work.source, work.destination).copies
    (wrong,) = [o for o in list(corrupt.values())[2:] if o["error"]]
    assert len({t for c in copies for t in c.tensors if f"Tensor {t} " in wrong["error"]}) == 1
    assert "did not arrive in version 2" in wrong["error"] and "what trainer rank 1 holds in" in wrong["error"]
    assert_poisoned(wrong)
    (wrong,) = [o for o in list(truncated.values())[2:] if o["error"]]
    assert "did not arrive in version 1" in wrong["error"] and "what trainer rank 0 holds in" in wrong["error"]
    assert_poisoned(wrong)
    assert not any(outcomes[r]["error"] for outcomes in (truncated, corrupt) for r in range(2))  # they sent everything
    assert_arrived(healed, expected(torch.bfloat16, TWO), 3)
    for outcome in list(overlapped.values())[2:]:  # every message was right, the memory that it went to is not
        assert "did not arrive in version 4" in outcome["error"]
        assert_poisoned(outcome)


def test_in_gpu_memory_all_copies_are_hashed_at_once(tmp_path: Path) -> None:
    """As over NCCL: as an owner's end on a GPU hashes, and a wrong byte is named."""
    rounds = [Round(1), Round(2, {1: "corrupt 2"}), Round(3)]
    work = job(torch.bfloat16, TWO, ParallelSizes(tensor=2), buffer=SMALL, rounds=rounds, at_once=True)
    first, corrupt, healed = swap(work, tmp_path)
    plan = make_plan(work.source, work.destination)
    held = [HeldOnDevice(plan, r, tensors, torch.bfloat16).push(1) for r, tensors in enumerate(work.held)]
    for rank in range(2):
        assert np.array_equal(first[2 + rank]["hashes"], merge_hashes(plan, held)[plan.copies_to(rank)])
    (wrong,) = [o for o in list(corrupt.values())[2:] if o["error"]]
    assert "did not arrive in version 2" in wrong["error"] and "what trainer rank 1 holds in" in wrong["error"]
    assert_poisoned(wrong)
    for outcomes, version in ((first, 1), (healed, 3)):
        assert_arrived(outcomes, expected(torch.bfloat16, TWO), version)


def test_large_runs_travel_from_and_to_where_they_lie(tmp_path: Path) -> None:
    """Of float32 weights nothing is packed but what is small; bfloat16 ones are only cast at their owners."""
    config = CONFIG | {"vocab_size": 4096, "moe_intermediate_size": 8192}
    sizes = ParallelSizes(tensor=2)
    layouts = megatron_layout(config, sizes), transformers_layout(config)
    torch.manual_seed(0)
    hf = hf_tensors(config, tags=False)
    for dtype in (torch.float32, torch.bfloat16):
        wanted = [{n: torch.zeros(s, dtype=dtype) for n, s in layouts[1].ranks[0].locals.items()}]
        (tmp_path / str(dtype)).mkdir()
        work = Job(*layouts, megatron_shards(hf, config, sizes), wanted, [Round(1)])
        (outcomes,) = swap(work, tmp_path / str(dtype))
        assert_arrived(outcomes, [transformers_parameters({n: t.to(dtype) for n, t in hf.items()}, config)], 1)
        source, destination = outcomes[0]["staging"], outcomes[2]["staging"]
        assert source >= 8 * ALONE if dtype == torch.bfloat16 else source > 0
        assert destination > 0


@pytest.mark.parametrize(
    ("fault", "told", "refused"),
    [
        ("plan", "source rank 0 (process 0) follows plan {wrong}, this process plan {right}", "follows plan {right}"),
        ("version", "source rank 0 (process 0) runs version 2, this process version 1", "runs version 1, this"),
        ("buffer", "source rank 0 (process 0) has another buffer size or other dtypes", "has another buffer size"),
    ],
)
def test_another_swap_is_refused(tmp_path: Path, fault: str, told: str, refused: str) -> None:
    rounds = [Round(1, {0: fault}), Round(2), Round(3, connect=True)]
    work = job(torch.float32, None, ParallelSizes(tensor=2), rounds=rounds)
    first, second, healed = swap(work, tmp_path)
    plan = make_plan(work.source, work.destination)
    wrong = type(plan)(plan.tensors, 2, 1, (plan.copies[1], plan.copies[0], *plan.copies[2:]), plan.unused)
    names = {"right": plan.hash, "wrong": wrong.hash}
    assert told.format(**names) in first[2]["error"]
    assert f"destination rank 0 (process 2) {refused.format(**names)}" in first[0]["error"]
    assert "destination rank 0 (process 2) refused" in first[1]["error"]
    assert_poisoned(first[2])
    assert all("cannot be run over these links" in outcome["error"] for outcome in second.values())
    assert_poisoned(second[2])
    assert_arrived(healed, expected(torch.float32, None), 3)


@pytest.mark.parametrize(("killed", "name"), [(1, "source rank 1 (process 1)"), (2, "destination rank 0 (process 2)")])
def test_a_killed_rank_is_named_and_a_new_connection_heals(tmp_path: Path, killed: int, name: str) -> None:
    rounds = [Round(1), Round(2, {killed: "kill 4"}), Round(3, connect=True)]
    work = job(torch.float32, None, ParallelSizes(tensor=2), rounds=rounds, buffer=SMALL, timeout=PATIENCE)
    first, second, healed = swap(work, tmp_path)
    assert_arrived(first, expected(torch.float32, None), 1)
    assert killed not in second
    others = [second[2]] if killed == 1 else [second[0], second[1]]
    for outcome in others:
        assert f"The swap failed: {name} was lost at " in outcome["error"] and outcome["seconds"] < PATIENCE
    if killed == 1:
        assert_poisoned(second[2])
    assert_arrived(healed, expected(torch.float32, None), 3)


@pytest.mark.parametrize(
    ("fault", "what"), [("late", "the greeting"), ("stall 3", r"chunk 3 of \d+, from tensor model\.\S+ on,")]
)
def test_every_wait_ends_at_the_deadline(tmp_path: Path, fault: str, what: str) -> None:
    rounds = [Round(1, {1: fault}), Round(2, connect=True, timeout=PATIENCE)]
    work = job(torch.float32, None, ParallelSizes(tensor=2), rounds=rounds, buffer=SMALL, timeout=30)
    outcomes, healed = swap(work, tmp_path)
    late = rf"source rank 1 \(process 1\) kept {what} waiting until the deadline of 30 s"
    assert re.search(late, outcomes[2]["error"]), outcomes[2]["error"]
    assert outcomes[2]["seconds"] >= 30 and outcomes[0]["error"] and outcomes[1]["error"]
    assert_poisoned(outcomes[2])
    assert_arrived(healed, expected(torch.float32, None), 2)


def test_what_cannot_be_connected() -> None:
    with pytest.raises(InputError, match="Rank 1 is a source and a destination of one swap"):
        Endpoints([0, 1], [1, 2])
    work = job(torch.float32, TWO)
    plan = make_plan(work.source, work.destination)
    with pytest.raises(InputError, match="The plan is for 4 -> 2 ranks; 3 -> 2 ranks"):
        PointToPointSource(plan, 0, work.held[0], torch.float32, Endpoints(range(3), range(4, 6)))
    with pytest.raises(InputError, match="A swap buffer of 1000 bytes is too small for the 4 links"):
        PointToPointSource(plan, 0, work.held[0], torch.float32, Endpoints(range(4), range(4, 6), buffer=2000))


def test_fp8_weights_and_scales_arrive_as_of_the_full_tensor(tmp_path: Path) -> None:
    """The source's boundaries cut through tiles, and the engine cuts differently."""
    config = CONFIG | {"intermediate_size": 40}
    block, sizes, workers = 4, ParallelSizes(tensor=4, expert=2), EngineSizes(tensor=2, expert=2)
    names = quantised_names(config)
    torch.manual_seed(0)
    hf = hf_tensors(config, tags=False)
    layout = megatron_layout(config, sizes)
    held = offers(layout, megatron_shards(hf, config, sizes), names, block)
    engine = quantised_engine(sglang_layout(config, workers), names, block)
    quantised = {s.local for shard in engine.ranks for s in shard.segments if s.tensor in names}
    kinds = {n: torch.float8_e4m3fn if n in quantised else torch.float32 for n in engine.ranks[0].locals}
    wanted = [{n: torch.full(s, -1.0).to(kinds[n]) for n, s in shard.locals.items()} for shard in engine.ranks]
    (outcomes,) = swap(Job(quantised_source(layout, names, block), engine, held, wanted, [Round(1)], SMALL), tmp_path)
    full = quantised_model(hf, names, block)
    weights = {n: t.view(torch.uint8) if n in names else t for n, t in full.items() if not n.endswith(SCALE)}
    scales = {n: full.get(n + SCALE, t) for n, t in hf.items()}
    real = []
    for weight, scale in zip(
        sglang_shards(weights, config, workers), sglang_shards(scales, config, workers), strict=True
    ):
        real.append({n: t.view(torch.float8_e4m3fn) if n in quantised else t for n, t in weight.items()})
        real[-1] |= {n + SCALE: scale[n] for n in quantised}
    assert [name.split(".", 3)[-1] for name in cut_tensors(layout, names, block)] == [
        "mlp.gate_proj.weight",
        "mlp.up_proj.weight",
        "mlp.down_proj.weight",
    ]
    assert len(quantised) == 8
    assert_arrived(outcomes, real, 1)
