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


def test_asked_twice_it_ends_at_once(looping: subprocess.Popen[str]) -> None:
    looping.send_signal(signal.SIGTERM)
    assert looping.stdout is not None and looping.stdout.readline() == "asked\n"
    looping.send_signal(signal.SIGTERM)
    assert looping.wait(PATIENCE) == -signal.SIGTERM
