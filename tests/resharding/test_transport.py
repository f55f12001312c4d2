"""Transports that read the source's memory, behind the interface; messages have a file of their own."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from megatron_rl.resharding.execute import flat
from megatron_rl.resharding.layout import ParallelSizes
from megatron_rl.resharding.megatron import megatron_layout
from megatron_rl.resharding.plan import Plan, make_plan
from megatron_rl.resharding.sglang import EngineSizes, sglang_layout
from megatron_rl.resharding.shared_memory import publish
from megatron_rl.resharding.swap import Landing, merge_hashes
from megatron_rl.resharding.transport import HeldStill, Inbound, InProcess, Outbound, SharedMemory
from megatron_rl.rollout.protocol import SwapError
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
Connect = Callable[[Plan, int, list[Tensors], Tensors], Inbound]


def in_process(plan: Plan, rank: int, held: list[Tensors], wanted: Tensors) -> InProcess:
    sources = {(r, name): flat(t) for r, tensors in enumerate(held) for name, t in tensors.items()}
    copies = [plan.copies[i] for i in plan.copies_to(rank)]
    return InProcess(copies, sources, {name: flat(t) for name, t in wanted.items()})


def shared_memory(plan: Plan, rank: int, held: list[Tensors], wanted: Tensors) -> SharedMemory:
    copies = [plan.copies[i] for i in plan.copies_to(rank)]
    return SharedMemory(copies, [publish(tensors) for tensors in held], {name: flat(t) for name, t in wanted.items()})


@pytest.mark.parametrize("connect", [in_process, shared_memory])
def test_a_swap_is_proved_poisons_and_heals(connect: Connect) -> None:
    """Every stage of the engine, those without the final norm too, is NaN somewhere between swaps."""
    torch.manual_seed(0)
    hf = hf_tensors(CONFIG, tags=False)
    held = megatron_shards(hf, CONFIG, SIZES)
    layout = sglang_layout(CONFIG, ENGINE)
    wanted = [{n: torch.full(shape, -1.0) for n, shape in shard.locals.items()} for shard in layout.ranks]
    plan = make_plan(megatron_layout(CONFIG, SIZES), layout)
    landings = [Landing(plan, r, t, connect(plan, r, held, t)) for r, t in enumerate(wanted)]
    owners: list[Outbound] = [HeldStill(plan, r, tensors) for r, tensors in enumerate(held)]
    hashes = merge_hashes(plan, [owner.push(1) for owner in owners])
    for landing, tensors, expected in zip(landings, wanted, sglang_shards(hf, CONFIG, ENGINE), strict=True):
        landing.poison()
        assert any(t.isnan().any() for t in tensors.values())
        landing.pull(1)
        landing.verify(1, hashes)
        assert any(t.isnan().any() for t in tensors.values())
        landing.commit(1)
        assert tensors.keys() == expected.keys()
        assert all(torch.equal(tensors[name], tensor) for name, tensor in expected.items())
        wrong = hashes.copy()
        wrong[landing.indices[3]] ^= 1
        name = landing.copies[3].tensor
        with pytest.raises(
            SwapError, match=rf"Tensor {name}.* did not arrive in version 1: .*\(1 of \d+ copies differ"
        ):
            landing.verify(1, wrong)
        assert any(t.isnan().any() for t in tensors.values())
        landing.pull(2)
        landing.verify(2, hashes)
        landing.commit(2)
        assert not any(t.isnan().any() for t in tensors.values())
        landing.close()
        with pytest.raises(KeyError):
            landing.pull(3)
        assert landing.version == -1 and any(t.isnan().any() for t in tensors.values())
