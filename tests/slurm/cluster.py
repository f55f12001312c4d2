"""A real Slurm cluster on this machine: munge, MariaDB, slurmdbd, slurmctld and one slurmd a node, all in one folder.

    with Cluster(nodes=2) as cluster:
        job = cluster.sbatch("--nodes=2", "--wrap", "srun hostname")
        cluster.wait(job, "COMPLETED")

Root's nodes are as far apart as machines are: each has process numbers and a /dev/shm of its own, and nothing of it is
left when its first process is killed. Other users' nodes share what the machine has. All daemons end with the cluster.
"""

import contextlib
import getpass
import os
import random
import re
import secrets
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import TracebackType

import psutil

from megatron_rl.system.machine import free_low_port
from tests.conftest import PATIENCE

DAEMONS = ("munged", "mariadbd", "mariadb-install-db", "slurmdbd", "slurmctld", "slurmd", "sbatch")
ENDED = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "PREEMPTED", "OUT_OF_MEMORY", "BOOT_FAIL")
SYSTEM_PATH = f"{os.environ['PATH']}:/usr/local/sbin:/usr/sbin:/sbin"
# `low` is preempted by `high`, with time to save.
SLURM = """\
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=120
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool.%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.%n.log
MailProg=/bin/true
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SlurmdParameters=config_overrides
SlurmctldParameters=preempt_send_user_signal
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
ReturnToService=2
SchedulerParameters=sched_interval=2,batch_sched_delay=0
SlurmdTimeout=90
MessageTimeout=100
BatchStartTimeout=600
MinJobAge=86400
KillWait=5
OverTimeLimit=60
AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost=127.0.0.1
AccountingStoragePort={database}
AccountingStoragePass={folder}/munge.socket
AccountingStorageEnforce=associations
JobAcctGatherType=jobacct_gather/none
PartitionName=low Nodes=ALL Default=YES MaxTime=INFINITE DefaultTime=1440 PriorityTier=1 GraceTime=600
PartitionName=high Nodes=ALL MaxTime=INFINITE DefaultTime=1440 PriorityTier=2 PreemptMode=OFF
"""
NODE = "NodeName={name} NodeHostname={host} NodeAddr=127.0.0.1 Port={port} CPUs=4 RealMemory=1000 State=UNKNOWN\n"
SLURMDBD = """\
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
DbdHost=localhost
DbdAddr=127.0.0.1
DbdPort={database}
SlurmUser={user}
PidFile={folder}/slurmdbd.pid
LogFile={folder}/slurmdbd.log
StorageType=accounting_storage/mysql
StorageHost=127.0.0.1
StoragePort={storage}
StorageUser=slurm
StoragePass={password}
StorageLoc=slurm
"""
SQL = """\
CREATE USER slurm@'127.0.0.1' IDENTIFIED BY '{password}';
GRANT ALL ON slurm.* TO slurm@'127.0.0.1';
"""
# The first process of a node: it takes in what others leave, and what it had ends with it.
FIRST = 'mount -t tmpfs tmpfs /dev/shm && "$@" & wait; while :; do sleep 60 & wait; done'


def missing() -> list[str]:
    """Programs of a cluster that are not installed."""
    return [name for name in DAEMONS if shutil.which(name, path=SYSTEM_PATH) is None]


