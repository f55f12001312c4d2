"""Runs a group of processes as one: they start together, and none outlives the others or their supervisor.

Each of them leads a session of its own, so that a terminal's Ctrl-C reaches the supervisor alone. Where a group is on
several machines, each has a supervisor, and one of these leads: the others are members of its group.
"""

import codecs
import contextlib
import os
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

from megatron_rl.errors import InputError, RunError
from megatron_rl.system.processes import BAD_INPUT, RUN_ENDED, UTF8, last_error, tied_to_this_process
from megatron_rl.system.supervision.logs import last_lines, told
from megatron_rl.system.supervision.members import LOST, Lead, Node
from megatron_rl.system.supervision.screen import LIVE, SHOWN, Screen

SETTLE = 1.0  # seconds in which the other processes may show that one of them had the first cause
DOUBT = 10.0  # the same, as long as all that failed say that another one has ended
FAILURE_GRACE = 2.0  # seconds between SIGTERM and SIGKILL after a failure: nothing is left to save
LEAST_GRACE = 10.0  # the same for services, when all others have ended well
LAST_LINES = 20  # of a failed process's log
# Gloo's, NCCL's and torch's store's words for it
_OTHERS_ENDED = (
    "closed by peer",
    "reset by peer",
    "Broken pipe",
    "remote process exited",
    "failed to recv, got 0 bytes",
)
_SAYS_WHY = (BAD_INPUT, RUN_ENDED)
_HANDLED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)
_SENT_TO_ALL = (-signal.SIGTERM, -signal.SIGUSR1)  # by a batch system, and we may be the last that it reaches


@dataclass(frozen=True)
class Process:
    """One process to run."""

    name: str
    command: Sequence[str]
    env: Mapping[str, str] = field(default_factory=dict)  # on top of this process's environment
    service: bool = False  # serves the others, and is ended after them unless they have ended it
    echo: bool = False  # its standard output goes to ours as well as to its log
    follows: bool = False  # ends by itself when the others have been asked to stop, and is not asked
    descriptors: Sequence[int] = ()  # of open files, which it inherits under the same numbers


@dataclass(frozen=True)
class Outcome:
    """How the group ended."""

    code: int  # 0 | 1 a process failed, or the run must not go on | 2 bad input | 75 a machine is lost | 128 + signal
    message: str = ""

    def require(self, otherwise: str, more: str = "") -> None:
        """Raises what a group that has not ended well stands for; ``otherwise`` says what was not done then."""
        if self.code == BAD_INPUT:
            raise InputError(self.message)
        if self.code > 128:
            raise KeyboardInterrupt(self.message)
        if self.code:
            raise RunError(" ".join(filter(None, (otherwise, self.message, more))))


def supervise(
    processes: Iterable[Process], logs: Path, grace: float = 10.0, stopping: str = "", nodes: Sequence[Node] = ()
) -> Outcome:
    """Run ``processes`` until all but the services have exited with 0; call it from the main thread.

    Each process keeps what it prints in ``logs``/{name}.log. The first one that fails ends them all. SIGINT, SIGTERM,
    SIGHUP and SIGUSR1 are passed on as SIGTERM, with ``grace`` seconds before SIGKILL; a second signal kills at once,
    but for SIGUSR1, by which a batch system says that there is time to save. A standard output that nobody reads any
    more counts as SIGPIPE.
    ``stopping`` is printed when processes do not end within a moment of the first signal. ``nodes`` are the machines
    that follow: one that only serves may be lost, and the others go on.
    """
    logs.mkdir(parents=True, exist_ok=True)
    with _Group(logs) as group:
        for node in nodes:
            group.add(node)
        for process in processes:
            group.start(process)
        group.wait(lambda: bool(group.signals or group.failed() or not group.running(service=False)))
        if group.signals:
            return _stop(group, grace, stopping)
        if failed := group.failed():
            if failed.code in _SENT_TO_ALL and group.wait(lambda: bool(group.signals), SETTLE):
                return _stop(group, grace, stopping)
            if failed.code not in _SAYS_WHY:
                group.settle(lambda: bool(group.signals))
            outcome = _explain(group.culprit() or failed)
            group.end(group.running(), FAILURE_GRACE)
            return outcome
        group.end(group.running(), LEAST_GRACE)
        return Outcome(0)


