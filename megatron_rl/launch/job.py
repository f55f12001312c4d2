"""Starts every process of a run on this machine, watches over them and ends them.

``python -m megatron_rl.launch.job RUN_FOLDER`` writes the run's initial model: a process of its own, for torch.
"""

import contextlib
import copy
import dataclasses
import os
import secrets
import shutil
import socket
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil

from megatron_rl.actor.checkpoint_folder import latest, read_state, set_damaged_aside
from megatron_rl.config import Config
from megatron_rl.errors import InputError
from megatron_rl.launch.placement import LOOPBACK, here
from megatron_rl.rollout.embedded.client import engine_command, engine_environment
from megatron_rl.rollout.sglang.servers import leftovers
from megatron_rl.system import machine, scratch
from megatron_rl.system.channel import ENGINES, LISTENER, key_from_environment
from megatron_rl.system.processes import BAD_INPUT, run
from megatron_rl.system.screen import duration
from megatron_rl.system.supervisor import Outcome, Process, supervise
from megatron_rl.tracking.console import where_next
from megatron_rl.tracking.run_folder import RunFolder, changes, open_run


def launch(config: Config) -> int:
    """Run the configuration to its end; returns the exit code: 0, 1, 2 for bad input, or 128 + signal.

    The configuration has been checked. Raises InputError when the run's folder cannot be used, or its checkpoints.
    """
    folder = open_run(config)
    try:
        for warning in set_damaged_aside(folder.checkpoints):
            print(f"warning: {warning}", flush=True)
        if (done := _completed(folder, config)) is not None:
            print(_is_complete(folder, *done), flush=True)
            return 0
        config = _record(folder, config)
        with scratch.made() as sockets:
            outcome = _write_initial_model(folder, config, sockets)
            if outcome.code == 0:
                outcome = _train(folder, config, sockets)
        if outcome.code > 128 and _completed(folder, config) is not None:  # it was asked to stop in its last step
            outcome = Outcome(0)
        with contextlib.suppress(OSError, InputError):  # a disk that is full must not hide why the run ended
            folder.mark_ended(outcome.code, outcome.message)
        if outcome.code == BAD_INPUT:
            raise InputError(outcome.message)
        _say_how_it_ended(folder, outcome)
    finally:
        folder.unlock()
    return outcome.code


def _train(folder: RunFolder, config: Config, sockets: Path) -> Outcome:
    with socket.create_server((LOOPBACK, 0)) as listener:
        outcome = supervise(
            processes(folder, config, sockets, listener),
            folder.logs(),
            config.run.grace_seconds,
            "the run stops at the end of this step and saves a checkpoint; a second Ctrl-C or signal ends it at once.",
        )
    if config.rollout.engine == "sglang" and config.generates():
        leftovers.remove_after(sockets)
    return outcome


def _completed(folder: RunFolder, config: Config) -> tuple[str, int] | None:
    """The stage and step at which the run is complete, when nothing is left to do; else None."""
    done = folder.completed(config)
    newest = latest(folder.checkpoints)
    if done is None or newest is None:
        return None
    state = read_state(newest)
    return done if (state.get("stage"), state.get("step")) == done else None


def _is_complete(folder: RunFolder, stage: str, step: int) -> str:
    more = "run" if stage == "rl" else stage
    of = "" if stage == "rl" else f" of {stage}"
    return (
        f"{folder.path} is complete: {step} step{'s' if step != 1 else ''}{of}. For more steps set {more}.steps above "
        f"{step}; for a new run set run.resume=never, or another run.name.\n{where_next(folder, stage, step)}"
    )


def _say_how_it_ended(folder: RunFolder, outcome: Outcome) -> None:
    seconds = time.time() - psutil.Process().create_time()
    if outcome.code == 0:
        print(f"The command took {duration(seconds)}.", flush=True)
        return
    newest = latest(folder.checkpoints)
    kept = f"Newest checkpoint: {newest}. Continue" if newest else "There is no checkpoint yet. Begin anew"
    lines = [
        outcome.message,
        f"Logs of every process: {folder.logs()}",
        f"{kept} with: {folder.command()}",
        f"The command took {duration(seconds)}.",
    ]
    with contextlib.suppress(OSError):  # nobody reads any more: the terminal has been closed
        print("\n".join(lines), file=sys.stderr, flush=True)


