"""Swaps out of real processes' shared memory, and everything that must stop one."""

import os
import pickle
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from megatron_rl.errors import InputError, SwapError
from megatron_rl.resharding.layout import Padding, ParallelSizes
from megatron_rl.resharding.layouts.megatron import megatron_layout
from megatron_rl.resharding.layouts.sglang import EngineSizes, sglang_layout
from megatron_rl.resharding.layouts.transformers import transformers_layout
from megatron_rl.resharding.plan import Plan, make_plan
from megatron_rl.resharding.proof import ProofError
from megatron_rl.resharding.swap import Receiver, SwapSource, merge_hashes, owned_hashes
from megatron_rl.resharding.transports.shared_memory import RankMemory, publish
from megatron_rl.system.files import require_space
from tests.conftest import ROOT
from tests.resharding.reference import Tensors, hf_tensors, megatron_shards, transformers_parameters

CONFIG: dict[str, Any] = {
    "model_type": "qwen3_moe",
    "hidden_size": 8,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 4,
    "intermediate_size": 12,
    "vocab_size": 13,
    "num_hidden_layers": 2,
    "tie_word_embeddings": True,
    "num_experts": 4,
    "moe_intermediate_size": 6,
    "mlp_only_layers": [0],
}
SIZES = ParallelSizes(tensor=2, pipeline=2, expert=2)
TWO = ParallelSizes(tensor=2, expert=2)
OWNER = Path(__file__).parent / "owner.py"


class Job:
    """Trainer ranks in this process."""

    def __init__(self, dtype: torch.dtype = torch.float32, sizes: ParallelSizes = SIZES) -> None:
        torch.manual_seed(0)
        self.hf = {name: t.to(dtype) for name, t in hf_tensors(CONFIG, tags=False).items()}
        self.ranks = megatron_shards(self.hf, CONFIG, sizes)
        self.memories = [publish(rank) for rank in self.ranks]
        self.source = SwapSource(CONFIG, sizes, False, False, self.memories)

    def hashes(self, plan: Plan, dtype: torch.dtype | None = None) -> np.ndarray:
        return merge_hashes(plan, [owned_hashes(plan, r, rank, dtype) for r, rank in enumerate(self.ranks)])


def engine(dtype: torch.dtype = torch.float32) -> Tensors:
    return {n: torch.zeros(shape, dtype=dtype) for n, shape in transformers_layout(CONFIG).ranks[0].locals.items()}


def assert_holds(parameters: Tensors, hf: Tensors) -> None:
    for name, expected in transformers_parameters(hf, CONFIG).items():
        assert torch.equal(parameters[name], expected.to(parameters[name].dtype)), name


@pytest.fixture
def owners(tmp_path: Path) -> Iterator[tuple[list[subprocess.Popen[bytes]], Plan, Tensors]]:
    """One process per trainer rank, in bfloat16, its weights in one buffer as in Megatron's DistributedDataParallel."""
    hf = {name: t.bfloat16() for name, t in hf_tensors(CONFIG, tags=False).items()}
    plan = make_plan(megatron_layout(CONFIG, TWO), transformers_layout(CONFIG))
    processes = []
    for rank, weights in enumerate(megatron_shards(hf, CONFIG, TWO)):
        path = tmp_path / f"{rank}.pickle"
        path.write_bytes(pickle.dumps((plan, rank, weights)))
        env = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-W", "ignore", str(OWNER), str(path)]
        processes.append(subprocess.Popen(command, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE))
    yield processes, plan, hf
    for process in processes:
        process.kill()
        process.wait()


def ask(process: subprocess.Popen[bytes], command: str) -> Any:
    assert process.stdin and process.stdout
    process.stdin.write(f"{command}\n".encode())
    process.stdin.flush()
    return pickle.load(process.stdout)