def follow(processes: Iterable[Process], logs: Path, lead: Lead) -> Outcome:
    """Run this machine's ``processes`` as a part of the group that another machine's supervisor leads.

    They end when the lead asks for it, or is gone, or one of them fails, or all but services have exited with 0; the
    lead is told. Signals are for the lead to answer: it is told of them, too. Returns how the supervisor itself ends:
    0 where the lead knows all, ``LOST`` without a lead.
    """
    logs.mkdir(parents=True, exist_ok=True)
    told = 0
    with _Group(logs, lead) as group:
        children = [group.start(process) for process in processes]
        serves = all(child.service for child in children)

        def over() -> bool:
            nonlocal told
            for number in group.signals[told:]:
                lead.asked(number)
            told = len(group.signals)
            done = not serves and not group.running(service=False)
            return lead.gone or lead.wants_end or bool(group.failed()) or done

        group.wait(over)
        if not (lead.gone or lead.wants_end) and (failed := group.failed()):
            if failed.code not in _SAYS_WHY:
                group.settle(lambda: lead.gone or lead.wants_end)
            outcome = _explain(group.culprit() or failed)
            lead.ended(outcome.code, outcome.message)
        group.end(group.running(), 0.0 if lead.gone else FAILURE_GRACE)
        lead.ended(0, "")
        return Outcome(LOST, "The connection to the first node was lost.") if lead.gone else Outcome(0)


def _stop(group: "_Group", grace: float, stopping: str) -> Outcome:
    """After a signal: let the processes finish what they must not break off, then end what is left."""
    name = signal.Signals(group.signals[0]).name
    how = f"Stopped by {name}."
    group.ask(group.running(service=False))
    if stopping and not group.wait(group.has_stopped, SETTLE):
        group.screen.line(f"{name}: {stopping}")
    if not group.wait(group.has_stopped, grace):
        how = f"Stopped by {name}; what was under way had not ended after {grace:.0f} s, and was broken off."
    elif group.urged > 1:
        how = f"Stopped by {name} and {signal.Signals(group.signals[-1]).name}, at once."
    elif (failed := group.failed()) and failed.code is not None and failed.code > 0:
        how = f"{how} {_explain(failed).message}"
    group.end(group.running(service=False), 0.0 if group.urged > 1 else FAILURE_GRACE)
    group.end(group.running(), FAILURE_GRACE)
    return Outcome(128 + group.signals[0], how)


