"""Jobs of one node on a real cluster: to the end, stopped and continued, refused, cancelled."""

import contextlib
import json
from pathlib import Path

import pytest

from tests.slurm.cluster import Cluster
from tests.slurm.conftest import HELD, SMALL, Site

STOPS = "SIGUSR1: the run stops at the end of this step"


@pytest.fixture(scope="module")
def whole(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> tuple[Site, int]:
    """A run that nothing interrupts, and its job."""
    site = Site(cluster, tmp_path_factory.mktemp("whole"))
    job = site.train("quickstart", *SMALL, *HELD)
    cluster.wait(job, "COMPLETED")
    return site, job


def test_a_run_to_its_end(whole: tuple[Site, int]) -> None:
    site, job = whole
    found, said = site.cluster.job(job), site.cluster.output(job)
    assert (found["ExitCode"], found["Restarts"]) == ("0:0", "0")
    assert "quickstart: nothing is wrong." in said and "after RL" in said
    assert [row["step"] for row in site.metrics("held") if row["stage"] == "rl"] == [1, 2, 3, 4]
    assert (site.folder / "runs" / "latest").resolve() == site.folder / "runs" / "held"
    site.cluster.nothing_left()


def test_stopped_by_its_time_limit_and_by_preemption_it_ends_as_if_nothing_had_been(
    whole: tuple[Site, int], site: Site
) -> None:
    cluster = site.cluster
    site.close(1)
    site.close(2)
    job = site.train("quickstart", *SMALL, *HELD, options=("--signal=B:USR1@60",))
    site.waits(job, 1)
    ran = cluster.run("squeue", "-h", "-j", str(job), "-O", "TimeUsed").stdout.split(":")
    cluster.run("scontrol", "update", f"jobid={job}", f"TimeLimit={int(ran[-2]) + 2}")
    cluster.says(job, STOPS)
    site.open(1)
    cluster.requeued(job, 1)
    cluster.run("scontrol", "update", f"jobid={job}", "TimeLimit=60")

    site.waits(job, 2)
    urgent = cluster.sbatch("--partition=high", "--nodes=2", "--exclusive", "--output=/dev/null", "--wrap", "sleep 1")
    cluster.says(job, STOPS, times=2)
    site.open(2)
    cluster.requeued(job, 2)
    cluster.wait(urgent, "COMPLETED")
    found, said = cluster.wait(job, "COMPLETED"), cluster.output(job)
    assert (found["ExitCode"], found["Restarts"]) == ("0:0", "2")
    assert site.attempts("held") == [138, 138, 0]
    assert said.count(f"exit code 138: job {job} is requeued") == 2
    assert "attempt 3 on node" in said
    assert site.metrics("held") == whole[0].metrics("held")
    completions = [(s.folder / "runs/held/completions.jsonl").read_text() for s in (site, whole[0])]
    assert completions[0] == completions[1]


def test_where_requeueing_is_forbidden_the_next_of_a_chain_goes_on(whole: tuple[Site, int], site: Site) -> None:
    """The first is stopped, the second comes to the end, and the third finds nothing to do."""
    cluster = site.cluster
    site.close(1)
    chain = ("--dependency=singleton", "--job-name=chain", "--no-requeue")
    first, second, third = (site.train("quickstart", *SMALL, *HELD, options=chain) for _ in range(3))
    site.waits(first, 1)
    assert cluster.job(second)["JobState"] == cluster.job(third)["JobState"] == "PENDING"
    cluster.run("scancel", "--batch", "--signal=USR1", str(first))
    cluster.says(first, STOPS)
    site.open(1)
    assert cluster.wait(first, "FAILED")["ExitCode"] == "138:0"
    for job in (second, third):
        assert cluster.wait(job, "COMPLETED")["Restarts"] == "0"
    assert "is complete: 4 steps" in cluster.output(third)
    assert site.attempts("held") == [138, 0]
    assert site.metrics("held") == whole[0].metrics("held")


def test_a_recipe_that_is_wrong_ends_the_job_before_there_is_a_step(site: Site) -> None:
    job = site.train("quickstart", "run.steps=many")
    assert site.cluster.wait(job, "FAILED")["ExitCode"] == "2:0"
    assert "quickstart: 1 problem" in site.cluster.output(job) and "run.steps" in site.cluster.output(job)
    steps = site.cluster.run("sacct", "-n", "-X", "-j", str(job), "-o", "State").stdout.split()
    assert steps == ["FAILED"]
    assert f"{job}.0" not in site.cluster.run("sacct", "-n", "-j", str(job), "-o", "JobID").stdout


def test_without_a_recipe_or_site_it_says_what_is_missing(site: Site) -> None:
    (site.folder / "elsewhere").mkdir()
    nothing = site.train()
    elsewhere = site.cluster.sbatch(
        f"{site.folder}/slurm/train.sbatch", "quickstart", env=site.env, cwd=site.folder / "elsewhere"
    )
    for job, expected in ((nothing, "usage: sbatch"), (elsewhere, "slurm/site.sh")):
        assert site.cluster.wait(job, "FAILED")["ExitCode"] == "2:0"
        assert expected in site.cluster.output(job)


@pytest.mark.parametrize(
    ("option", "expected"),
    [("--account=nobody", "Invalid account"), ("--partition=nowhere", "invalid partition")],
)
def test_slurm_itself_refuses_what_it_does_not_have(site: Site, option: str, expected: str) -> None:
    done = site.cluster.run(
        "sbatch", option, "slurm/train.sbatch", "quickstart", check=False, env=site.env, cwd=site.folder
    )
    assert done.returncode == 1 and expected in done.stderr


def test_scancel_leaves_nothing(site: Site) -> None:
    """Held up, the run cannot end by itself: Slurm kills every process."""
    cluster = site.cluster
    site.close(1)
    job = site.train("quickstart", *SMALL, *HELD)
    site.waits(job, 1)
    node = cluster.job(job)["NodeList"]
    assert len(cluster.processes(node)) > 5
    cluster.run("scancel", str(job))
    assert cluster.wait(job, "CANCELLED")["Restarts"] == "0"
    cluster.until(lambda: not cluster.processes(node), "processes are left")
    cluster.nothing_left(node)


def test_an_array_trains_each_seed_and_each_line_of_a_file(site: Site) -> None:
    short = [*SMALL, "sft.steps=1", "run.steps=1", "actor.tensor_parallel=1"]
    (site.folder / "grid.txt").write_text("algorithm.kl_coef=0\nalgorithm.kl_coef=0.1 run.seed=7\n")
    seeds = site.train("quickstart", *short, script="slurm/sweep.sbatch", options=("--array=3",))
    lines = site.train(
        "@grid.txt", "quickstart", "run.name=grid", *short, script="slurm/sweep.sbatch", options=("--array=2",)
    )
    beyond = site.train("@grid.txt", "quickstart", script="slurm/sweep.sbatch", options=("--array=5",))
    for job in (seeds, lines):
        site.cluster.wait(job, "COMPLETED")
    chosen = {}
    for name in ("quickstart-3", "grid-2"):
        config = json.loads((site.folder / "runs" / name / "manifest.json").read_text())["config"]
        chosen[name] = (config["run"]["seed"], config["algorithm"]["kl_coef"])
    assert chosen == {"quickstart-3": (3, 0.04), "grid-2": (7, 0.1)}
    site.cluster.wait(beyond, "FAILED")
    assert "grid.txt has no line 5" in next(site.folder.glob(f"*-{beyond}_5.out")).read_text()


def test_what_was_trained_is_evaluated_and_converted(whole: tuple[Site, int]) -> None:
    site, _ = whole
    options = ("--limit", "4", "--max-new-tokens", "8", "--out", "evaluated")
    evaluation = site.train("runs/held", "false_belief", *options, script="slurm/eval.sbatch")
    source = next((site.folder / "runs" / "held" / "checkpoints").glob("step-*"))
    conversion = site.train("megatron-to-hf", str(source), "exported", script="slurm/convert.sbatch")
    for job in (evaluation, conversion):
        site.cluster.wait(job, "COMPLETED")
    assert (site.folder / "exported" / "config.json").exists()
    assert list((site.folder / "evaluated").iterdir())


def test_the_cluster_leaves_nothing() -> None:
    """One of its own, which a test that fails ends as well."""
    with contextlib.suppress(ZeroDivisionError), Cluster(1) as cluster:
        daemons = [popen.pid for popen in cluster.daemons.values()]
        assert all(Path(f"/proc/{pid}").exists() for pid in daemons)
        raise ZeroDivisionError
    assert not any(Path(f"/proc/{pid}").exists() for pid in daemons)
    assert not cluster.folder.exists()
