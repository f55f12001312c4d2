"""What layers keep, against what autograd saves of them; and what recomputation leaves of it."""

from collections.abc import Iterator

import pytest
import torch

from benchmarks.gpu_train import RandomActor, join, objective, rows
from megatron_rl.actor import groups
from megatron_rl.actor.config import ActorConfig
from megatron_rl.resharding.families.architecture import read_architecture
from megatron_rl.resharding.layout import ParallelSizes
from megatron_rl.settings.foresight.activations import Kernels, kept
from tests.settings.foresight.shapes import LLAMA, MIXTURE, QWEN3_8B, SMALL

ON_CPU = Kernels(fused=False, repeated=True, copied=False)
ON_GPU = Kernels(fused=True, repeated=False, copied=False)


@pytest.fixture
def alone(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A job of one process, which ends."""
    from megatron_rl.system.machine import free_port

    monkeypatch.setenv("MASTER_PORT", str(free_port()))
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR"):
        monkeypatch.setenv(name, "0")
    join(ActorConfig())
    yield
    groups.shutdown()


def saved(shape: dict, recompute: str, *modules: str) -> tuple[float, int]:
    """Bytes of all tensors that one update's forward pass saves, weights left out, and its tokens."""
    options = ActorConfig(recompute=recompute, micro_batch_tokens=1024)
    options.recompute_modules = list(modules) or options.recompute_modules
    actor = RandomActor(shape, options, "float32", "")
    actor.new_optimizer(actor.config.optimizer)
    batch = rows(4, 257, shape["vocab_size"])
    for row in batch:
        row.prompt = 0
    batches = actor.pack(batch)
    weights = {parameter.untyped_storage().data_ptr() for parameter in actor.parameters().values()}
    found: dict[int, torch.Tensor] = {}  # which live on, so that no two have one address

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.untyped_storage().data_ptr() not in weights:
            found.setdefault(tensor.untyped_storage().data_ptr(), tensor)
        return tensor

    def stop(*arguments: object) -> object:
        """The forward pass is over: what is computed again in the backward one does not count."""
        counted.append(sum(tensor.untyped_storage().nbytes() for tensor in found.values()))
        return objective(*arguments)  # type: ignore[arg-type]

    counted: list[int] = []
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        actor.update(batches, stop, lr=1e-6)
    assert len(batches) == 1
    return counted[0], batches[0].inputs.shape[1]


@pytest.mark.parametrize("recompute", ["none", "selective", "full"])
@pytest.mark.parametrize("shape", [SMALL, LLAMA, MIXTURE], ids=["qwen3", "llama", "mixture"])
def test_as_many_as_autograd_saves(alone: None, shape: dict, recompute: str) -> None:
    """Of one layer more, in sequences of one length; statistics of norms and attention, a few a token, are left out."""
    (less, _), (more, tokens) = (saved(shape | {"num_hidden_layers": n}, recompute) for n in (2, 3))
    arch = read_architecture(shape)
    predicted = kept(arch, ParallelSizes(), ON_CPU, recompute, False)
    statistics = 2 + 3 * arch.heads + arch.kv_heads + 4 * arch.experts_per_token
    assert predicted <= (more - less) / 4 / tokens <= predicted + statistics


@pytest.mark.parametrize(
    ("shape", "modules"),
    [(SMALL, ("mlp",)), (LLAMA, ("mlp", "core_attn")), (MIXTURE, ("moe",))],
    ids=["mlp", "both", "moe"],
)
def test_modules_that_are_computed_anew(alone: None, shape: dict, modules: tuple[str, ...]) -> None:
    (less, _), (more, tokens) = (saved(shape | {"num_hidden_layers": n}, "selective", *modules) for n in (2, 3))
    arch = read_architecture(shape)
    predicted = kept(arch, ParallelSizes(), ON_CPU, "selective", False, modules)
    statistics = 2 + 3 * arch.heads + arch.kv_heads + 4 * arch.experts_per_token
    assert predicted <= (more - less) / 4 / tokens <= predicted + statistics


def test_a_shape_by_hand() -> None:
    """Qwen3-8B's layer with Transformer Engine, attention of sequences of one length."""
    arch = read_architecture(QWEN3_8B)
    queries, keys = 32 * 128, 8 * 128
    by_norms, by_attention = 4 * 4096, queries + (queries + 2 * keys) + 2 * queries + keys
    assert kept(arch, ParallelSizes(), ON_GPU, "none", False) == by_norms + by_attention + 3 * 12288
    assert kept(arch, ParallelSizes(), ON_GPU, "full", False) == 4096
    halves = (queries + queries + 2 * keys + 2 * queries + keys) / 2 + 3 * 12288 / 2
    assert kept(arch, ParallelSizes(tensor=2), ON_GPU, "none", False) == by_norms + halves
    assert kept(arch, ParallelSizes(tensor=2), ON_GPU, "none", True) == by_norms / 2 + halves


@pytest.mark.parametrize("shape", [SMALL, LLAMA, MIXTURE, QWEN3_8B])
@pytest.mark.parametrize("reach", [1.0, 1.5])
def test_recomputation_keeps_less(shape: dict, reach: float) -> None:
    for repeated in (True, False):
        kernels = Kernels(False, repeated, True, reach)
        sizes = [
            kept(read_architecture(shape), ParallelSizes(), kernels, how, False)
            for how in ("full", "selective", "none")
        ]
        assert sizes == sorted(sizes) and sizes[0] < sizes[1] < sizes[2]
