"""How the supervisors of a run's machines meet, and what they have to agree about before anything is started.

The first node writes a file beside the run's folder, with the address at which it listens and a key. The others wait
for the file: so it proves at the same time that they share a file system, and only who can read it can call in.
"""

import contextlib
import glob
import json
import os
import re
import secrets
import socket
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing import AuthenticationError
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from megatron_rl.config import Config
from megatron_rl.errors import InputError, refuse
from megatron_rl.launch.nodes import Nodes
from megatron_rl.launch.placement import LOOPBACK, Placement
from megatron_rl.launch.source import commit
from megatron_rl.system import machine
from megatron_rl.system.channel import written
from megatron_rl.system.control import Control, Worker, WorkerError, call_in
from megatron_rl.tracking.run_folder import flat_options

_SESSION = "nodes"
_JOBS = re.compile(r"(slurm|torchrun-)\S+\.\d+(\.node\d+|\.new)?$")  # how ``nodes.given`` names them
_POLL = 0.2  # seconds between two looks for the file
_CLOCKS = 60.0  # seconds by which the machines' clocks may differ
_SILENCE = 300.0  # seconds for a node that has called to say something
_TIME = ("time",)  # what a node is asked for that
_PORTS = 64  # that a node offers for its engines
_INTERFACES = ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME")  # environment variables that name one


@dataclass(frozen=True)
class Arrival:
    """What a node says about itself (picklable)."""

    address: str
    place: str  # machine.place()
    gpus: tuple[int, ...]  # bytes of each
    ports: tuple[int, ...]  # that are free there
    facts: Mapping[str, Any]  # machine.facts()
    code: Mapping[str, Any] | None  # the commit it runs
    options: Mapping[str, Any]  # every option of the recipe as this node was given it
    problems: tuple[str, ...]


@dataclass(frozen=True)
class Job:
    """What all nodes of a run know about it (picklable)."""

    folder: Path  # the run's
    logs: Path
    key: bytes
    placement: Placement
    port: int  # of the store on the first host at which the ranks meet
    engines: tuple[str, ...]  # addresses of the embedded engines
    control: str = ""  # where those call rank 0 that keep SGLang's servers on other hosts


class Peer:
    """A node that has called the first one."""

    def __init__(self, name: str, connection: Connection, arrival: Arrival) -> None:
        self.name, self.connection, self.arrival = name, connection, arrival
        self.ahead = 0.0  # seconds by which its clock is ahead of this node's, at least; negative: behind

    def say(self, *words: Any) -> None:
        """Tell it what to do: ("start", Job), ("refused", why) or ("end",)."""
        with contextlib.suppress(OSError):
            self.connection.send(words)


@contextlib.contextmanager
def gathered(config: Config, nodes: Nodes) -> Iterator[tuple[str, list[Peer]]]:
    """The first node's address and the other nodes, when all have called in; they are let go at the end.

    Raises InputError naming who did not come in ``launch.meet_seconds``, and whoever cannot take part.
    """
    if nodes.count == 1:
        yield LOOPBACK, []
        return
    me = _arrival(config, _own_address(nodes))
    file = _file(config, nodes)
    file.parent.mkdir(parents=True, exist_ok=True)
    key = secrets.token_bytes(16)
    at = written(me.address, machine.free_low_port(me.address, nodes.number))
    control = Control(at, key)
    control.session(_SESSION)
    itself = call_in(at, key, _SESSION, 0)  # so that nodes have their own numbers there
    peers: list[Peer] = []
    try:
        _write_privately(file, json.dumps({"address": at, "key": key.hex()}))
        peers = _peers(control, nodes, config.launch.meet_seconds)
        if problems := _problems(me, peers, file):
            for peer in peers:
                peer.say("refused", "The first node says why.")
            refuse(problems)
        yield me.address, peers
    finally:
        file.unlink(missing_ok=True)
        for peer in peers:
            peer.say("end")
            peer.connection.close()
        itself.close()
        control.close()


def sweep(config: Config, nodes: Nodes) -> None:
    """Remove the files of jobs that were killed while they met; called by who holds the run's folder."""
    mine, prefix = _file(config, nodes), f".{config.run.name}."
    for file in mine.parent.glob(f"{glob.escape(prefix)}*"):
        if file.is_file() and not file.name.startswith(mine.name) and _JOBS.match(file.name.removeprefix(prefix)):
            file.unlink(missing_ok=True)


def join(config: Config, nodes: Nodes) -> tuple[Connection, Job | None]:
    """Call the first node, and wait for what it says: a connection to it, and the job; None: nothing is left to do.

    Raises InputError where it is not found in ``launch.meet_seconds``, or refuses this node.
    """
    file, deadline = _file(config, nodes), time.monotonic() + config.launch.meet_seconds
    while True:
        with contextlib.suppress(OSError, ValueError, AuthenticationError, EOFError):
            os.listdir(file.parent)  # a network file system may remember that the file was not there
            found = json.loads(file.read_text(encoding="utf-8"))
            connection = call_in(found["address"], bytes.fromhex(found["key"]), _SESSION, nodes.index)
            break
        if time.monotonic() > deadline:
            raise InputError(
                f"{nodes.name(nodes.index)} found no way to the first node in {config.launch.meet_seconds:.0f} s "
                f"(launch.meet_seconds): {_why(file)}"
            )
        time.sleep(_POLL)
    host = found["address"].rpartition(":")[0].strip("[]")
    connection.send(_arrival(config, _interface() or machine.address_towards(host), _prove_shared(file, nodes)))
    try:
        while (said := connection.recv()) == _TIME:
            connection.send(time.time())
        kind, *rest = said
    except (EOFError, OSError):
        raise InputError("The first node has ended before the run began; its output says why.") from None
    if kind == "refused":
        raise InputError(f"This node cannot take part. {rest[0]}")
    return connection, rest[0] if kind == "start" else None


