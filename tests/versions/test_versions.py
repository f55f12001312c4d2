"""The two Megatron-Cores of constraints.txt, on one Python: the same steps, and checkpoints continued by the other."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tests.actor.models import write_model

RANKS = Path(__file__).parents[1] / "actor" / "training_ranks.py"
PYTHONPATH = os.environ.get("PYTHONPATH", "").split(os.pathsep)
OWN = os.pathsep.join(folder for folder in PYTHONPATH if not (Path(folder) / "megatron").is_dir())
WAYS = {"first": os.pathsep.join(PYTHONPATH), "own": OWN}  # what ranks import: the folder's Megatron-Core, Python's own
CASES = {
    "dense": ("qwen3", "bfloat16", dict(tensor_parallel=2)),
    "mixture": ("qwen3_moe", "float32", dict(data_parallel=2, expert_parallel=2)),
}

pytestmark = pytest.mark.skipif(len(set(WAYS.values())) == 1, reason="run by `make test-megatron`")


def asked(path: str) -> str:
    """Which Megatron-Core a process with this PYTHONPATH imports."""
    command = [sys.executable, "-c", "from megatron.core import __version__; print(__version__)"]
    env = os.environ | {"PYTHONPATH": path}
    return subprocess.run(command, env=env, check=True, capture_output=True, text=True).stdout


@pytest.fixture(scope="module")
def results(run_ranks: Callable[..., None], tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[dict]]:
    """Of each case, way and rank: "way/case" in one go, saved at step 2, "way/case-continued" by the other."""
    out = tmp_path_factory.mktemp("versions")
    found = {}
    for model in {model for model, _, _ in CASES.values()}:
        write_model(model, out / model)
    assert len({asked(path) for path in WAYS.values()}) == 2
    for continued in (False, True):
        for way, path in WAYS.items():
            writer = next(other for other in WAYS if other != way) if continued else way
            jobs = [
                {"name": case + "-continued" * continued, "model": str(out / model), "actor": actor, "dtype": dtype}
                | {"folder": str(out / writer / case), "steps": 4, "kl": 0.0}
                | {"load": "step-2" if continued else None, "save": None if continued else 2}
                for case, (model, dtype, actor) in CASES.items()
            ]
            (out / "jobs.json").write_text(json.dumps(jobs))
            (out / way).mkdir(exist_ok=True)
            with pytest.MonkeyPatch.context() as patch:
                patch.setenv("PYTHONPATH", path)
                run_ranks(RANKS, 2, out / "jobs.json", out / way)
            for name in (str(job["name"]) for job in jobs):
                files = [out / way / f"{name}-{rank}.pt" for rank in range(2)]
                found[f"{way}/{name}"] = [torch.load(file, weights_only=False) for file in files]
    return found


def same(some: list[dict], others: list[dict]) -> bool:
    """Every weight of both ranks to the last bit."""
    return all(
        torch.equal(weight, b["weights"][name])
        for a, b in zip(some, others, strict=True)
        for name, weight in a["weights"].items()
    )


@pytest.mark.parametrize("case", CASES)
def test_steps_are_the_same(case: str, results: dict[str, list[dict]]) -> None:
    first, own = results[f"first/{case}"], results[f"own/{case}"]
    assert [r["losses"] for r in first] == [r["losses"] for r in own]
    assert same(first, own)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("case", CASES)
def test_a_checkpoint_is_continued_by_the_other(case: str, way: str, results: dict[str, list[dict]]) -> None:
    whole, continued = results[f"first/{case}"], results[f"{way}/{case}-continued"]
    assert [r["losses"][2:] for r in whole] == [r["losses"] for r in continued]
    assert same(whole, continued)
