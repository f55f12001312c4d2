"""A run on three machines, as Slurm would start it: one trains, two generate, one of these is lost on the way."""

import json
import subprocess
import time
from pathlib import Path

import pytest

from tests.conftest import PATIENCE
from tests.runs.gate import HELD
from tests.several_nodes import start_on

SMALL = [
    *("sft.steps=4", "run.steps=4", "run.save_every=2", "evaluation.prompts=8", "evaluation.greedy=false"),
    *("rollout.prompts_per_step=4", "rollout.group_size=4", "rollout.engines=2", "actor.tensor_parallel=1"),
    *("tracking.wandb=off", "tracking.tensorboard=false", "--rollout-nodes", "2"),
    "launch.meet_seconds=3600",
    *HELD,
]


def until(nodes: list[subprocess.Popen[str]], file: Path, text: str) -> None:
    """Wait for a text in a file, while the first node runs."""
    deadline = time.monotonic() + PATIENCE
    while not file.exists() or text not in file.read_text():
        assert nodes[0].poll() is None and time.monotonic() < deadline, text
        time.sleep(0.05)


def test_a_node_that_generates_is_lost_and_the_run_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GATE", str(tmp_path))
    gate, said = tmp_path / "closed-2", tmp_path / "node0.log"
    gate.touch()
    nodes = start_on(3, tmp_path, "train", "quickstart", *SMALL)
    metrics = tmp_path / "runs/quickstart/metrics.jsonl"
    until(nodes, metrics, '"stage": "rl", "step": 1,')
    nodes[2].kill()
    until(nodes, said, "warning: node 2 is lost")
    gate.unlink()
    codes = [node.wait(timeout=PATIENCE) for node in nodes]
    assert codes == [0, 0, -9], said.read_text()
    assert "1 trainer rank, 2 engines, 1 reward worker on 3 nodes" in said.read_text()
    rows = [json.loads(line) for line in metrics.read_text().splitlines()]
    steps = [row for row in rows if row["stage"] == "rl"]
    assert [row["step"] for row in steps] == [1, 2, 3, 4]
    assert [row["weight_version"] for row in steps] == [2, 3, 4, 5]
    assert len({row["swap_bytes"] for row in steps[:1] + steps[-1:]}) == 2  # to two engines, then to one
    logs = {path.name for path in (tmp_path / "runs/quickstart/logs/1").iterdir()}
    assert {"rank0.log", "engine0.log", "engine1.log"} <= logs and "rank1.log" not in logs
    assert sorted(path.name for path in (tmp_path / "runs").iterdir()) == ["latest", "quickstart"]
