"""How the optimiser's state is asked for, begun before its first step, and put to sleep."""

from itertools import pairwise
from types import SimpleNamespace

import pytest
import torch

from megatron_rl.actor.checkpoint import begin
from megatron_rl.actor.config import ActorConfig, LoRAConfig
from megatron_rl.actor.megatron.asleep import Sleeper, rooms
from megatron_rl.actor.megatron.check import check_memory
from megatron_rl.actor.optimizer import _state
from megatron_rl.system import machine


class Engines(torch.optim.SGD):
    """Stands for Transformer Engine's FusedAdam: it makes states when asked, for a parameter and its remainders."""

    store_param_remainders = True

    def initialize_state(self, p: torch.Tensor, store_param_remainders: bool) -> None:
        self.state[p] = {"exp_avg": torch.zeros_like(p), "remainders": store_param_remainders}


class Shared:
    """Stands for Megatron's HybridDeviceOptimizer."""

    def __init__(self, *parts: torch.optim.Optimizer) -> None:
        self.sub_optimizers, self.state = list(parts), {}

    def _sync_sub_optimizers_state_to_hdo(self) -> None:
        self.state = {p: state for part in self.sub_optimizers for p, state in part.state.items()}


def test_what_megatron_is_asked_for() -> None:
    assert _state(ActorConfig()) == {} == _state(ActorConfig(gradients="bfloat16"))
    assert _state(ActorConfig(moments="bfloat16", gradients="bfloat16")) == {
        "use_precision_aware_optimizer": True,
        "exp_avg_dtype": torch.bfloat16,
        "exp_avg_sq_dtype": torch.bfloat16,
        "main_grads_dtype": torch.bfloat16,
        "store_param_remainders": False,
    }
    assert _state(ActorConfig(optimizer_on_host=0.25)) == {
        "use_precision_aware_optimizer": True,
        "optimizer_cpu_offload": True,
        "optimizer_offload_fraction": 0.25,
        "main_grads_dtype": torch.float32,
        "store_param_remainders": False,
    }
    assert _state(ActorConfig(fp8_weights=True, fp8="blockwise")) == {"fp8_recipe": "blockwise"}


def test_a_state_is_begun_once() -> None:
    p, q = torch.ones(3, dtype=torch.bfloat16, requires_grad=True), torch.ones(2, requires_grad=True)
    precise = SimpleNamespace(use_precision_aware_optimizer=True)
    engines = Engines([p, q])
    begin(SimpleNamespace(optimizer=engines, config=precise, init_state_fn=None))
    assert [engines.state[each]["remainders"] for each in (p, q)] == [True, False]
    host = torch.optim.AdamW([q])
    shared = Shared(Engines([p]), host)
    begin(SimpleNamespace(optimizer=shared, config=precise, init_state_fn=None))
    assert set(shared.state) == {p, q} and {"step", "exp_avg", "exp_avg_sq"} == set(host.state[q])
    q.grad = torch.ones(2)
    host.step()
    begin(SimpleNamespace(optimizer=shared, config=precise, init_state_fn=None))
    assert host.state[q]["step"] == 1  # as it was


def test_what_sleeps_shares_blocks_that_are_powers_of_two() -> None:
    """The float32 state of Qwen3-8B's matrices: alone, each would be rounded up, to 1.37 times as much."""
    layer = [6144 * 4096, 4096 * 4096, 24576 * 4096, 4096 * 12288, 4096, 4096, 128, 128]
    sizes = 3 * [4 * n for n in (36 * layer + [151936 * 4096] * 2 + [4096])]
    places, ends = rooms(sizes)
    rounded = [1 << (n - 1).bit_length() for n in sizes]
    blocks = [1 << (n - 1).bit_length() for n in ends]
    assert sum(rounded) > 1.36 * sum(sizes) and sum(blocks) < 1.03 * sum(sizes)
    assert max(blocks) == max(rounded)
    taken = sorted((block, at, at + size) for (block, at), size in zip(places, sizes, strict=True))
    assert all(a[0] < b[0] or a[2] <= b[1] for a, b in pairwise(taken))  # none lies on another
    assert all(at % 64 == 0 and end <= ends[block] for block, at, end in taken)
    assert rooms([]) == ([], [0])