class _Child:
    def __init__(self, process: Process, log: Path, screen: Screen) -> None:
        self.process, self.log_path, self.screen = process, log, screen
        self.service, self.follows = process.service, process.follows
        self.log: BinaryIO = log.open("ab")
        self.decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self.code: int | None = None  # exit code, once ended; negative: the signal
        self.popen = subprocess.Popen(
            tied_to_this_process(process.command),
            env={**os.environ, **UTF8, **(_watched(screen) if process.echo else {}), **process.env},
            pass_fds=process.descriptors,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE if process.echo else self.log,
            stderr=self.log,
            start_new_session=True,  # the terminal's Ctrl-C reaches the supervisor alone
        )
        self.pidfd = os.pidfd_open(self.popen.pid)
        if self.popen.stdout:
            os.set_blocking(
                self.popen.stdout.fileno(), False
            )  # its end may leave the pipe open in a process it started

    def signal(self, number: signal.Signals) -> None:
        if self.code is None:
            self.popen.send_signal(number)

    def relay(self) -> bool:
        """Pass on what it printed; False when there is nothing more."""
        assert self.popen.stdout is not None
        try:
            data = os.read(self.popen.stdout.fileno(), 65536)
        except BlockingIOError:
            return False
        shown = self.screen.write(self.decoder.decode(data, final=not data))
        self.log.write(shown.encode())
        self.log.flush()
        return bool(data)

    def reap(self) -> None:
        """After its end: kill what it left in its process group, which exists until its leader is reaped."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.popen.pid, signal.SIGKILL)
        while self.popen.stdout and self.relay():
            pass
        self.code = self.popen.wait()


class _Group:
    """The processes, and what has happened to them so far."""

    def __init__(self, logs: Path, lead: Lead | None = None) -> None:
        self.logs, self.lead = logs, lead
        self.children: list[_Child] = []
        self.nodes: list[Node] = []
        self.ended: list[_Member] = []  # in the order in which they ended
        self.signals: list[int] = []  # received by this process, or the first by another machine's supervisor
        self.passed_on = False  # whether that was the first: the same may be on its way to this process
        self.screen = Screen(sys.stdout)
        self.selector = selectors.DefaultSelector()

    def __enter__(self) -> "_Group":
        self.wakeup, self.wakeup_in = os.pipe()
        os.set_blocking(self.wakeup_in, False)
        self.previous_fd = signal.set_wakeup_fd(self.wakeup_in)
        handled = [n for n in _HANDLED if signal.getsignal(n) != signal.SIG_IGN]
        self.previous = {number: signal.signal(number, lambda *_: None) for number in handled}
        self.selector.register(self.wakeup, selectors.EVENT_READ, self._on_signal)
        if self.lead is not None:
            self.selector.register(self.lead, selectors.EVENT_READ, self._on_lead)
        return self

    def __exit__(self, kind: type[BaseException] | None, _: BaseException | None, __: TracebackType | None) -> None:
        self.end(self.running(), 0.0)
        self.screen.close()
        for child in self.children:
            os.close(child.pidfd)
            child.log.close()
            if child.popen.stdout:
                child.popen.stdout.close()
        for number, handler in self.previous.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(self.previous_fd)
        self.selector.close()
        os.close(self.wakeup)
        os.close(self.wakeup_in)

    def add(self, node: Node) -> None:
        """Another machine's part of the group, which has been started there."""
        self.nodes.append(node)
        self.selector.register(node, selectors.EVENT_READ, lambda: self._on_node(node))

    def start(self, process: Process) -> "_Child":
        child = _Child(process, self.logs / f"{process.name}.log", self.screen)
        self.children.append(child)
        self.selector.register(child.pidfd, selectors.EVENT_READ, lambda: self._on_end(child))
        if child.popen.stdout:
            self.selector.register(child.popen.stdout, selectors.EVENT_READ, lambda: self._on_output(child))
        return child

    def running(self, service: bool | None = None) -> "list[_Member]":
        """Those that have not ended; only services, or only the others, when asked for."""
        members: list[_Member] = [*self.children, *self.nodes]
        return [m for m in members if m.code is None and service in (None, m.service)]

    @property
    def urged(self) -> int:
        """How many of the signals are such that a second one leaves no time to save."""
        return sum(number != signal.SIGUSR1 for number in self.signals)

    def failed(self) -> "_Member | None":
        """The first that failed, but for machines whose services the others can do without."""
        return next((m for m in self.ended if m.code != 0 and not _can_be_missed(m)), None)

    def culprit(self) -> "_Member | None":
        """One that ended with an InputError or a RunError, or a lost machine: it says why the others failed.

        Machines that only serve can be missed, unless all of them are lost. Without such the first that failed, unless
        it failed because another had.
        """
        served = [node for node in self.nodes if node.service]
        missed = any(node.code != LOST for node in served)
        ended = [m for m in self.ended if not (missed and _can_be_missed(m))]
        told = (m for code in (*_SAYS_WHY, LOST) for m in ended if m.code == code)
        return next(told, next((m for m in ended if m.code != 0 and not _suffered(m)), None))

    def settle(self, until: Callable[[], bool]) -> None:
        """Wait, after a failure, until it is likely to be known which process had the first cause."""
        self.wait(lambda: not self.running() or until(), SETTLE)
        self.wait(lambda: not self.running() or until() or self.culprit() is not None, DOUBT)

    def has_stopped(self) -> bool:
        """Whether it makes no sense to wait, after a signal: all have ended, one has failed, or there is another."""
        return self.urged > 1 or bool(self.failed()) or not self.running(service=False)

    def wait(self, until: Callable[[], bool], seconds: float | None = None) -> bool:
        """Handle events until the condition holds (True) or the time is over (False)."""
        deadline = float("inf") if seconds is None else time.monotonic() + seconds
        while not until():
            now = time.monotonic()
            if now >= deadline:
                return False
            for key, _ in self.selector.select(min(deadline - now, self.screen.tick())):
                if key.fileobj in self.selector.get_map():  # an earlier event may have ended it
                    key.data()
            if self.screen.unread and signal.SIGPIPE not in self.signals:
                self.signals.append(signal.SIGPIPE)  # as when the terminal is closed (SIGHUP)
        return True

    def ask(self, members: "Sequence[_Member]") -> None:
        """Ask those to stop that do not follow others."""
        for member in members:
            if isinstance(member, _Child) and not member.follows:
                member.signal(signal.SIGTERM)

    def end(self, members: "Sequence[_Member]", grace: float) -> None:
        """SIGTERM, then SIGKILL after ``grace`` seconds or at the next signal that this process receives."""
        received = self.urged
        if grace > 0:
            for member in members:
                member.signal(signal.SIGTERM)
            self.wait(lambda: self.urged > received or all(m.code is not None for m in members), grace)
        for member in members:
            member.signal(signal.SIGKILL)
        while any(m.code is None for m in members):
            self.wait(lambda: all(m.code is not None for m in members))

    def _on_signal(self) -> None:
        received = [number for number in os.read(self.wakeup, 64) if number in self.previous]
        if received and self.passed_on:
            received.pop(0)
            self.passed_on = False
        self.signals += received
        self.screen.may_be_gone = True  # SIGHUP says that the terminal is

    def _on_end(self, child: _Child) -> None:
        self.selector.unregister(child.pidfd)
        child.reap()
        self.ended.append(child)
        self._forget_output(child)

    def _on_node(self, node: Node) -> None:
        node.hear()
        if node.asked and not self.signals:
            self.signals.append(node.asked)
            self.passed_on = True
        if node.code is not None:
            self.selector.unregister(node)
            self.ended.append(node)
            if _can_be_missed(node) and node.code != 0:
                self.screen.line(f"warning: {node.message}\nThe run goes on without its engines.")

    def _on_lead(self) -> None:
        assert self.lead is not None
        self.lead.hear()
        if self.lead.closed:
            self.selector.unregister(self.lead)

    def _on_output(self, child: _Child) -> None:
        if not child.relay():
            self._forget_output(child)

    def _forget_output(self, child: _Child) -> None:
        if child.popen.stdout and child.popen.stdout in self.selector.get_map():
            self.selector.unregister(child.popen.stdout)