def _why(file: Path) -> str:
    if not file.exists():
        return (
            f"{file}, which the first node writes, is not there. Either the first node has failed, and its output says "
            "why, or run.folder is not on a file system that all nodes share."
        )
    return f"nobody answers at the address in {file}: is there a firewall between the nodes?"


def _file(config: Config, nodes: Nodes) -> Path:
    return Path(config.run.folder).absolute() / f".{config.run.name}.{nodes.job}"


def _write_privately(file: Path, text: str) -> None:
    beside = file.with_name(f"{file.name}.new")
    with open(os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w", encoding="utf-8") as out:
        out.write(text)
        out.flush()
        os.fsync(out.fileno())
    beside.replace(file)


def _prove_shared(file: Path, nodes: Nodes) -> list[str]:
    """Leave a file for the first node to see; why this node cannot write there."""
    try:
        _proof(file, nodes.index).write_text("", encoding="utf-8")
    except OSError as error:
        return [f"it cannot write into {file.parent} ({error.strerror})"]
    return []


def _proof(file: Path, index: int) -> Path:
    return file.with_name(f"{file.name}.node{index}")


def _peers(control: Control, nodes: Nodes, seconds: float) -> list[Peer]:
    try:
        workers = control.collect(_SESSION, "node", range(nodes.count), seconds)
    except WorkerError as error:
        raise InputError(
            f"Not all of the {nodes.count} nodes have called the first one in {seconds:.0f} s (launch.meet_seconds): "
            f"{error}. Does run.folder lie on a file system that all nodes share, and did the others start with the "
            "same run.folder and run.name?"
        ) from None
    return [_peer(nodes.name(index), worker) for index, worker in enumerate(workers) if index]


def _peer(name: str, worker: Worker) -> Peer:
    try:
        peer = Peer(name, worker.connection, _answer(name, worker.connection))
        asked = time.time()
        peer.say(*_TIME)
        clock = _answer(name, worker.connection)
        peer.ahead = max(clock - time.time(), 0.0) or min(clock - asked, 0.0)
        return peer
    except (EOFError, OSError):
        raise InputError(f"{name} has ended before the run began; its output says why.") from None


def _answer(name: str, connection: Connection) -> Any:
    if not connection.poll(_SILENCE):
        raise InputError(f"{name} has called, and says nothing.")
    return connection.recv()


def _arrival(config: Config, address: str, problems: Sequence[str] = ()) -> Arrival:
    found = list(problems)
    if config.model.path and not Path(config.model.path, "config.json").is_file():
        found.append(f"it does not see model.path={config.model.path}")
    ports: list[int] = []
    while len(ports) < _PORTS:
        ports.append(machine.free_low_port(address, ports[-1] - 19999 if ports else secrets.randbelow(10000)))
    place, facts = machine.place(), machine.facts()
    options, gpus = flat_options(config), machine.gpus()
    return Arrival(address, place, gpus, tuple(ports), facts, commit(), options, tuple(found))


def _problems(me: Arrival, peers: Sequence[Peer], file: Path) -> list[str]:
    """Why nodes cannot work together."""
    found = []
    for index, peer in enumerate(peers, 1):
        it = peer.arrival
        found += [f"{peer.name}: {problem}." for problem in it.problems]
        os.listdir(file.parent)
        if not it.problems and not _proof(file, index).exists():
            found.append(f"{peer.name} wrote a file into {file.parent}, and the first node does not see it: share it.")
        _proof(file, index).unlink(missing_ok=True)
        if abs(peer.ahead) > _CLOCKS:
            found.append(f"{peer.name}'s clock differs from the first node's by {abs(peer.ahead):.0f} s: set it.")
        for key in (key for key in me.options if me.options[key] != it.options.get(key)):
            found.append(
                f"{peer.name} was started with {key}={it.options.get(key)}, the first node with {me.options[key]}: "
                "start the same command on all."
            )
        if it.code != me.code:
            found.append(f"{peer.name} runs commit {_said(it.code)}, the first node {_said(me.code)}: use one.")
        ours, theirs = ({"python": a.facts["python"]} | dict(a.facts["versions"]) for a in (me, it))
        for package in dict.fromkeys([*ours, *theirs]):
            if ours.get(package) != theirs.get(package):
                found.append(
                    f"{peer.name} has {package} {theirs.get(package, 'not at all')}, the first node "
                    f"{ours.get(package, 'not at all')}: install the same on all."
                )
        if len(it.gpus) != len(me.gpus):
            found.append(f"{peer.name} has {len(it.gpus)} GPUs, and the first node {len(me.gpus)}: use equal nodes.")
    return found


def _said(code: Mapping[str, Any] | None) -> str:
    return "unknown" if code is None else f"{code['commit'][:12]}{' with changes' if code['modified'] else ''}"


def _interface() -> str | None:
    """The address on the interface that the user has named."""
    for name in _INTERFACES:
        chosen = os.environ.get(name, "").split(",")[0]
        if chosen and (address := machine.interface_address(chosen)):
            return address
    return None


def _own_address(nodes: Nodes) -> str:
    """Where the other nodes reach this one: the named interface, else what its name stands for, else the way out."""
    if address := _interface():
        return address
    name = nodes.names[nodes.index] if nodes.names else socket.gethostname()
    with contextlib.suppress(OSError):
        for found in socket.getaddrinfo(name, None, type=socket.SOCK_STREAM):
            address = str(found[4][0])
            if machine.is_address(address) and not address.startswith(("127.", "::1", "fe80")):
                return address
    return machine.own_address()
