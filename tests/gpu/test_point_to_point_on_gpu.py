"""The swaps of tests/resharding/test_point_to_point.py over NCCL: the same code and checks, a GPU for each rank."""

from pathlib import Path

import pytest
import torch

from megatron_rl.resharding.layout import ParallelSizes
from tests.resharding.transports.point_to_point_ranks import Round
from tests.resharding.transports.test_point_to_point import SMALL, assert_arrived, assert_poisoned, expected, job, swap

pytestmark = pytest.mark.skipif(torch.cuda.device_count() < 3, reason="needs three GPUs")
TWO = ParallelSizes(tensor=2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_rank_receives_its_copies(tmp_path: Path, dtype: torch.dtype) -> None:
    work = job(dtype, None, TWO, buffer=SMALL, rounds=[Round(1), Round(2)], backend="nccl")
    for outcomes, version in zip(swap(work, tmp_path), (1, 2), strict=True):
        assert_arrived(outcomes, expected(dtype, None), version)


def test_a_wrong_byte_is_named_and_the_next_swap_heals(tmp_path: Path) -> None:
    rounds = [Round(1, {1: "corrupt 2"}), Round(2)]
    spoilt, healed = swap(job(torch.float32, None, TWO, buffer=SMALL, rounds=rounds, backend="nccl"), tmp_path)
    assert "did not arrive in version 1" in spoilt[2]["error"] and "at destination rank 0" in spoilt[1]["error"]
    assert_poisoned(spoilt[2])
    assert_arrived(healed, expected(torch.float32, None), 2)
