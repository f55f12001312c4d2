"""The processes that write a checkpoint's files do not outlive the rank that started them."""

import os
import subprocess
import sys

import psutil

from tests.conftest import PATIENCE, ROOT

RANK = """
import multiprocessing, signal, sys
from megatron_rl.actor import checkpoint
writer = checkpoint.filesystem_async.FileSystemWriterAsync
writer.write_preloaded_data = staticmethod(lambda *arguments: signal.pause())  # as those that wait for a dead one
checkpoint.tie_writers()
child = multiprocessing.get_context("fork").Process(target=writer.write_preloaded_data, args=(1,))
child.start()
print(child.pid, flush=True)
sys.stdin.read()
"""


def test_a_killed_rank_leaves_no_writer() -> None:
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-W", "ignore", "-c", RANK]
    rank = subprocess.Popen(command, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert rank.stdout is not None
    writer = psutil.Process(int(rank.stdout.readline()))
    rank.kill()
    rank.wait()
    _, alive = psutil.wait_procs([writer], timeout=PATIENCE)
    assert not alive