def _watched(screen: Screen) -> dict[str, str]:
    """The environment of a process whose output is shown."""
    return {SHOWN: "1"} | ({LIVE: "1"} if screen.terminal else {})


_Member = _Child | Node


def _can_be_missed(member: _Member) -> bool:
    return isinstance(member, Node) and member.service and member.code != BAD_INPUT


def _suffered(member: _Member) -> bool:
    """Whether it failed because another one had ended, by what it said last."""
    said = member.message if isinstance(member, Node) else "\n".join(last_lines(member.log_path)[-LAST_LINES:])
    return any(words in said for words in _OTHERS_ENDED)


def _explain(child: _Member) -> Outcome:
    """What a failed process said: its InputError alone, or the end of its log."""
    if isinstance(child, Node):
        assert child.code is not None
        return Outcome(child.code, child.message)
    lines = last_lines(child.log_path)
    if child.code in _SAYS_WHY and (said := last_error(lines)) is not None:
        return Outcome(BAD_INPUT if child.code == BAD_INPUT else 1, said)
    assert child.code is not None
    how = (
        f"was killed by {signal.Signals(-child.code).name}" if child.code < 0 else f"ended with exit code {child.code}"
    )
    if child.code == -signal.SIGKILL:
        how += " (is the machine out of memory?)"
    last = told(lines, LAST_LINES) or "\n  (empty)"
    return Outcome(1, f"{child.process.name} {how}. The end of {child.log_path}:{last}")
