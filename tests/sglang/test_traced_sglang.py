"""Layouts learnt from real SGLang models, against the table of them and against SGLang's own loading."""

import random
from collections.abc import Callable
from pathlib import Path

import pytest

from megatron_rl.rollout.sglang.servers.process import environment
from tests.sglang.models import EXPERTS, MODELS, write_model

RANKS = Path(__file__).parent / "traced_ranks.py"


@pytest.mark.parametrize(
    ("tensor", "expert", "pipeline"), [(1, 1, 1), (2, 1, 1), (2, 2, 1), (1, 1, 2)], ids=["one", "tp2", "tp2ep2", "pp2"]
)
def test_what_sglang_loads_is_learnt_and_pulled(
    run_ranks: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    tensor: int,
    expert: int,
    pipeline: int,
) -> None:
    draw, workers = random.Random(f"{tensor} {expert} {pipeline}"), tensor * pipeline
    for name in EXPERTS if expert > 1 else MODELS:
        write_model(tmp_path / name, name, draw)
    for key, value in environment(threads=1, workers=workers, key=None).items():
        monkeypatch.setenv(key, value)
    run_ranks(RANKS, workers, tmp_path, tensor, expert, pipeline)
