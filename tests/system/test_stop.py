"""A process that is asked to stop, and asked again."""

import signal
import subprocess
import sys

import pytest

from tests.conftest import PATIENCE

LOOP = """
import sys, time
from megatron_rl.system import stop
stop.install()
print("step", flush=True)
while not stop.requested():
    time.sleep(0.01)
print("asked", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def looping():
    command = [sys.executable, "-c", LOOP]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, encoding="utf-8") as process:
        assert process.stdout is not None and process.stdout.readline() == "step\n"
        yield process
        process.kill()


def test_asked_once_it_ends_when_it_likes(looping: subprocess.Popen[str]) -> None:
    looping.send_signal(signal.SIGINT)  # a terminal's, which is the supervisor's business
    looping.send_signal(signal.SIGTERM)
    assert looping.stdout is not None and looping.stdout.readline() == "asked\n"
    looping.communicate("", timeout=PATIENCE)
    assert looping.returncode == 0


def test_asked_again_it_still_ends_when_it_likes(looping: subprocess.Popen[str]) -> None:
    """A batch system's SIGTERM reaches it directly, and once more through the supervisor."""
    looping.send_signal(signal.SIGTERM)
    assert looping.stdout is not None and looping.stdout.readline() == "asked\n"
    looping.send_signal(signal.SIGTERM)
    looping.communicate("", timeout=PATIENCE)
    assert looping.returncode == 0


LEFT = """
import os, signal, subprocess, sys, time
from megatron_rl.system.stop import leave_to_parent
leave_to_parent()
os.kill(os.getpid(), signal.SIGTERM)
forked = os.fork()
if not forked:
    time.sleep(600)
started = subprocess.Popen([sys.executable, "-c", "import time; print(flush=True); time.sleep(600)"], stdout=-1)
started.stdout.readline()
for pid in (forked, started.pid):
    os.kill(pid, signal.SIGTERM)
    print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
"""


def test_who_is_left_to_the_parent_outlives_sigterm_but_not_what_it_starts() -> None:
    done = subprocess.run([sys.executable, "-c", LEFT], stdout=subprocess.PIPE, encoding="utf-8", timeout=PATIENCE)
    assert (done.returncode, done.stdout) == (0, "-15\n-15\n")
