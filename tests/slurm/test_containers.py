"""Jobs in a container: a command before ours (Charliecloud's, which needs no daemon and no rights), options of srun."""

import getpass
import os
import shutil
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.slurm.conftest import HELD, SMALL, Site

# Written by the reward, in the reward's process: from which root it was seen.
SEEN = """
def seen(sample: Sample) -> float:
    where = Path("/image").read_text().strip() if Path("/image").exists() else "outside"
    Path(f"seen-from-{where}-{os.environ['SLURM_NODEID']}").touch()
    return 0.0
"""
_BOUND = ("passwd", "group", "hosts", "resolv.conf")  # by ch-run, each over a file that is there


def image(folder: Path) -> list[str]:
    """Make a root of its own, into which this system's folders are mounted; how a command is run there."""
    (folder / "etc").mkdir(parents=True)
    (folder / "image").write_text("inside\n")
    for name in _BOUND:
        (folder / "etc" / name).touch()
    mounted = []
    for path in sorted(Path("/").iterdir()):
        here = folder / path.name
        if path.is_symlink():
            here.symlink_to(os.readlink(path))
        elif path.is_dir() and not here.exists():
            here.mkdir()
            mounted += [] if path.name in ("dev", "proc", "sys", "tmp") else [f"--bind={path}:{path}"]  # ch-run's own
    return ["ch-run", *mounted, '--cd="$PWD"', str(folder), "--"]


def use(site: Site, **lists: list[str]) -> None:
    """A site file of the jobs' own: the one that users edit, and these lists."""
    changed = "".join(f"{name}=({' '.join(words)})\n" for name, words in lists.items())
    (site.folder / "site.sh").write_text(f"source {ROOT}/slurm/site.sh\n{changed}")
    site.env |= {"SITE": str(site.folder / "site.sh"), "USER": getpass.getuser()}


def test_two_nodes_in_containers_are_stopped_requeued_and_go_on(site: Site) -> None:
    """The check, every rank and every reward worker are inside; a signal reaches the run there, and nothing is left."""
    if shutil.which("ch-run") is None:
        pytest.skip("Charliecloud is not installed: `make test-slurm` installs it where it may")
    cluster = site.cluster
    use(site, INSIDE=image(site.folder / "root"))
    with (site.folder / "gate.py").open("a") as gate:
        gate.write(SEEN)
    site.close(1)
    job = site.train("quickstart", *SMALL, *HELD, "rewards.terms.gate.seen=1", options=("--nodes=2",))
    site.waits(job, 1)
    for node in cluster.nodes:
        [train] = [p for p in cluster.processes(node) if p.cmdline()[1:2] and "train" in p.cmdline()[2:3]]
        members = [train, *train.children(recursive=True)]
        assert {Path(f"/proc/{p.pid}/root/image").exists() for p in members} == {True}
    cluster.run("scancel", "--batch", "--signal=USR1", str(job))
    cluster.says(job, "SIGUSR1: the run stops at the end of this step")
    site.open(1)
    cluster.requeued(job, 1)
    cluster.wait(job, "COMPLETED")
    assert site.attempts("held") == [138, 0]
    assert "quickstart: nothing is wrong." in cluster.output(job)
    assert [row["step"] for row in site.metrics("held") if row["stage"] == "rl"] == [1, 2, 3, 4]
    assert [path.name for path in site.folder.glob("seen-from-*")] == ["seen-from-inside-0"]
    cluster.nothing_left(*cluster.nodes)


def test_options_of_a_container_reach_srun_alone_and_train_checks_in_the_step(site: Site) -> None:
    """As Pyxis' do: nothing is checked outside, where there may be no megatron-rl."""
    use(site, CONTAINER=["--export=ALL,IN_A_CONTAINER=yes", "--output=in-the-step"])
    job = site.train("quickstart", "run.steps=many")
    assert site.cluster.wait(job, "FAILED")["ExitCode"] == "2:0"
    assert "quickstart: 1 problem" not in site.cluster.output(job)
    assert "quickstart: 1 problem" in (site.folder / "in-the-step").read_text()
    assert f"{job}.0" in site.cluster.run("sacct", "-n", "-j", str(job), "-o", "JobID").stdout
