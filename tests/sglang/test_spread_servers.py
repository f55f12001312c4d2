"""A run with an SGLang server whose two workers are on machines of their own."""

import json
import time
from pathlib import Path

import psutil
import pytest

from tests.conftest import PATIENCE
from tests.runs.gate import HELD
from tests.several_nodes import start_on
from tests.sglang.test_far_servers import SMALL

SPREAD = ["rollout.sglang.tensor_parallel=2", "rollout.sglang.nodes=2", "run.steps=8", *HELD]


def test_a_server_on_two_nodes_one_of_whose_workers_dies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The workers share every matrix over the network; when one is gone, the server is started again on both nodes."""
    monkeypatch.setenv("GATE", str(tmp_path))
    gate = tmp_path / "closed-4"
    gate.touch()
    nodes = start_on(3, tmp_path, "train", "quickstart", "--rollout-nodes", "2", *SMALL, *SPREAD)
    metrics = tmp_path / "runs/quickstart/metrics.jsonl"
    deadline = time.monotonic() + PATIENCE
    while not (metrics.exists() and '"stage": "rl"' in metrics.read_text()):
        assert nodes[0].poll() is None and time.monotonic() < deadline, (tmp_path / "node0.log").read_text()
        time.sleep(0.05)
    family = psutil.Process(nodes[2].pid).children(recursive=True)
    [worker] = [process for process in family if "sglang::scheduler_TP1" in " ".join(process.cmdline())]
    worker.kill()
    gate.unlink()
    codes = [node.wait(timeout=PATIENCE) for node in nodes]
    logs = "".join(path.read_text() for path in sorted(tmp_path.glob("node*.log")))
    assert codes == [0, 0, 0], logs
    assert logs.count("sglang0 is restarted: ") == 1
    run = tmp_path / "runs/quickstart"
    assert {"sglang0.log", "sglang0-1.log"} <= {p.name for p in (run / "logs/1").iterdir()}
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    rows = [row for row in rows if row["stage"] == "rl"]
    assert [row["weight_version"] for row in rows] == list(range(2, 10))
    assert all(row["swap_bytes"] > 1e6 and row["max_logprob_gap"] < 1e-4 for row in rows)
