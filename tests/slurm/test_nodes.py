"""Runs on two nodes, each with processes and shared memory of its own: to the end, stopped, a node lost."""

import importlib.util
import json
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.slurm.cluster import Cluster
from tests.slurm.conftest import HELD, SMALL, Site

TWO = ("--nodes=2",)


@pytest.fixture(scope="module")
def whole(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Site:
    """Trained and generated on both nodes, not interrupted."""
    site = Site(cluster, tmp_path_factory.mktemp("nodes"))
    job = site.train("quickstart", *SMALL, *HELD, options=TWO)
    cluster.wait(job, "COMPLETED")
    submitted = cluster.job(job)["SubmitTime"]
    first = json.loads((site.folder / "runs/held/metrics.jsonl").read_text().splitlines()[0])
    print(f"from sbatch ({submitted}) to the first record: {first.get('timestamp')}")
    return site


def test_both_nodes_train(whole: Site) -> None:
    manifest = json.loads((whole.folder / "runs/held/manifest.json").read_text())
    assert [row["step"] for row in whole.metrics("held") if row["stage"] == "rl"] == [1, 2, 3, 4]
    assert manifest["attempts"][0]["ended"]["code"] == 0
    whole.cluster.nothing_left()
    left = [path.name for path in (whole.folder / "runs").iterdir() if path.name.startswith(".held.")]
    assert left == []  # what the nodes met by


def test_one_trains_and_the_other_generates(site: Site) -> None:
    job = site.train("quickstart", "--rollout-nodes", "1", *SMALL, options=TWO)
    site.cluster.wait(job, "COMPLETED")
    assert [row["step"] for row in site.metrics("quickstart") if row["stage"] == "rl"] == [1, 2, 3, 4]
    site.cluster.nothing_left()


def test_stopped_on_two_nodes_it_is_requeued_and_ends_as_if_nothing_had_been(whole: Site, site: Site) -> None:
    cluster = site.cluster
    site.close(1)
    job = site.train("quickstart", *SMALL, *HELD, options=TWO)
    site.waits(job, 1)
    cluster.run("scancel", "--batch", "--signal=USR1", str(job))
    cluster.says(job, "SIGUSR1: the run stops at the end of this step")
    site.open(1)
    cluster.requeued(job, 1)
    cluster.wait(job, "COMPLETED")
    assert site.attempts("held") == [138, 0]
    assert site.metrics("held") == whole.metrics("held")


@pytest.mark.parametrize("what", ["supervisor", "node", "first node"])
def test_a_lost_node_requeues_the_job_which_goes_on(whole: Site, site: Site, what: str) -> None:
    """With a checkpoint of every step, all that is lost is the step that was under way."""
    cluster = site.cluster
    if what != "supervisor" and not cluster.apart:
        pytest.skip("nodes that share process numbers cannot be lost alone: run as root")
    site.close(2)
    job = site.train("quickstart", *SMALL, *HELD, "run.save_every=1", options=TWO)
    site.waits(job, 2)
    lost = cluster.nodes[0 if what == "first node" else 1]
    if what == "supervisor":
        [supervisor] = [p for p in cluster.processes(lost) if p.cmdline()[1:2] and "train" in p.cmdline()[2:3]]
        supervisor.kill()
    else:
        cluster.kill_node(lost)
    site.open(2)
    began = time.monotonic()
    cluster.ended(job, 1)
    print(f"requeued {time.monotonic() - began:.0f} s after the loss")
    if what != "supervisor":
        assert site.attempts("held") == [75 if what == "node" else None]  # the first also keeps the records
        cluster.start_node(lost)  # until which the job waits
    else:
        cluster.requeued(job, 1)  # at once; what Slurm still has to tell a node that was away would end a new attempt
    cluster.wait(job, "COMPLETED")
    assert site.attempts("held")[-1] == 0 and len(site.attempts("held")) == 2
    assert site.metrics("held") == whole.metrics("held")
    cluster.nothing_left()
    assert not list(Path(site.folder, "runs").glob(".held.*"))


@pytest.fixture(scope="module")
def three() -> Iterator[Cluster]:
    """A cluster of three nodes."""
    with Cluster(3) as larger:
        yield larger


@pytest.mark.skipif(importlib.util.find_spec("sglang") is None, reason="SGLang is not installed: make sglang")
def test_one_trains_and_a_real_sglang_server_on_two_others_generates(three: Cluster, tmp_path: Path) -> None:
    """Two ranks send every swap's weights to both workers, each on a node with memory and process numbers of its own.

    The workers are one engine, which shares every matrix over the network.
    """
    site = Site(three, tmp_path)
    spread = ["rollout.sglang.tensor_parallel=2", "rollout.sglang.nodes=2", "rollout.sglang.start_seconds=1200"]
    options = ["run.steps=2", "rollout.engine=sglang", *spread]
    job = site.train("quickstart", "--rollout-nodes", "2", *SMALL, *options, options=("--nodes=3",))
    three.wait(job, "COMPLETED")
    rows = [row for row in site.metrics("quickstart") if row["stage"] == "rl"]
    assert [(row["step"], row["weight_version"]) for row in rows] == [(1, 2), (2, 3)]
    assert all(row["swap_bytes"] > 1e6 and row["max_logprob_gap"] < 1e-4 for row in rows)
    logs = {path.name for path in (site.folder / "runs/quickstart/logs/1").iterdir()}
    assert {"rank0.log", "rank1.log", "sglang0.log", "sglang0-1.log"} <= logs
    assert site.attempts("quickstart") == [0]
    three.nothing_left(*three.nodes)


def test_a_lost_rollout_node_is_done_without(three: Cluster, tmp_path: Path) -> None:
    """Of two nodes that only generate one loses power in the middle of a step, and Slurm takes it for down."""
    if not three.apart:
        pytest.skip("nodes that share process numbers cannot be lost alone: run as root")
    site = Site(three, tmp_path)
    site.env["SBATCH_NO_KILL"] = "set"
    site.close(1)
    options = ["rollout.engines=2", "actor.tensor_parallel=1"]
    job = site.train("quickstart", "--rollout-nodes", "2", *SMALL, *HELD, *options, options=("--nodes=3",))
    site.waits(job, 1)
    three.kill_node("node2")
    three.run("scontrol", "update", "nodename=node2", "state=down", "reason=power")
    site.open(1)
    three.wait(job, "COMPLETED")
    assert [row["step"] for row in site.metrics("held") if row["stage"] == "rl"] == [1, 2, 3, 4]
    assert site.attempts("held") == [0]
    assert three.job(job)["Restarts"] == "0"
    three.nothing_left()