def test_swaps_between_processes(owners: tuple[list[subprocess.Popen[bytes]], Plan, Tensors]) -> None:
    processes, plan, hf = owners
    memories: list[RankMemory] = [pickle.load(p.stdout) for p in processes if p.stdout]
    assert [m.pid for m in memories] == [p.pid for p in processes]
    assert [len(m.buffers) for m in memories] == [1, 1]
    parameters = engine(torch.bfloat16)
    receiver = Receiver(transformers_layout(CONFIG), parameters, SwapSource(CONFIG, TWO, False, False, memories))
    assert receiver.plan_hash == plan.hash
    assert receiver.bytes == sum(p.numel() * 2 for p in parameters.values())
    for version in (1, 2):
        for process in processes:
            ask(process, "step")
        hf = {name: t + 0.5 for name, t in hf.items()}
        receiver.pull(version)
        receiver.verify(version, merge_hashes(plan, [ask(p, "hash") for p in processes]))
        receiver.commit(version)
        assert_holds(parameters, hf)
    maps = Path("/proc/self/maps").read_text().splitlines()
    assert [line.split()[1] for line in maps if f"torch_{processes[0].pid}_" in line] == ["r--s"]
    for process in processes:
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert not [name for name in os.listdir("/dev/shm") if any(f"torch_{p.pid}_" in name for p in processes)]
    receiver.pull(3)  # mapped memory outlives its owner
    receiver.verify(
        3, merge_hashes(plan, [owned_hashes(plan, *rank) for rank in enumerate(megatron_shards(hf, CONFIG, TWO))])
    )
    receiver.commit(3)
    assert_holds(parameters, hf)
    receiver.close()
    assert f"torch_{processes[0].pid}_" not in Path("/proc/self/maps").read_text()
    with pytest.raises(SwapError, match=f"cannot be read here ./proc/{processes[0].pid}/fd"):
        memories[0].open()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_an_engine_of_another_dtype_is_proved_too(dtype: torch.dtype) -> None:
    job, parameters = Job(), engine(dtype)
    receiver = Receiver(transformers_layout(CONFIG), parameters, job.source)
    receiver.pull(1)
    receiver.verify(1, job.hashes(receiver.plan, dtype))
    receiver.commit(1)
    assert_holds(parameters, job.hf)


def test_a_weight_that_changes_after_the_pull_is_named_and_poisons() -> None:
    job, parameters = Job(), engine()
    receiver = Receiver(transformers_layout(CONFIG), parameters, job.source)
    receiver.pull(1)
    job.ranks[1]["0/decoder.layers.0.self_attention.linear_qkv.weight"][0, 0] += 1e-3
    with pytest.raises(SwapError, match=r"model\.layers\.0\.self_attn\.q_proj\.weight.*version 1.*1 of \d+ copies"):
        receiver.verify(1, job.hashes(receiver.plan))
    assert parameters["model.norm.weight"].isnan().all()
    receiver.pull(2)  # a complete swap heals
    receiver.verify(2, job.hashes(receiver.plan))
    receiver.commit(2)
    assert_holds(parameters, {n: t for n, t in job.hf.items() if "0.self_attn.q_proj" not in n})