def test_asleep_the_gradients_take_no_memory_and_come_back_as_zeros() -> None:
    gradients, main = torch.full((8,), 3.0), torch.arange(4.0).requires_grad_()
    view, state = gradients[2:6], {"step": torch.ones(()), "exp_avg": torch.full((4,), 2.0)}
    buffer, scale = SimpleNamespace(grad_data=gradients), torch.full((1,), 0.5)
    optimizer = SimpleNamespace(state={main: state}, _scales={main: {"exp_avg": scale}})
    each = SimpleNamespace(shard_fp32_from_float16_groups=[[main]], optimizer=optimizer)
    sleeper = Sleeper(
        [SimpleNamespace(buffers=[buffer], expert_parallel_buffers=[])],
        SimpleNamespace(chained_optimizers=[each], zero_grad=lambda: None),
    )
    main.grad = torch.ones(4)
    places = main.data_ptr(), state["exp_avg"].data_ptr(), scale.data_ptr()
    for _ in range(2):  # the host's memory is taken once
        sleeper.sleep()
        sleeper.sleep()
        assert main.grad is None
        assert gradients.untyped_storage().nbytes() == 0 == len([p for p in places if p == main.data_ptr()])
        assert scale.data_ptr() == sleeper.kept[id(scale)].data_ptr() and scale.item() == 0.5
        held = main.data_ptr()
        assert not sleeper.kept[id(main)].requires_grad  # no graph that grows from step to step
        assert main.tolist() == [0, 1, 2, 3] and state["exp_avg"].tolist() == [2.0] * 4  # a checkpoint reads them
        sleeper.wake()
        sleeper.wake()
        assert gradients.tolist() == [0.0] * 8 and view.tolist() == [0.0] * 4
        assert main.tolist() == [0, 1, 2, 3] and held == sleeper.kept[id(main)].data_ptr() != main.data_ptr()
    sleeper.sleep()
    host = main.data_ptr()
    for _ in range(2):
        sleeper.retire()  # another stage's optimiser takes the gradients, and nothing else has to be here
        assert gradients.tolist() == [0.0] * 8 and main.data_ptr() == host and not sleeper.kept


@pytest.mark.parametrize(
    ("actor", "dtype", "words"),
    [
        (dict(gradients="bfloat16"), "float32", "for weights in bfloat16"),
        (dict(moments="bfloat16"), "float32", "for weights in bfloat16"),
        (dict(megatron={"overlap_param_gather": True}), "float32", "overlaps nothing without overlap_grad_reduce"),
        (dict(megatron={"bucket_size": 1000}), "float32", "bucket_size does nothing without overlap_grad_reduce"),
        (dict(moments="bfloat16"), "bfloat16", "needs Transformer Engine's optimiser, and the run is without a GPU"),
        (dict(optimizer_on_host=0.5), "bfloat16", "the run is without a GPU"),
        (dict(fp8_weights=True), "bfloat16", "needs actor.fp8=tensorwise or blockwise"),
        (dict(fp8_weights=True, fp8="delayed"), "bfloat16", "it is delayed: set one of them"),
        (
            dict(fp8_weights=True, fp8="blockwise", freeze=["*norm*"]),
            "bfloat16",
            "does not go with actor.freeze: leave",
        ),
        (
            dict(fp8_weights=True, fp8="tensorwise", lora=LoRAConfig(rank=4)),
            "bfloat16",
            "with actor.lora.rank=4: leave",
        ),
        (dict(recompute_modules=["mlp"]), "float32", "without actor.recompute=selective"),
        (dict(recompute="selective", recompute_modules=["mpl"]), "float32", "has 'mpl'"),
        (dict(recompute="selective", recompute_modules=[]), "float32", "computes nothing anew"),
        (dict(recompute="selective", recompute_modules=["layernorm"]), "bfloat16", "needs Transformer Engine's layers"),
        (dict(recompute_layers=2), "float32", "actor.recompute_layers=2 does nothing"),
        (dict(recompute="selective", recompute_method="block"), "float32", "actor.recompute_method=block does nothing"),
    ],
)
def test_sentences(actor: dict, dtype: str, words: str) -> None:
    (said,) = check_memory(ActorConfig(**actor), dtype)
    assert words in said


def test_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "gpus", lambda: (80 << 30,))
    monkeypatch.setattr(machine, "elsewhere", lambda: True)
    for actor in (dict(moments="bfloat16"), dict(optimizer_on_host=0.5), dict(gradients="bfloat16")):
        assert check_memory(ActorConfig(**actor), "bfloat16") == []
    (said,) = check_memory(ActorConfig(moments="float16", optimizer_on_host=0.5), "bfloat16")
    assert "set one of them back" in said
    (said,) = check_memory(ActorConfig(optimizer_on_host=0.5), "float32")
    assert "in float32" in said
