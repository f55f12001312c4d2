"""Starts every process of a run, on one machine or several, watches over them and ends them.

One supervisor runs on each machine. The first node's opens the run's folder, decides what is where and leads the
others; they start what they are told to and end with it.

``python -m megatron_rl.launch.job RUN_FOLDER`` writes the run's initial model: a process of its own, for torch.
"""

import contextlib
import copy
import dataclasses
import secrets
import shutil
import socket
import sys
import time
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil

from megatron_rl.actor.checkpoint_folder import latest, read_state, set_damaged_aside
from megatron_rl.config import Config
from megatron_rl.errors import InputError
from megatron_rl.launch.meeting import Job, Peer, gathered, join, sweep
from megatron_rl.launch.nodes import ALONE, Nodes
from megatron_rl.launch.placement import Placement
from megatron_rl.launch.processes import processes
from megatron_rl.launch.source import commit
from megatron_rl.rollout.sglang.servers import leftovers
from megatron_rl.system import machine, scratch
from megatron_rl.system.channel import key_from_environment, written
from megatron_rl.system.processes import BAD_INPUT, run
from megatron_rl.system.supervision import supervisor
from megatron_rl.system.supervision.members import Lead, Node
from megatron_rl.system.supervision.screen import duration
from megatron_rl.system.supervision.supervisor import Outcome, Process, supervise
from megatron_rl.tracking.console import where_next
from megatron_rl.tracking.run_folder import RunFolder, changes, open_run


def launch(config: Config, nodes: Nodes = ALONE) -> int:
    """Run the configuration to its end, from the first node.

    Returns the exit code: 0, 1, 2 for bad input, 75 for a machine that was lost, or 128 + signal. The configuration has
    been checked. Raises InputError when the run's folder cannot be used, or its checkpoints, or nodes cannot take part.
    """
    with gathered(config, nodes) as (address, peers):
        folder = open_run(config)
        try:
            sweep(config, nodes)
            for warning in set_damaged_aside(folder.checkpoints):
                print(f"warning: {warning}", flush=True)
            if (done := _completed(folder, config)) is not None:
                print(_is_complete(folder, *done), flush=True)
                return 0
            _require_steps(folder, config)
            config = _record(folder, config, nodes.count)
            with scratch.made() as sockets:
                outcome = _write_initial_model(folder, config, sockets)
                if outcome.code == 0:
                    outcome = _train(folder, config, sockets, address, peers)
            if outcome.code > 128 and _completed(folder, config) is not None:  # it was asked to stop in its last step
                outcome = Outcome(0)
            with contextlib.suppress(OSError, InputError):  # a disk that is full must not hide why the run ended
                folder.mark_ended(outcome.code, outcome.message)
            if outcome.code == BAD_INPUT:
                raise InputError(outcome.message)
            _say_how_it_ended(folder, outcome, nodes)
        finally:
            folder.unlock()
    return outcome.code


def follow(config: Config, nodes: Nodes) -> int:
    """Run what the first node says, on another one; returns 0, or 75 when the first node was lost.

    Raises InputError where there is no way to the first node, or it refuses this one.
    """
    connection, job = join(config, nodes)
    with connection:
        if job is None:
            return 0
        print(f"{nodes.name(nodes.index)} takes part in {job.folder}. Logs: {job.logs}", flush=True)
        config = RunFolder(job.folder).config()
        with scratch.made() as sockets:
            outcome = supervisor.follow(processes(job, config, nodes.index, sockets), job.logs, Lead(connection))
        if config.rollout.engine == "sglang" and config.generates():
            leftovers.remove_after(sockets)
    if outcome.code:
        more = f"Logs of every process: {job.logs}\nStarted again, the run continues from its newest checkpoint."
        print(f"{outcome.message}\n{more}", file=sys.stderr, flush=True)
    return outcome.code


def _train(folder: RunFolder, config: Config, sockets: Path, address: str, peers: list[Peer]) -> Outcome:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.create_server((address, 0), family=family) as listener:
        job = make_job(folder, config, sockets, (address, listener.getsockname()[1]), peers)
        members = []
        for index, peer in enumerate(peers, 1):
            peer.say("start", replace(job, folder=job.folder.absolute(), logs=job.logs.absolute()))
            members.append(Node(peer.name, peer.connection, service=not job.placement.ranks_on(index)))
        outcome = supervise(
            processes(job, config, 0, sockets, listener),
            folder.logs(),
            config.run.grace_seconds,
            "the run stops at the end of this step and saves a checkpoint; a second Ctrl-C or signal ends it at once.",
            members,
        )
    if config.rollout.engine == "sglang" and config.generates():
        leftovers.remove_after(sockets)
    return outcome


