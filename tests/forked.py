"""Programs that begin as forks of a process which has imported torch, Megatron and transformers already.

An interpreter that imports them takes four to six seconds of a core, and the tests want sixty.
"""

import multiprocessing
import os
import runpy
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest

from megatron_rl.system.channel import LISTENER

ROOT = Path(__file__).parent.parent
SURROUNDINGS = {  # of every process
    "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])),
    "PYTHONWARNINGS": "ignore",
    "OMP_NUM_THREADS": "1",
}
METHOD = "spawn" if Path("/dev/nvidiactl").exists() else "forkserver"  # what has asked for GPUs cannot be forked
IMPORTED = [
    "megatron_rl.actor.checkpoint",
    "megatron_rl.training.models",
    "megatron_rl.training.stages.rl",
    "megatron.core.distributed.finalize_model_grads",
    "megatron.core.models.gpt.gpt_layer_specs",
    "megatron.core.optimizer",
    "transformers.models.auto.modeling_auto",
    "transformers.models.auto.tokenization_auto",
]


def start(
    program: str,
    arguments: Sequence[str],
    environment: Mapping[str, str],
    streams: Sequence[Path],
    listener: socket.socket | None = None,
) -> BaseProcess:
    """Begin a script, or a module, as the main program of a session of its own.

    ``streams``: files to be its input, output and errors. ``listener``: where it meets other ranks.
    """
    context = multiprocessing.get_context(METHOD)
    with pytest.MonkeyPatch.context() as patch:
        for name, value in SURROUNDINGS.items():
            patch.setenv(name, value)
        if METHOD == "forkserver":
            context.set_forkserver_preload(IMPORTED)
        process: BaseProcess = context.Process(  # type: ignore[attr-defined]
            target=_run,
            args=(program, list(arguments), dict(environment), list(map(str, streams)), os.getcwd(), listener),
        )
        process.start()
    return process


def _run(
    program: str,
    arguments: list[str],
    environment: dict[str, str],
    streams: list[str],
    folder: str,
    listener: socket.socket | None,
) -> None:
    for number, path in enumerate(streams):  # two may be one file
        stream = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND if number else os.O_RDONLY, 0o600)
        os.dup2(stream, number)
    sys.stdin = os.fdopen(0, encoding="utf-8", closefd=False)  # multiprocessing has put another in its place
    os.setsid()
    os.environ.clear()
    os.environ.update(environment)
    if listener is not None:
        os.environ[LISTENER] = str(listener.detach())
    os.chdir(folder)
    sys.argv = [program, *arguments]
    if program.endswith(".py"):
        runpy.run_path(program, run_name="__main__")
    else:
        runpy.run_module(program, run_name="__main__", alter_sys=True)


def run(command: Sequence[str], folder: Path, text: str, environment: Mapping[str, str]) -> subprocess.CompletedProcess:
    """What ``subprocess.run`` of [interpreter, "-m", module, argument, …] returns, of a fork."""
    _, _, module, *arguments = command
    streams = [folder / name for name in ("stdin", "stdout", "stderr")]
    streams[0].write_text(text, encoding="utf-8")
    process = start(module, arguments, environment, streams)
    process.join()
    assert process.exitcode is not None
    output, errors = (stream.read_text(encoding="utf-8") for stream in streams[1:])
    return subprocess.CompletedProcess(list(command), process.exitcode, output, errors)
