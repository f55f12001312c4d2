"""A run on three machines, as Slurm would start it: one trains, two generate, one of these is lost on the way."""

import json
import time
from pathlib import Path

from tests.conftest import PATIENCE
from tests.several_nodes import start_on

SMALL = [
    *("sft.steps=4", "run.steps=4", "run.save_every=2", "evaluation.prompts=8", "evaluation.greedy=false"),
    *("rollout.prompts_per_step=4", "rollout.group_size=4", "rollout.engines=2", "actor.tensor_parallel=1"),
    *("tracking.wandb=off", "tracking.tensorboard=false", "--rollout-nodes", "2"),
]


def test_a_node_that_generates_is_lost_and_the_run_goes_on(tmp_path: Path) -> None:
    nodes = start_on(3, tmp_path, "train", "quickstart", *SMALL)
    metrics = tmp_path / "runs/quickstart/metrics.jsonl"
    deadline = time.monotonic() + PATIENCE
    while not metrics.exists() or '"stage": "rl", "step": 1,' not in metrics.read_text():
        said = (tmp_path / "node0.log").read_text()
        assert nodes[0].poll() is None and time.monotonic() < deadline, said
        time.sleep(0.05)
    nodes[2].kill()
    codes = [node.wait(timeout=PATIENCE) for node in nodes]
    said = (tmp_path / "node0.log").read_text()
    assert codes == [0, 0, -9], said
    assert "1 trainer rank, 2 engines, 1 reward worker on 3 nodes" in said
    assert "warning: node 2 is lost" in said
    rows = [json.loads(line) for line in metrics.read_text().splitlines()]
    steps = [row for row in rows if row["stage"] == "rl"]
    assert [row["step"] for row in steps] == [1, 2, 3, 4]
    assert [row["weight_version"] for row in steps] == [2, 3, 4, 5]
    assert len({row["swap_bytes"] for row in steps[:1] + steps[-1:]}) == 2  # to two engines, then to one
    logs = {path.name for path in (tmp_path / "runs/quickstart/logs/1").iterdir()}
    assert {"rank0.log", "engine0.log", "engine1.log"} <= logs and "rank1.log" not in logs
    assert sorted(path.name for path in (tmp_path / "runs").iterdir()) == ["latest", "quickstart"]
