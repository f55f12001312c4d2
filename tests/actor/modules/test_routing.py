"""Routing replay; against transformers it is tested in test_parity."""

from pathlib import Path

import numpy as np
import torch

from megatron_rl.actor.micro_batch import build
from megatron_rl.actor.modules.routing import ReplayedChoice
from megatron_rl.actor.rows import TrainingRow
from tests.actor.models import write_model


def test_the_own_choice_changes_nothing(tmp_path: Path, run_ranks) -> None:
    write_model("qwen3_moe", tmp_path)
    run_ranks(Path(__file__).parent / "routing_ranks.py", 1, tmp_path)


def test_given_experts_are_taken_and_missing_ones_chosen() -> None:
    scores = torch.tensor([[0.1, 0.2, 0.3, 0.4], [0.4, 0.3, 0.2, 0.1]], requires_grad=True)
    replay = ReplayedChoice()

    def topk(scores, k, groups, group_topk):
        return scores.topk(k)

    _, free = replay.get_replay_topk(scores, 2, None, None, topk)
    assert free.tolist() == [[3, 2], [0, 1]]
    replay.experts = torch.tensor([[0, 2], [-1, -1]])
    chosen, experts = replay.get_replay_topk(scores, 2, None, None, topk)
    assert experts.tolist() == [[0, 2], [0, 1]]
    assert torch.equal(chosen, torch.tensor([[0.1, 0.3], [0.4, 0.3]]))
    chosen.sum().backward()
    assert torch.equal(scores.grad, torch.tensor([[1.0, 0.0, 1.0, 0.0], [1.0, 1.0, 0.0, 0.0]]))


def test_every_position_has_its_tokens_experts() -> None:
    """A token's experts are its own number here, so that the two can be compared; padding has none."""
    prompt = np.arange(1, 6)

    def sequence(length: int, first: int, *, given: bool = True, routing: int = 0) -> TrainingRow:
        tokens = np.concatenate([prompt, np.arange(first, first + length)])
        experts = np.repeat(tokens[:-1, None], 3, 1).astype(np.int16)
        experts[:5] += routing
        weight = (np.arange(len(tokens)) >= 5).astype(np.float32)
        return TrainingRow(tokens, {"weight": weight}, prompt=5, experts=experts if given else None)

    sequences = [sequence(4, 100), sequence(1, 200), sequence(7, 300)]
    for options in ({}, {"share_prompts": True}, {"cp_size": 2, "cp_rank": 1}, {"multiple": 4, "at_least": 60}):
        batch = build(sequences, columns=["weight"], **options)
        assert batch.packed.experts.dtype == torch.int16
        tokens = batch.inputs[0].clone()
        tokens[tokens == 0] = -1
        assert torch.equal(batch.packed.experts.long(), tokens[:, None].expand(-1, 3)), options
    assert build(sequences, columns=["weight"], share_prompts=True).inputs.shape[1] == 5 + 3 + 0 + 6
    # a prompt that went to other experts is not the same one
    apart = build([*sequences[:2], sequence(7, 300, routing=1)], columns=["weight"], share_prompts=True)
    assert apart.inputs.shape[1] == (5 + 3 + 0) + (5 + 6)
    mixed = build([sequence(4, 100, given=False), sequences[1]], columns=["weight"])
    assert (mixed.packed.experts == -1).sum() == 8 * 3
    assert build([sequence(4, 100, given=False)], columns=["weight"]).packed.experts is None
