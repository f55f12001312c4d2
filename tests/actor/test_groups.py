"""The trainer's own groups."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from megatron_rl.system import machine


@pytest.mark.skipif(bool(machine.gpus()), reason="NCCL chooses its interfaces itself")
def test_ranks_of_one_machine_listen_on_loopback_only(run_ranks: Callable[..., None], tmp_path: Path) -> None:
    run_ranks(Path(__file__).parent / "listening_ranks.py", 2, tmp_path)
    assert {(tmp_path / f"rank{rank}").read_text() for rank in range(2)} == {"127.0.0.1"}


def test_each_share_is_made_and_sent_by_rank_0_once(run_ranks: Callable[..., None], tmp_path: Path) -> None:
    run_ranks(Path(__file__).parent / "scatter_ranks.py", 4, tmp_path)
    pickled = [json.loads((tmp_path / f"rank{rank}").read_text()) for rank in range(4)]
    assert pickled == [[[0, 1], [0, 1], [0, 1, 2], [0]], *[[[]] * 4] * 3]
