"""A run whose SGLang server is on another machine than its trainer."""

import json
import time
from pathlib import Path

import pytest

from tests.conftest import PATIENCE
from tests.runs.gate import HELD
from tests.runs.test_nodes_run import until
from tests.several_nodes import start_on

SMALL = [
    *("sft.steps=4", "run.steps=2", "evaluation.prompts=4", "evaluation.greedy=false", "rollout.engine=sglang"),
    *("rollout.prompts_per_step=2", "rollout.group_size=4", "tracking.wandb=off", "tracking.tensorboard=false"),
    *("launch.meet_seconds=3600", "rollout.sglang.start_seconds=3600"),
]


def test_a_server_on_a_node_of_its_own(tmp_path: Path) -> None:
    """Two ranks on the first node send to the server on the second, over the network where memory is out of reach."""
    nodes = start_on(2, tmp_path, "train", "quickstart", "--rollout-nodes", "1", *SMALL)
    codes = [node.wait(timeout=PATIENCE) for node in nodes]
    logs = "".join(path.read_text() for path in sorted(tmp_path.glob("node*.log")))
    assert codes == [0, 0], logs
    run = tmp_path / "runs/quickstart"
    assert {"keeper.log", "rank0.log", "rank1.log", "sglang0.log"} <= {p.name for p in (run / "logs/1").iterdir()}
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [row["weight_version"] for row in rows if row["stage"] == "rl"] == [2, 3]
    assert all(row["swap_bytes"] > 1e6 for row in rows if row["stage"] == "rl")
    assert (run / "hf/model.safetensors").exists()


def test_a_node_with_a_server_is_lost_and_the_others_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """While nothing is generated: the router must not be left with a server that the next swap finds lost."""
    monkeypatch.setenv("GATE", str(tmp_path))
    gate, said = tmp_path / "closed-2", tmp_path / "node0.log"
    gate.touch()
    more = ["rollout.engines=2", "run.steps=4", "actor.tensor_parallel=1", *HELD]
    nodes = start_on(3, tmp_path, "train", "quickstart", "--rollout-nodes", "2", *SMALL, *more)
    deadline = time.monotonic() + PATIENCE
    while not (tmp_path / "reached-2").exists():  # all completions of the step are there
        assert nodes[0].poll() is None and time.monotonic() < deadline, said.read_text()
        time.sleep(0.05)
    nodes[2].kill()
    until(nodes, said, "warning: node 2 is lost")
    gate.unlink()
    codes = [node.wait(timeout=PATIENCE) for node in nodes]
    assert codes == [0, 0, -9], said.read_text()
    rows = [json.loads(line) for line in (tmp_path / "runs/quickstart/metrics.jsonl").read_text().splitlines()]
    steps = [row for row in rows if row["stage"] == "rl"]
    assert [row["weight_version"] for row in steps] == [2, 3, 4, 5]
    assert "sglang1 is lost: " in said.read_text()