def test_exchanged_rows_are_seen() -> None:
    job, parameters = Job(), engine()
    receiver = Receiver(transformers_layout(CONFIG), parameters, job.source)
    receiver.pull(1)
    fc1 = job.ranks[2]["0/decoder.layers.0.mlp.experts.local_experts.1.linear_fc1.weight"]
    fc1.copy_(fc1.roll(len(fc1) // 2, 0))  # gate and up in each other's place: all sums stay
    with pytest.raises(SwapError, match=r"model\.layers\.1\.mlp\.experts\.1\.gate_proj\.weight.*1 of \d+ copies"):
        receiver.verify(1, job.hashes(receiver.plan))


def test_versions_and_plans_must_agree() -> None:
    job, parameters = Job(), engine()
    receiver = Receiver(transformers_layout(CONFIG), parameters, job.source)
    hashes = job.hashes(receiver.plan)
    for version, expected, message in (
        (5, hashes, "holds version 4, the trainer proves version 5"),
        (4, hashes[:-1], rf"{len(hashes) - 1} hashes for a plan of {len(hashes)} copies"),
    ):
        receiver.pull(4)
        with pytest.raises(SwapError, match=message):
            receiver.verify(version, expected)
        assert parameters["model.norm.weight"].isnan().all()


def test_a_rank_is_proved_by_the_hashes_of_its_own_copies() -> None:
    """Of an engine of two ranks, each of which may be given those of the whole plan as well."""
    job, layout = Job(), sglang_layout(CONFIG, EngineSizes(tensor=2))
    for rank, shard in enumerate(layout.ranks):
        parameters = {name: torch.zeros(shape) for name, shape in shard.locals.items()}
        receiver = Receiver(layout, parameters, job.source, rank)
        hashes = job.hashes(receiver.plan, torch.float32)
        own = hashes[receiver.indices]
        assert 0 < len(own) < len(hashes)
        for version, expected in ((1, own), (2, hashes)):
            receiver.pull(version)
            receiver.verify(version, expected)
            receiver.commit(version)
        receiver.pull(3)
        with pytest.raises(SwapError, match=r"did not arrive in version 3"):
            receiver.verify(3, own[::-1].copy())


def test_weights_stay_poisoned_until_they_are_committed() -> None:
    """Only the final norm is NaN after a pull; an aborted or unproved swap never writes it."""
    job, parameters = Job(), engine()
    receiver = Receiver(transformers_layout(CONFIG), parameters, job.source)
    expected = job.hashes(receiver.plan)
    norm = parameters["model.norm.weight"]
    receiver.pull(1)
    for version, message in (
        (1, "Version 1 cannot be committed: its weights were not proved"),
        (2, "holds version 1,"),
    ):
        receiver.pull(1)
        with pytest.raises(SwapError, match=message):
            receiver.commit(version)
        assert norm.isnan().all()
    receiver.pull(1)
    receiver.verify(1, expected)
    assert [n for n, p in parameters.items() if p.isnan().any()] == ["model.norm.weight"] and norm.isnan().all()
    receiver.abort()
    assert norm.isnan().all()
    with pytest.raises(SwapError, match="holds version -1, the trainer proves version 1"):
        receiver.commit(1)
    receiver.pull(2)
    receiver.verify(2, expected)
    receiver.commit(2)
    assert_holds(parameters, job.hf)
    with pytest.raises(SwapError, match="or it was before"):
        receiver.commit(2)
    assert norm.isnan().all()


def test_the_commit_record_is_read_back() -> None:
    """A norm that is not what landed, though every copy was proved."""
    job, parameters = Job(), engine()
    receiver = Receiver(transformers_layout(CONFIG), parameters, job.source)
    receiver.pull(1)
    receiver.verify(1, job.hashes(receiver.plan))
    assert receiver._true_norm is not None
    receiver._true_norm[3] += 1
    with pytest.raises(SwapError, match=r"Tensor model\.norm\.weight did not arrive in version 1"):
        receiver.commit(1)
    assert parameters["model.norm.weight"].isnan().all()


def test_a_pull_that_stops_half_way_leaves_no_usable_model() -> None:
    job, parameters = Job(), engine()
    receiver = Receiver(transformers_layout(CONFIG), parameters, job.source)
    receiver.pull(1)
    pairs = receiver.transport._pull._pairs
    pairs[len(pairs) // 2] = (None, pairs[len(pairs) // 2][1])
    with pytest.raises(AttributeError):
        receiver.pull(2)
    assert parameters["model.norm.weight"].isnan().all()
    with pytest.raises(SwapError, match="holds version -1"):
        receiver.verify(2, job.hashes(receiver.plan))


def test_padding_becomes_zero_with_every_pull() -> None:
    job, parameters = Job(), engine()
    layout = transformers_layout(CONFIG)
    (shard,) = layout.ranks
    name = "model.embed_tokens.weight"
    rows, columns = shard.locals[name]
    padded = replace(
        shard,
        locals=shard.locals | {name: (rows + 2, columns)},
        padding=(Padding(name, rows * columns, 2 * columns),),
    )
    parameters[name] = torch.full((rows + 2, columns), 7.0)
    receiver = Receiver(replace(layout, ranks=(padded,)), parameters, job.source)
    for version in (1, 2):
        parameters[name][rows:] = 7.0
        receiver.pull(version)
        receiver.verify(version, job.hashes(receiver.plan))
        receiver.commit(version)
        assert not parameters[name][rows:].any() and parameters[name][:rows].any()


def test_each_copy_has_one_owner() -> None:
    job = Job()
    plan = make_plan(job.source.layout(), transformers_layout(CONFIG))
    parts = [owned_hashes(plan, r, rank) for r, rank in enumerate(job.ranks)]
    with pytest.raises(SwapError, match=r"0 trainer ranks gave a hash for a copy of tensor model\.embed_tokens"):
        merge_hashes(plan, parts[1:])
    with pytest.raises(SwapError, match=r"2 trainer ranks gave a hash"):
        merge_hashes(plan, [*parts, parts[0]])


def test_what_does_not_fit_the_layout_is_named() -> None:
    job, layout = Job(), transformers_layout(CONFIG)
    with pytest.raises(ProofError, match=r"lm_head\.weight of the engine has shape \[13, 8\]; in .* it does not exist"):
        Receiver(layout, engine() | {"lm_head.weight": torch.zeros(13, 8)}, job.source)
    with pytest.raises(ProofError, match=r"model\.norm\.weight of the engine does not exist"):
        Receiver(layout, {n: p for n, p in engine().items() if n != "model.norm.weight"}, job.source)
    with pytest.raises(SwapError, match="3 ranks offer weights; the parallel sizes say 4"):
        Receiver(layout, engine(), SwapSource(CONFIG, SIZES, False, False, job.memories[:3]))
    fused = SwapSource(CONFIG, SIZES, True, False, job.memories)
    with pytest.raises(ProofError, match=r"input_layernorm\.weight of trainer rank 0 has shape"):
        Receiver(layout, engine(), fused)


def test_publishing_keeps_every_view() -> None:
    buffer = torch.arange(10.0)
    weight = torch.nn.Parameter(buffer[2:8].view(2, 3))
    optimizer = torch.optim.AdamW([weight], lr=0.1)
    alone = torch.ones(4, dtype=torch.bfloat16)
    memory = publish({"w": weight, "b": buffer[8:], "alone": alone})
    assert [b.size for b in memory.buffers] == [40, 8]
    assert memory.places["w"].buffer == memory.places["b"].buffer != memory.places["alone"].buffer
    assert publish({"w": weight, "b": buffer[8:], "alone": alone}) == memory
    mapped = memory.open()
    weight.grad = torch.ones(2, 3)
    optimizer.step()
    buffer[9], alone[0] = -1, 5
    assert torch.equal(mapped.tensors["w"], weight.detach().flatten()) and buffer[2] != 2
    assert mapped.tensors["b"].tolist() == [8, -1]
    assert mapped.tensors["alone"].tolist() == [5, 1, 1, 1]


def test_what_cannot_be_published() -> None:
    with pytest.raises(ValueError, match="parameter w on meta cannot be published"):
        publish({"w": torch.zeros(2, device="meta")})
    with pytest.raises(ValueError, match="parameter w on cpu cannot be published: contiguous"):
        publish({"w": torch.zeros(3, 2).T})
    with pytest.raises(InputError, match=r"/dev/shm has \d+ MB free; this rank needs \d{13} MB\. Enlarge it"):
        require_space("/dev/shm", 1 << 60, "this rank", "Enlarge it.")
