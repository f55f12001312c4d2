"""A run whose SGLang server is on another machine than its trainer."""

import json
from pathlib import Path

from tests.conftest import PATIENCE
from tests.several_nodes import start_on

SMALL = [
    *("sft.steps=4", "run.steps=2", "evaluation.prompts=4", "evaluation.greedy=false", "rollout.engine=sglang"),
    *("rollout.prompts_per_step=2", "rollout.group_size=4", "tracking.wandb=off", "tracking.tensorboard=false"),
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
