"""Fifty swaps from real sharded actors that train in between: the engine's log-probs are the actor's."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from transformers import PreTrainedModel

from megatron_rl.rollout.sglang.pool import SGLangEngines

RANKS = Path(__file__).parent / "swap_ranks.py"
SWAPS = 50
EXACT = 2e-5  # nats
JOBS = {  # by the engine's model and its workers
    ("qwen3", 1): {
        "tp1": dict(data_parallel=2),
        "tp2": dict(tensor_parallel=2),
        "pp2": dict(pipeline_parallel=2),
    },
    ("qwen3", 2): {
        "two-workers-tp2": dict(tensor_parallel=2),
        "two-workers-pp2": dict(pipeline_parallel=2),
    },
    ("qwen3_moe", 1): {
        "moe-tp1": dict(data_parallel=2),
        "moe-tp2": dict(tensor_parallel=2, sequence_parallel=True),
        "moe-pp2": dict(pipeline_parallel=2),
        "moe-ep2": dict(data_parallel=2, expert_parallel=2),
    },
}


@pytest.mark.parametrize(("model", "workers"), list(JOBS))
def test_every_swap_arrives(
    model: str,
    workers: int,
    start: Callable[..., SGLangEngines],
    model_folder: Callable[[str], tuple[Path, PreTrainedModel]],
    run_ranks: Callable[..., None],
    tmp_path: Path,
) -> None:
    folder, _ = model_folder(model)
    served = start(model, tensor_parallel=workers)
    jobs = [
        {"name": name, "model": str(folder), "actor": actor, "swaps": SWAPS, "workers": workers}
        for name, actor in JOBS[model, workers].items()
    ]
    (tmp_path / "jobs.json").write_text(json.dumps(jobs))
    run_ranks(RANKS, 2, tmp_path / "jobs.json", served.replicas[0].url, tmp_path)
    for job in jobs:
        result = json.loads((tmp_path / f"{job['name']}.json").read_text())
        assert len(result["gaps"]) == job["swaps"]
        assert result["drifted"] == 0
        assert min(result["moved"]) > 0  # every parameter changed before every swap
        assert 0 < max(result["gaps"]) < EXACT, (job["name"], result["gaps"])