def make_job(folder: RunFolder, config: Config, sockets: Path, master: tuple[str, int], peers: list[Peer]) -> Job:
    """What is where, and who listens at which address."""
    adopted = config.rollout.engine == "sglang" and config.rollout.sglang.urls  # they have their key already
    key = key_from_environment() if adopted else secrets.token_bytes(16)
    count = config.rollout.engines if config.generates() and not adopted else 0
    hosts = (master[0], *(peer.arrival.address for peer in peers))
    span = config.rollout.sglang.nodes if config.rollout.engine == "sglang" and count else 1
    placement = Placement(hosts, config.actor.sizes().world, count, config.launch.rollout_nodes, span)
    ports = [iter(peer.arrival.ports) for peer in peers]
    addresses = []
    for engine in range(count if config.rollout.engine == "embedded" else 0):
        host = placement.host_of_engine(engine)
        near = str(sockets / f"engine{engine}")
        addresses.append(near if host == 0 else written(hosts[host], next(ports[host - 1])))
    far = config.rollout.engine == "sglang" and any(placement.engines_on(node) for node in range(1, len(hosts)))
    control = written(hosts[0], machine.free_low_port(hosts[0])) if far else ""
    return Job(folder.path, folder.logs(), key, placement, master[1], tuple(addresses), control)


def _completed(folder: RunFolder, config: Config) -> tuple[str, int] | None:
    """The stage and step at which the run is complete, when nothing is left to do; else None."""
    done = folder.completed(config)
    newest = latest(folder.checkpoints)
    if done is None or newest is None:
        return None
    state = read_state(newest)
    return done if (state.get("stage"), state.get("step")) == done else None


def _require_steps(folder: RunFolder, config: Config) -> None:
    """Raises InputError where the run stands behind all that it is asked for."""
    newest = latest(folder.checkpoints)
    state = read_state(newest) if newest is not None else {}
    [*_, (stage, steps)] = config.chain().items()
    if state.get("stage") == stage and state.get("step", 0) > steps:
        key = "run.steps" if stage == "rl" else f"{stage}.steps"
        raise InputError(
            f"{folder.path} has {state['step']} steps already, and {key} is {steps}: set it to {state['step']} or more "
            "to go on, or begin another run (run.name, or run.resume=never)."
        )


def _is_complete(folder: RunFolder, stage: str, step: int) -> str:
    more = "run" if stage == "rl" else stage
    of = "" if stage == "rl" else f" of {stage}"
    return (
        f"{folder.path} is complete: {step} step{'s' if step != 1 else ''}{of}. For more steps set {more}.steps above "
        f"{step}; for a new run set run.resume=never, or another run.name.\n{where_next(folder, stage, step)}"
    )


def _say_how_it_ended(folder: RunFolder, outcome: Outcome, nodes: Nodes) -> None:
    seconds = time.time() - psutil.Process().create_time()
    if outcome.code == 0:
        print(f"The command took {duration(seconds)}.", flush=True)
        return
    newest = latest(folder.checkpoints)
    kept = f"Newest checkpoint: {newest}. Continue" if newest else "There is no checkpoint yet. Begin anew"
    lines = [
        outcome.message,
        f"Logs of every process: {folder.logs()}",
        f"{kept} with: {nodes.again(folder.command())}",
        f"The command took {duration(seconds)}.",
    ]
    with contextlib.suppress(OSError):  # nobody reads any more: the terminal has been closed
        print("\n".join(lines), file=sys.stderr, flush=True)


def _record(folder: RunFolder, config: Config, nodes: int) -> Config:
    """Write the configuration and the manifest's entry of this attempt; returns the configuration with its own name."""
    config = copy.deepcopy(config)
    config.run.name = folder.path.name
    changed = {}
    if folder.started():
        changed = {key: [old, new] for key, (old, new) in changes(folder.config(), config).items()}
    attempts = folder.manifest().get("attempts", [])
    attempt = {
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        **machine.facts(),
        "nodes": nodes,
        "code": commit(),
    }
    folder.write_config(config)
    folder.update_manifest(
        name=config.run.name,
        seed=config.run.seed,
        config=dataclasses.asdict(config),
        attempts=[*attempts, attempt | {"changed": changed}],
    )
    _announce(folder, config, changed, nodes)
    return config


def _announce(folder: RunFolder, config: Config, changed: dict[str, list[Any]], nodes: int) -> None:
    counts = {
        "trainer rank": config.actor.sizes().world,
        "engine": config.rollout.engine_count,
        "reward worker": config.rewards.workers,
    }
    counts = counts if config.generates() else {"trainer rank": counts["trainer rank"]}
    started = ", ".join(f"{count} {what}{'s' if count > 1 else ''}" for what, count in counts.items())
    verb = "Continuing" if folder.started() else "Run"
    started += f" on {nodes} nodes" if nodes > 1 else ""
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
