"""A run with an SGLang server whose two workers are on machines of their own."""

import json
from pathlib import Path

from tests.conftest import PATIENCE
from tests.several_nodes import start_on
from tests.sglang.test_far_servers import SMALL

SPREAD = ["rollout.sglang.tensor_parallel=2", "rollout.sglang.nodes=2"]


def test_a_server_on_two_nodes(tmp_path: Path) -> None:
    """The workers share every matrix over the network, and each takes its own weights from the trainer's node."""
    nodes = start_on(3, tmp_path, "train", "quickstart", "--rollout-nodes", "2", *SMALL, *SPREAD)
    codes = [node.wait(timeout=PATIENCE) for node in nodes]
    logs = "".join(path.read_text() for path in sorted(tmp_path.glob("node*.log")))
    assert codes == [0, 0, 0], logs
    run = tmp_path / "runs/quickstart"
    assert {"sglang0.log", "sglang0-1.log"} <= {p.name for p in (run / "logs/1").iterdir()}
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [row["weight_version"] for row in rows if row["stage"] == "rl"] == [2, 3]
    assert all(row["swap_bytes"] > 1e6 for row in rows if row["stage"] == "rl")
