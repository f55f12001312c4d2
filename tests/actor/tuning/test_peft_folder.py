"""Megatron's fused matrices taken apart: the rows of B, at every number of tensor-parallel ranks."""

import pytest
import torch

from megatron_rl.actor.tuning.names import Target, targets
from megatron_rl.actor.tuning.peft_folder import joined
from megatron_rl.resharding.families.table import Kind
from tests.actor.models import QWEN3

GROUPS, RANK = 2, 3


def by_hand(target: Target, whole: dict[str, torch.Tensor]) -> torch.Tensor:
    """B in Megatron's order: [q, k, v] of each group; gate over up is cut apart before."""
    parts = list(whole.values())
    if target.kind is not Kind.QKV:
        return parts[0]
    q, k, v = (p.view(GROUPS, -1, RANK) for p in parts)
    return torch.cat([q, k, v], 1).flatten(0, 1)


@pytest.mark.parametrize("ways", [1, 2, 4])  # 4: more than there are groups
def test_rows_of_b_find_their_matrices(ways: int) -> None:
    for target in targets(QWEN3, ["linear_*"])[:4]:
        whole = {part: torch.randn(spec.shape[0], RANK) for part, spec in target.parts.items()}
        a = torch.randn(RANK, next(iter(target.parts.values())).shape[1])
        if target.kind is Kind.COLUMN:  # every rank has its gate over its up
            cuts = [part.chunk(ways) for part in whole.values()]
            pairs = [(a, torch.cat([cut[i] for cut in cuts])) for i in range(ways)]
        elif target.kind is Kind.ROW:
            pairs = [(part, by_hand(target, whole)) for part in a.chunk(ways, 1)]
        else:
            pairs = [(a, b.clone()) for b in by_hand(target, whole).chunk(ways)]
        found = joined(target, pairs)
        assert found.keys() == target.parts.keys()
        for part, (down, up) in found.items():
            assert torch.equal(down, a) and torch.equal(up, whole[part]), part