class Cluster:
    """A cluster whose nodes are called node0, node1, …"""

    def __init__(self, nodes: int = 2) -> None:
        self.nodes = [f"node{i}" for i in range(nodes)]
        self.apart = os.geteuid() == 0 and subprocess.run(["unshare", "--pid", "--fork", "true"]).returncode == 0
        self.daemons: dict[str, subprocess.Popen[bytes]] = {}

    def __enter__(self) -> "Cluster":
        self.folder = Path(tempfile.mkdtemp(prefix="slurm-", dir="/tmp"))  # a socket's path must be short
        self.folder.chmod(0o755)
        self.env = os.environ | {"SLURM_CONF": str(self.folder / "slurm.conf"), "PATH": SYSTEM_PATH}
        for name in [name for name in self.env if name.startswith(("SLURM_", "SBATCH_")) and name != "SLURM_CONF"]:
            del self.env[name]
        try:
            self._start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, _: BaseException | None, __: TracebackType | None) -> None:
        self.stop()

    def _start(self) -> None:
        folder, user, host = self.folder, getpass.getuser(), os.uname().nodename
        values = dict(folder=folder, user=user, host=host, password=secrets.token_hex(8))
        ports = _ports("controller", "database", "storage", *self.nodes)
        nodes = "".join(NODE.format(name=name, host=host, port=ports[name]) for name in self.nodes)
        self._write("slurm.conf", SLURM.format(**values, **ports) + nodes, 0o644)
        self._write("slurmdbd.conf", SLURMDBD.format(**values, **ports))
        self._write("users.sql", SQL.format(**values))
        self._write("munge.key", secrets.token_hex(64))
        (folder / "state").mkdir()
        names = {"key-file": "munge.key", "socket": "munge.socket", "pid-file": "munge.pid", "seed-file": "munge.seed"}
        files = [f"--{option}={folder / name}" for option, name in names.items()]
        self._daemon("munged", "--foreground", "--force", *files, f"--log-file={folder}/munged.log")
        data = folder / "mariadb"
        places = [f"--datadir={data}", f"--user={user}"]
        self.run("mariadb-install-db", "--no-defaults", "--auth-root-authentication-method=socket", *places)
        places += [f"--socket={folder}/mariadb.socket", f"--port={ports['storage']}", f"--init-file={folder}/users.sql"]
        lean = ["--innodb-buffer-pool-size=32M", "--innodb-log-file-size=16M", "--innodb-flush-log-at-trx-commit=0"]
        self._daemon("mariadbd", "--no-defaults", "--bind-address=127.0.0.1", "--skip-name-resolve", *places, *lean)
        self.until(lambda: (folder / "munge.socket").exists(), "munged did not start")
        self.until(lambda: (folder / "mariadb.socket").exists(), "MariaDB did not start")
        self._daemon("slurmdbd", "-D")
        self.until(lambda: self._accounts("show", "cluster"), "slurmdbd did not start")
        self._accounts("add", "cluster", "test")
        self._accounts("add", "account", "main", "Description=main", "Organization=main")
        self._accounts("add", "user", user, "Account=main")
        self._daemon("slurmctld", "-D")
        for node in self.nodes:
            self.start_node(node)
        self.until(lambda: self.states().count("idle") == len(self.nodes), "the nodes did not come up")

    def start_node(self, node: str) -> None:
        """Start a node, or start it again."""
        apart = ["unshare", "--pid", "--fork", "--mount-proc", "--kill-child", "sh", "-c", FIRST, "sh"]
        self._daemon(node, *(apart if self.apart else []), "slurmd", "-D", "-N", node)

    def kill_node(self, node: str) -> None:
        """As if its machine lost power; where nodes are not apart, only its daemon dies."""
        popen = self.daemons.pop(node)
        popen.kill()
        popen.wait()

    def processes(self, node: str) -> list[psutil.Process]:
        """What a node runs besides its daemon and its first process."""
        leader = psutil.Process(self.daemons[node].pid)
        own = ("unshare", "sh", "sleep", "slurmd")
        return [p for p in _family(leader.pid) if _name(p) not in ("", *own)]

    def nothing_left(self, *nodes: str) -> None:
        """Wait until nothing is left of jobs that have ended: no process on any node, no shared memory of these."""
        shared = nodes if self.apart else ()
        self.until(lambda: not self.left_over() and not any(map(self.shared_memory, shared)), "something is left")

    def left_over(self) -> list[psutil.Process]:
        """What jobs that have ended left on any node; Slurm's own (slurmstepd) may still be about to end."""
        found = [p for node in self.nodes if node in self.daemons for p in self.processes(node)]
        return [p for p in found if (name := _name(p)) and not name.startswith("slurmstepd")]

    def shared_memory(self, node: str) -> list[str]:
        """Names of files in a node's /dev/shm."""
        first = next(p for p in psutil.Process(self.daemons[node].pid).children() if p.name() == "sh")
        return sorted(os.listdir(f"/proc/{first.pid}/root/dev/shm"))

    def states(self) -> list[str]:
        """Of the nodes, as sinfo says."""
        return self.run("sinfo", "-h", "-N", "-p", "low", "-o", "%T", check=False).stdout.split()

    def run(
        self, *command: str, check: bool = True, env: Mapping[str, str] | None = None, cwd: Path | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run a command of Slurm's, or one that calls them."""
        env = self.env | (env or {})
        done = subprocess.run(command, env=env, cwd=cwd, capture_output=True, encoding="utf-8", timeout=PATIENCE)
        assert not check or done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"
        return done

    def sbatch(self, *arguments: str, env: Mapping[str, str] | None = None, cwd: Path | None = None) -> int:
        """Submit a job; returns its number."""
        return int(self.run("sbatch", "--parsable", *arguments, env=env, cwd=cwd).stdout.split(";")[0])

    def job(self, number: int) -> dict[str, str]:
        """What scontrol says about a job."""
        return dict(re.findall(r"(\w+)=(\S*)", self.run("scontrol", "show", "job", str(number)).stdout))

    def wait(self, number: int, *states: str) -> dict[str, str]:
        """Wait until a job is in one of these states, or has ended; fails when it ended in another."""
        found: dict[str, str] = {}

        def reached() -> bool:
            nonlocal found
            found = self.job(number)
            return found["JobState"] in (*states, *ENDED)

        self.until(reached, f"job {number} is not {states}")
        assert found["JobState"] in states, f"{found}\n{self.output(number)}"
        return found

    def says(self, number: int, text: str, times: int = 1) -> None:
        """Wait until a job has printed a text so often; fails when it ends before."""
        self.while_it_runs(number, lambda: self.output(number).count(text) >= times, f"{text!r} is not printed")

    def requeued(self, number: int, times: int) -> None:
        """Wait until a job has been requeued so often, and let it start without Slurm's delay; fails when it ends.

        Not within the second: Slurm's daemons hold the new attempt's credential against the time at which they revoked
        the last one's, in whole seconds ("Job credential revoked", and the job fails).
        """
        self.ended(number, times)
        self.run("scontrol", "update", f"jobid={number}", "StartTime=now+3", check=False)

    def ended(self, number: int, times: int) -> None:
        """Wait until so many attempts of a job have ended and been requeued; fails when it ends itself."""
        self.while_it_runs(number, lambda: self.job(number)["Restarts"] == str(times), "it is not requeued")
        # One that starts while its last attempt is still being ended fails.
        self.while_it_runs(number, lambda: self.job(number)["JobState"] == "RUNNING" or self._over(number), "not over")

    def _over(self, number: int) -> bool:
        """Whether no process of a job is left on any node, Slurm's own (slurmstepd) included, and Slurm knows it."""
        if self.run("squeue", "-h", "-s", "-j", str(number)).stdout.strip():
            return False
        return not any(
            _of_job(process, number) for node in self.daemons.keys() & self.nodes for process in self.processes(node)
        )

    def while_it_runs(self, number: int, condition: Callable[[], bool], otherwise: str) -> None:
        """Wait for a condition; fails when the job ends before."""

        def reached() -> bool:
            ended = self.job(number)["JobState"] in ENDED
            assert condition() or not ended, f"job {number}: {otherwise}\n{self.output(number)}"
            return condition()

        self.until(reached, otherwise)

    def output(self, number: int) -> str:
        """What a job has printed so far."""
        with contextlib.suppress(OSError):
            return Path(self.job(number)["StdOut"]).read_text(encoding="utf-8", errors="replace")
        return ""

    def until(self, condition: Callable[[], object], otherwise: str) -> None:
        """Wait for a condition; fails with the ends of the logs, also when a daemon has ended."""
        deadline = time.monotonic() + PATIENCE
        while not condition():
            ended = [name for name, popen in self.daemons.items() if popen.poll() is not None]
            assert not ended and time.monotonic() < deadline, f"{otherwise}; ended: {ended}\n{self._logs()}"
            time.sleep(0.2)

    def stop(self) -> None:
        """End every job and daemon, and delete the folder."""
        if "slurmctld" in self.daemons:
            self.run("scancel", "--user", getpass.getuser(), check=False)
            self.run("scancel", "--signal=KILL", "--full", "--user", getpass.getuser(), check=False)
        for popen in reversed(self.daemons.values()):
            left = _family(popen.pid)
            popen.kill() if popen.args[0] in ("unshare", "slurmd") else popen.send_signal(signal.SIGTERM)  # type: ignore
            popen.wait(PATIENCE)
            for process in left:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()
            psutil.wait_procs(left, PATIENCE)
        self.daemons.clear()
        shutil.rmtree(self.folder)

    def _daemon(self, name: str, *command: str) -> None:
        command = command if name in self.nodes else (name, *command)
        with (self.folder / f"{name}.out").open("ab") as out:
            self.daemons[name] = subprocess.Popen(
                command, env=self.env, stdin=subprocess.DEVNULL, stdout=out, stderr=out, start_new_session=True
            )

    def _accounts(self, *command: str) -> bool:
        return self.run("sacctmgr", "-i", *command, check=False).returncode == 0

    def _write(self, name: str, text: str, mode: int = 0o600) -> None:
        with open(os.open(self.folder / name, os.O_WRONLY | os.O_CREAT, mode), "w", encoding="utf-8") as file:
            file.write(text)

    def _logs(self) -> str:
        files = sorted([*self.folder.glob("*.log"), *self.folder.glob("*.out")])
        return "\n".join(f"{file.name}: {file.read_text(errors='replace')[-800:]}" for file in files)


def _ports(*names: str) -> dict[str, int]:
    """A port for each, all different: daemons listen at them only some time after they are chosen."""
    found: dict[str, int] = {}
    for name in names:
        after = max(found.values()) - 19_999 if found else random.randrange(9_900)  # counted from 20000
        found[name] = free_low_port(first=after)
    return found


def _name(process: psutil.Process) -> str:
    """Empty for one that has ended meanwhile."""
    with contextlib.suppress(psutil.NoSuchProcess):
        return process.name()
    return ""


def _family(pid: int) -> list[psutil.Process]:
    with contextlib.suppress(psutil.NoSuchProcess):
        return list(_descendants(psutil.Process(pid)))
    return []


def _descendants(process: psutil.Process) -> Iterator[psutil.Process]:
    yield from process.children(recursive=True)


def _of_job(process: psutil.Process, number: int) -> bool:
    with contextlib.suppress(psutil.Error):
        steps = any(f"[{number}." in word for word in process.cmdline())
        return steps or process.environ().get("SLURM_JOB_ID") == str(number)
    return False
