"""Whole runs of ``megatron-rl`` with a real SGLang server: synchronous, asynchronous, served afterwards."""

import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import psutil
import pytest

from megatron_rl.rollout.sglang.servers.leftovers import mapped_by
from megatron_rl.system.scratch import SCRATCH
from megatron_rl.tracking.run_folder import RunFolder
from tests.conftest import PATIENCE, ROOT, free_port

SMALL = [
    *("sft.steps=8", "run.steps=6", "evaluation.every=0", "evaluation.prompts=12", "tracking.wandb=off"),
    *("rollout.prompts_per_step=4", "rollout.group_size=4", "sft_optimizer.warmup_steps=2"),
    *("rollout.engine=sglang", "rollout.max_running=32", "rollout.sglang.start_seconds=3600"),
]
EXACT = 2e-5  # nats
ENVIRONMENT = os.environ | {"PYTHONPATH": str(ROOT)}
COMMAND = [sys.executable, "-m", "megatron_rl.cli"]


def launch(folder: Path, name: str, *overrides: str) -> subprocess.CompletedProcess[str]:
    """A run to its end, however that is."""
    command = [*COMMAND, "train", "quickstart", f"run.folder={folder}", f"run.name={name}", *SMALL, *overrides]
    return subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, timeout=PATIENCE)


def train(folder: Path, name: str, *overrides: str) -> tuple[RunFolder, list[dict[str, Any]]]:
    """A run that succeeds, and its RL steps."""
    done = launch(folder, name, *overrides)
    assert done.returncode == 0, done.stderr
    run = RunFolder(folder / name)
    rows = [json.loads(line) for line in run.metrics_file.read_text().splitlines()]
    return run, [row for row in rows if row["stage"] == "rl"]


def trained(run: RunFolder) -> list[dict[str, Any]]:
    """The recorded completions but those of evaluations."""
    rows = [json.loads(line) for line in run.completions_file.read_text().splitlines()]
    return [row for row in rows if "evaluation" not in row]


@pytest.fixture(scope="module")
def synchronous(tmp_path_factory: pytest.TempPathFactory) -> tuple[RunFolder, list[dict[str, Any]]]:
    return train(tmp_path_factory.mktemp("runs"), "synchronous")


def test_the_engine_agrees_with_the_actor_at_every_step(
    synchronous: tuple[RunFolder, list[dict[str, Any]]],
) -> None:
    run, steps = synchronous
    assert [row["weight_version"] for row in steps] == [2, 3, 4, 5, 6, 7]
    assert all(0 < row["max_logprob_gap"] < EXACT for row in steps)
    assert all(row["staleness_max"] == 0 for row in steps)
    assert all(row["time/swap_paused"] >= row["time/swap_pull"] > 0 for row in steps)
    completions = trained(run)
    assert all(c["weight_versions"][0][0] == c["step"] and len(c["weight_versions"]) == 1 for c in completions)
    assert (run.export / "model.safetensors").is_file()


def test_one_step_off(tmp_path: Path) -> None:
    _, steps = train(tmp_path, "off", "rollout.staleness=1", "algorithm.correction=truncated")
    # the first rollout is made when it is asked for, every other one while the step before is trained
    assert [row["staleness"] for row in steps] == [0, 1, 1, 1, 1, 1]
    assert all(row["correction_weight"] > 0 for row in steps)
    assert steps[0]["max_logprob_gap"] < EXACT < max(row["max_logprob_gap"] for row in steps)


def test_fully_asynchronous_with_swaps_in_flight(tmp_path: Path) -> None:
    run, steps = train(
        tmp_path, "async", "rollout.staleness=2", "rollout.in_flight=true", "algorithm.correction=truncated"
    )
    assert len(steps) == 6
    assert all(row["staleness_max"] <= 2 for row in steps)
    assert max(row["staleness_max"] for row in steps) >= 1
    completions = trained(run)
    for c in completions:
        versions = [version for version, _ in c["weight_versions"]]
        assert versions == sorted(set(versions))


def test_a_trained_policy_is_served(synchronous: tuple[RunFolder, list[dict[str, Any]]]) -> None:
    run, _ = synchronous
    port = free_port()
    process = subprocess.Popen(
        [*COMMAND, "serve", str(run.path), "--port", str(port)],
        env=ENVIRONMENT | {"MEGATRON_RL_API_KEY": "secret"},
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        said = [process.stdout.readline(), process.stdout.readline()]
        assert said[1].startswith(f"Serving at http://127.0.0.1:{port}/v1, key secret")
        body = {"model": "hf", "prompt": "<bos> Sally puts the ball in the box .", "max_tokens": 5, "temperature": 0}
        url = f"http://127.0.0.1:{port}/v1/completions"
        headers = {"Content-Type": "application/json", "Authorization": "Bearer secret"}
        request = urllib.request.Request(url, json.dumps(body).encode(), headers)
        with urllib.request.urlopen(request, timeout=PATIENCE) as answer:
            content = json.load(answer)
        assert content["usage"]["completion_tokens"] == 5 and content["choices"][0]["text"].strip()
        with pytest.raises(urllib.error.HTTPError, match="401"):
            urllib.request.urlopen(
                urllib.request.Request(url, json.dumps(body).encode(), headers | {"Authorization": ""})
            )
        family = psutil.Process(process.pid).children(recursive=True)
        assert len(family) >= 3
    finally:
        process.send_signal(signal.SIGINT)
        assert process.wait(PATIENCE) == 128 + signal.SIGINT
    assert not psutil.wait_procs(family, timeout=PATIENCE)[1]


def test_an_interrupted_run_leaves_nothing(tmp_path: Path) -> None:
    where = [f"run.folder={tmp_path}", "run.name=stopped"]
    process = subprocess.Popen(
        [*COMMAND, "train", "quickstart", *where, *SMALL, "run.steps=1000"], env=ENVIRONMENT, stdout=subprocess.DEVNULL
    )
    metrics = tmp_path / "stopped" / "metrics.jsonl"
    while not metrics.exists() or '"rl"' not in metrics.read_text():
        assert process.poll() is None
        time.sleep(0.1)
    family = psutil.Process(process.pid).children(recursive=True)
    assert any("sglang" in " ".join(member.cmdline()) for member in family)
    scratch = Path(next(found for member in family if (found := member.environ().get(SCRATCH))))
    shared = {path for member in family for path in mapped_by(member.pid)}
    assert list(scratch.glob("*/sglang0.yaml")) and shared
    process.send_signal(signal.SIGINT)
    assert process.wait(PATIENCE) == 128 + signal.SIGINT
    assert not psutil.wait_procs(family, timeout=PATIENCE)[1]
    assert not scratch.exists() and not any(map(os.path.exists, shared))
