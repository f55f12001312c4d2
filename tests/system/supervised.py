"""A supervisor in a process of its own, to be sent signals."""

import json
import subprocess
import sys
import time
from pathlib import Path

import psutil

from tests.conftest import PATIENCE

SLEEP = "import time; time.sleep(3600)"
SUPERVISOR = """
import json, sys
from pathlib import Path
from megatron_rl.system.supervision import supervisor
from megatron_rl.system.supervision.supervisor import Process, supervise
folder, grace, supervisor.SETTLE, *codes = sys.argv[1], *map(float, sys.argv[2:4]), *sys.argv[4:]
processes = [
    Process(
        f"p{i}", [sys.executable, "-c", code], follows=code.startswith("# follows"), echo=code.startswith("# echoed")
    )
    for i, code in enumerate(codes)
]
outcome = supervise(processes, Path(folder), grace, "it will stop.")
(Path(folder) / "outcome").write_text(json.dumps([outcome.code, outcome.message]))
"""


class Supervised:
    """A supervisor in a process of its own, with children that have written their process ids."""

    def __init__(
        self, folder: Path, *codes: str, grace: float = PATIENCE, settle: float = 1.0, stdout: int | None = None
    ) -> None:
        self.folder = folder
        marked = [
            f"{code}\nimport os; open(r'{folder}/pid{i}~','w').write(str(os.getpid())); "
            f"os.rename(r'{folder}/pid{i}~', r'{folder}/pid{i}')\n{SLEEP}"
            for i, code in enumerate(codes)
        ]
        command = [sys.executable, "-c", SUPERVISOR, str(folder), str(grace), str(settle), *marked]
        self.popen = subprocess.Popen(command, stdout=stdout, stderr=subprocess.DEVNULL if stdout else None)
        started = [folder / f"pid{i}" for i in range(len(codes))]
        wait_for(lambda: self.popen.poll() is not None or all(p.exists() for p in started), "children did not start")
        self.pids = [int((folder / f"pid{i}").read_text()) for i in range(len(codes))]

    def outcome(self) -> list[object]:
        self.popen.wait(PATIENCE)
        return json.loads((self.folder / "outcome").read_text())


def wait_for(condition, what: str, seconds: float = PATIENCE) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.02)


def gone(pid: int) -> bool:
    return not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