def processes(folder: RunFolder, config: Config, sockets: Path, listener: socket.socket) -> list[Process]:
    """The engines and the trainer ranks of a run; they meet at Unix sockets and at the ``listener``'s port."""
    adopted = config.rollout.engine == "sglang" and config.rollout.sglang.urls  # they have their key already
    key = key_from_environment() if adopted else secrets.token_bytes(16)
    # rank 0 starts the others
    embedded = config.rollout.engines if config.rollout.engine == "embedded" and config.generates() else 0
    addresses = [str(sockets / f"engine{i}") for i in range(embedded)]
    placement = here(config.actor.sizes().world, listener)
    common = {"PYTHONUNBUFFERED": "1"} | scratch.temporary(sockets) | scratch.caches(sockets)
    if machine.gpus():
        # megatron-core begins communication before the products that it shall overlap, and relies on that order
        common["CUDA_DEVICE_MAX_CONNECTIONS"] = "1"
        # as SGLang sets it in its servers: NCCL connects only processes that allocate alike
        common["NCCL_CUMEM_ENABLE"] = os.environ.get("NCCL_CUMEM_ENABLE", "0")
    else:
        common["TORCHDYNAMO_DISABLE"] = "1"  # megatron-core compiles small fusions at import: worth it on a GPU only
        common |= {name: os.environ.get(name, str(size)) for name, size in machine.KEPT.items()}
    job = common | engine_environment(config.rollout, key)
    job |= {
        ENGINES: ",".join(addresses),
        scratch.SCRATCH: str(sockets),
        "OMP_NUM_THREADS": str(config.actor.threads),
    }
    engines = [
        Process(
            f"engine{i}",
            engine_command(config.rollout, folder.model_folder(), address, config.model.dtype),
            common | engine_environment(config.rollout, key),
            service=True,
        )
        for i, address in enumerate(addresses)
    ]
    ranks = [
        Process(
            f"rank{rank}",
            [sys.executable, "-m", "megatron_rl.train", str(folder.path)],
            job | placement.environment(rank) | ({LISTENER: str(listener.fileno())} if rank == 0 else {}),
            echo=rank == 0,
            follows=rank != 0,
            descriptors=[listener.fileno()] if rank == 0 else [],
        )
        for rank in placement.here
    ]
    return engines + ranks


def _record(folder: RunFolder, config: Config) -> Config:
    """Write the configuration and the manifest's entry of this attempt; returns the configuration with its own name."""
    config = copy.deepcopy(config)
    config.run.name = folder.path.name
    changed = {}
    if folder.started():
        changed = {key: [old, new] for key, (old, new) in changes(folder.config(), config).items()}
    attempts = folder.manifest().get("attempts", [])
    attempt = {"started": datetime.now(UTC).isoformat(timespec="seconds"), **machine.facts(), "code": _commit()}
    folder.write_config(config)
    folder.update_manifest(
        name=config.run.name,
        seed=config.run.seed,
        config=dataclasses.asdict(config),
        attempts=[*attempts, attempt | {"changed": changed}],
    )
    _announce(folder, config, changed)
    return config


def _announce(folder: RunFolder, config: Config, changed: dict[str, list[Any]]) -> None:
    counts = {
        "trainer rank": config.actor.sizes().world,
        "engine": config.rollout.engine_count,
        "reward worker": config.rewards.workers,
    }
    counts = counts if config.generates() else {"trainer rank": counts["trainer rank"]}
    started = ", ".join(f"{count} {what}{'s' if count > 1 else ''}" for what, count in counts.items())
    verb = "Continuing" if folder.started() else "Run"
    print(f"{verb} {folder.path}: {started}. Logs: {folder.logs()}", flush=True)
    for key, (old, new) in changed.items():
        print(f"  changed: {key} {old} -> {new}", flush=True)


def _write_initial_model(folder: RunFolder, config: Config, sockets: Path) -> Outcome:
    """The model that a run from random weights, or from another run, begins with; made anew without a checkpoint."""
    if (config.model.path and not config.run.start_from) or folder.started():
        return Outcome(0)
    if folder.initial_model.exists():
        shutil.rmtree(folder.initial_model)
    command = [sys.executable, "-m", "megatron_rl.launch.job", str(folder.path)]
    env = scratch.temporary(sockets) | scratch.caches(sockets)
    return supervise([Process("initial_model", command, env)], folder.logs())


def _commit() -> dict[str, Any] | None:
    """The commit of this code and whether files differ from it; None outside a git checkout."""
    root = Path(__file__).parents[2]

    def git(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = ["git", "-C", str(root), *arguments]
        return subprocess.run(command, capture_output=True, encoding="utf-8", errors="replace")

    if not shutil.which("git") or git("ls-files", "--error-unmatch", __file__).returncode != 0:
        return None
    changed = git("status", "--porcelain", "--untracked-files=no").stdout.strip()
    return {"commit": git("rev-parse", "HEAD").stdout.strip(), "modified": bool(changed)}


def _initial_model() -> None:
    from megatron_rl.launch.initial_model import write_initial_model
    from megatron_rl.launch.start import write_start
    from megatron_rl.tracking.start import started_from

    folder = RunFolder(sys.argv[1])
    config = folder.config()
    if config.run.start_from:
        write_start(started_from(config.run), folder.initial_model, config.actor.threads)
        return
    write_initial_model(config.model, config.data, config.run.seed, folder.initial_model)


if __name__ == "__main__":
    run(_initial_model)
