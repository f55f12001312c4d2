"""Starts every process of a run on this machine, watches over them and ends them.

``python -m megatron_rl.launch.job RUN_FOLDER`` writes the run's initial model: a process of its own, for torch.
"""

import copy
import dataclasses
import os
import secrets
import shutil
import subprocess
import sys
import tempfile
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from megatron_rl.config import Config
from megatron_rl.errors import InputError
from megatron_rl.rollout.embedded.client import engine_command, engine_environment
from megatron_rl.rollout.sglang import leftovers
from megatron_rl.system import machine, scratch
from megatron_rl.system.channel import ENGINES, key_from_environment
from megatron_rl.system.processes import BAD_INPUT, run
from megatron_rl.system.supervisor import Outcome, Process, supervise
from megatron_rl.tracking.run_folder import RunFolder, changes, open_run


def launch(config: Config) -> int:
    """Run the configuration to its end; returns the exit code: 0, 1, 2 for bad input, or 128 + signal.

    The configuration has been checked. Raises InputError when the run's folder cannot be used.
    """
    folder = open_run(config)
    try:
        config = _record(folder, config)
        outcome = _write_initial_model(folder, config)
        if outcome.code == 0:
            with scratch.made(_short_temporary()) as sockets:
                outcome = supervise(processes(folder, config, sockets), folder.logs())
                if config.rollout.engine == "sglang":
                    leftovers.remove_after(sockets)
    finally:
        folder.unlock()
    if outcome.code == BAD_INPUT:
        raise InputError(outcome.message)
    if outcome.message:
        print(f"{outcome.message}\nLogs of every process: {folder.logs()}", file=sys.stderr)
    return outcome.code


def processes(folder: RunFolder, config: Config, sockets: Path) -> list[Process]:
    """The engines and the trainer ranks of a run; they meet at Unix sockets and at a port on loopback."""
    adopted = config.rollout.engine == "sglang" and config.rollout.sglang.urls  # they have their key already
    key = key_from_environment() if adopted else secrets.token_bytes(16)
    embedded = config.rollout.engines if config.rollout.engine == "embedded" else 0  # rank 0 starts the others
    addresses = [str(sockets / f"engine{i}") for i in range(embedded)]
    world = config.actor.sizes().world
    common = {"PYTHONUNBUFFERED": "1"}
    if machine.gpus():
        # megatron-core begins communication before the products that it shall overlap, and relies on that order
        common["CUDA_DEVICE_MAX_CONNECTIONS"] = "1"
        # as SGLang sets it in its servers: NCCL connects only processes that allocate alike
        common["NCCL_CUMEM_ENABLE"] = os.environ.get("NCCL_CUMEM_ENABLE", "0")
    else:
        common["TORCHDYNAMO_DISABLE"] = "1"  # megatron-core compiles small fusions at import: worth it on a GPU only
    job = common | engine_environment(config.rollout, key)
    job |= {
        ENGINES: ",".join(addresses),
        scratch.SCRATCH: str(sockets),
        "OMP_NUM_THREADS": str(config.actor.threads),
        "WORLD_SIZE": str(world),
        "LOCAL_WORLD_SIZE": str(world),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(machine.free_port()),
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
            job | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            echo=rank == 0,
        )
        for rank in range(world)
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
    started = ", ".join(f"{count} {what}{'s' if count > 1 else ''}" for what, count in counts.items())
    verb = "Continuing" if folder.started() else "Run"
    print(f"{verb} {folder.path}: {started}. Logs: {folder.logs()}", flush=True)
    for key, (old, new) in changed.items():
        print(f"  changed: {key} {old} -> {new}", flush=True)


def _write_initial_model(folder: RunFolder, config: Config) -> Outcome:
    """The model that a run from random weights starts from; made anew as long as there is no checkpoint."""
    if config.model.path or folder.started():
        return Outcome(0)
    if folder.initial_model.exists():
        shutil.rmtree(folder.initial_model)
    command = [sys.executable, "-m", "megatron_rl.launch.job", str(folder.path)]
    return supervise([Process("initial_model", command)], folder.logs())


def _short_temporary() -> str:
    """A folder whose sockets' paths stay below the system's limit of about 100 characters."""
    preferred = tempfile.gettempdir()
    return preferred if len(preferred) < 60 else "/tmp"


def _commit() -> dict[str, Any] | None:
    """The commit of this code and whether files differ from it; None outside a git checkout."""
    root = Path(__file__).parents[2]

    def git(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, text=True)

    if not shutil.which("git") or git("ls-files", "--error-unmatch", __file__).returncode != 0:
        return None
    changed = git("status", "--porcelain", "--untracked-files=no").stdout.strip()
    return {"commit": git("rev-parse", "HEAD").stdout.strip(), "modified": bool(changed)}


def _initial_model() -> None:
    from megatron_rl.launch.initial_model import write_initial_model

    folder = RunFolder(sys.argv[1])
    config = folder.config()
    write_initial_model(config.model, config.data, config.run.seed, folder.initial_model)


if __name__ == "__main__":
    run(_initial_model)
