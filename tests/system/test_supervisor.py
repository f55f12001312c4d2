"""Supervision of real processes: how a group ends, what it says, and that nobody is left."""

import os
import signal
import socket
import sys
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest

from megatron_rl.system.supervision import screen, supervisor
from megatron_rl.system.supervision.members import LOST, Lead, Node
from megatron_rl.system.supervision.supervisor import Outcome, Process, follow, supervise
from tests.conftest import PATIENCE
from tests.system.supervised import SLEEP, Supervised, gone, wait_for

# Waits for the end of the process that has written its number to pid in this folder.
UNTIL_GONE = """
import os, time
while not os.path.exists(r'{0}/pid') or not (pid := open(r'{0}/pid').read()): time.sleep(.01)
while os.path.exists('/proc/' + pid): time.sleep(.01)
"""


def python(name: str, code: str, **options: Any) -> Process:
    return Process(name, [sys.executable, "-c", code], **options)


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """However busy the machine is, no silence is long enough to be broken."""
    monkeypatch.setattr(screen, "LINE", PATIENCE)


def test_who_fails_late_is_named_and_not_who_lost_him_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisor, "SETTLE", 0.0)
    monkeypatch.setattr(supervisor, "DOUBT", PATIENCE)
    noted = f"import os, sys; open(r'{tmp_path}/pid', 'w').write(str(os.getpid()))"
    lost = f"{noted}; sys.exit('Connection closed by peer')"
    late = python("rank1", f"{UNTIL_GONE.format(tmp_path)}raise ValueError('the cause')")
    outcome = supervise([python("rank0", lost), late], tmp_path / "logs")
    assert outcome.code == 1 and outcome.message.startswith("rank1 ended with exit code 1")
    assert "the cause" in outcome.message


def test_where_all_lost_another_the_first_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisor, "DOUBT", 0.0)
    lost = "import sys; sys.exit('Connection reset by peer')"
    outcome = supervise([python("rank0", lost), python("rank1", SLEEP)], tmp_path / "logs")
    assert outcome.message.startswith("rank0 ended") and "reset by peer" in outcome.message


def test_success_ends_the_service_after_the_workers(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervisor, "LEAST_GRACE", PATIENCE)
    service = (
        "import os, signal, sys, time\n"
        f"signal.signal(signal.SIGTERM, lambda *_: (open(r'{tmp_path}/ended', 'w').close(), os._exit(0)))\n"
        f"open(r'{tmp_path}/ready', 'w').close()\n"
        "time.sleep(600)"
    )
    worker = (
        "import os, sys, time\n"
        f"while not os.path.exists(r'{tmp_path}/ready'): time.sleep(.01)\n"
        f"print('é' * 100_000, os.path.exists(r'{tmp_path}/ended')); print('aside', file=sys.stderr)"
    )
    outcome = supervise(
        [python("engine0", service, service=True), python("rank0", worker, echo=True), python("rank1", worker)],
        tmp_path / "logs",
    )
    assert outcome == Outcome(0)
    assert (tmp_path / "ended").exists()
    expected = "é" * 100_000 + " False\n"
    assert capfd.readouterr().out == expected  # rank 0's standard output, nothing of the others
    for rank in ("rank0", "rank1"):
        log = (tmp_path / f"logs/{rank}.log").read_text()
        assert log.replace("aside\n", "", 1) == expected  # both streams, complete


def test_a_failing_worker_ends_all(tmp_path: Path) -> None:
    failing = "import sys\nfor i in range(100): print('line', i, file=sys.stderr)\nsys.exit(7)"
    pids = tmp_path / "pid"
    sleeping = f"import os; open(r'{pids}', 'w').write(str(os.getpid())); {SLEEP}"
    outcome = supervise([python("rank0", sleeping), python("rank1", failing)], tmp_path)
    assert outcome.code == 1
    assert "rank1 ended with exit code 7" in outcome.message
    assert str(tmp_path / "rank1.log") in outcome.message
    assert "line 99" in outcome.message and "line 80" in outcome.message and "line 79" not in outcome.message
    assert not pids.exists() or not pids.read_text() or gone(int(pids.read_text()))


def test_bad_input_is_the_cause_even_when_another_process_fails_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervisor, "SETTLE", PATIENCE)
    first = f"import os; open(r'{tmp_path}/pid', 'w').write(str(os.getpid())); raise SystemExit(1)"
    bad = (
        f"{UNTIL_GONE.format(tmp_path)}"
        "from megatron_rl.errors import InputError\nfrom megatron_rl.system.processes import run\n"
        "def main():\n    print('a warning'); raise InputError('data.jsonl, row 3: no answer.')\n"
        "run(main)"
    )
    outcome = supervise([python("rank0", first), python("rank1", bad)], tmp_path / "logs")
    assert outcome == Outcome(2, "data.jsonl, row 3: no answer.")


def test_a_run_that_must_not_go_on_says_why_and_is_no_bad_input(tmp_path: Path) -> None:
    ends = (
        "from megatron_rl.errors import RunError\nfrom megatron_rl.system.processes import run\n"
        "def main():\n    raise RunError('Step 7: the loss is nan.')\nrun(main)"
    )
    outcome = supervise([python("rank0", f"import time; time.sleep(.3)\n{ends}"), python("rank1", ends)], tmp_path)
    assert outcome == Outcome(1, "Step 7: the loss is nan.")


def test_what_a_process_does_is_shown_but_not_logged(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    code = "from megatron_rl.system.supervision.screen import activity\nactivity('building'); print('built')"
    supervise([python("rank0", code, echo=True), python("rank1", code)], tmp_path)
    assert capfd.readouterr().out == "built\n"  # no silence was long enough
    assert [(tmp_path / f"rank{rank}.log").read_text(encoding="utf-8") for rank in (0, 1)] == ["built\n"] * 2


def test_an_open_file_is_handed_on(tmp_path: Path) -> None:
    with (tmp_path / "text").open("w+") as file:
        file.write("handed")
        file.flush()
        code = f"import os; os.lseek({file.fileno()}, 0, 0); raise SystemExit(os.read({file.fileno()}, 9) != b'handed')"
        assert supervise([python("rank0", code, descriptors=[file.fileno()])], tmp_path) == Outcome(0)


def test_an_error_of_several_lines_is_told_whole(tmp_path: Path) -> None:
    bad = (
        "import atexit, sys\n"
        "from megatron_rl.errors import InputError\nfrom megatron_rl.system.processes import run\n"
        "atexit.register(lambda: print('Traceback (most recent call last):\\n  File', file=sys.stderr))\n"
        "def main():\n    print('  aside'); raise InputError('It said:\\n  a word\\n\\nanother')\n"
        "run(main)"
    )
    outcome = supervise([python("rank0", bad)], tmp_path)
    assert outcome == Outcome(2, "It said:\n  a word\n  \n  another")


def test_a_killed_worker_is_named_with_its_signal(tmp_path: Path) -> None:
    outcome = supervise([python("rank0", "import os; os.kill(os.getpid(), 9)")], tmp_path)
    assert outcome.code == 1
    assert outcome.message.startswith("rank0 was killed by SIGKILL (is the machine out of memory?).")
    assert outcome.message.endswith("(empty)")


def test_a_service_that_fails_ends_the_workers(tmp_path: Path) -> None:
    outcome = supervise([python("rank0", SLEEP), python("engine0", "raise SystemExit(3)", service=True)], tmp_path)
    assert outcome.code == 1
    assert outcome.message.startswith("engine0 ended with exit code 3")


def test_a_service_may_be_ended_by_the_workers(tmp_path: Path) -> None:
    worker = f"import os, time\nwhile not os.path.exists(r'{tmp_path}/ended'): time.sleep(.01)"
    service = f"open(r'{tmp_path}/ended', 'w').close()"
    assert supervise([python("engine0", service, service=True), python("rank0", worker)], tmp_path) == Outcome(0)


def test_what_a_process_started_ends_with_it(tmp_path: Path) -> None:
    code = (
        "import subprocess, sys\n"
        f"child = subprocess.Popen([sys.executable, '-c', '{SLEEP}'])\n"
        f"open(r'{tmp_path}/pid', 'w').write(str(child.pid))"
    )
    assert supervise([python("rank0", code, echo=True)], tmp_path).code == 0
    pid = int((tmp_path / "pid").read_text())
    wait_for(lambda: gone(pid), "the grandchild lives on")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_lets_the_workers_finish(tmp_path: Path, number: signal.Signals) -> None:
    saving = f"import signal, os\nsignal.signal(15, lambda *_: (open(r'{tmp_path}/saved','w').close(), os._exit(0)))"
    supervised = Supervised(tmp_path, saving, "pass")
    supervised.popen.send_signal(number)
    assert supervised.outcome() == [128 + number, f"Stopped by {number.name}."]
    assert (tmp_path / "saved").exists()
    assert all(map(gone, supervised.pids))


def test_a_reader_that_has_gone_lets_the_workers_finish(tmp_path: Path) -> None:
    """As a terminal that is closed does: what is piped to ``head`` saves, too."""
    saved, speak = tmp_path / "saved", tmp_path / "speak"
    saving = (
        f"# echoed\nimport os, signal, threading, time\n"
        f"signal.signal(15, lambda *_: (open(r'{saved}','w').close(), os._exit(0)))\n"
        f"def wait():\n    while not os.path.exists(r'{speak}'): time.sleep(.01)\n    print('step 1', flush=True)\n"
        "threading.Thread(target=wait).start()"
    )
    reader, writer = os.pipe()
    supervised = Supervised(tmp_path, saving, stdout=writer)
    os.close(writer)
    os.close(reader)
    speak.touch()
    assert supervised.outcome() == [128 + signal.SIGPIPE, "Stopped by SIGPIPE."]
    assert saved.exists() and (tmp_path / "p0.log").read_text() == "step 1\n"


def test_a_second_signal_kills_at_once(tmp_path: Path) -> None:
    stubborn = f"import signal\nsignal.signal(15, lambda *_: open(r'{tmp_path}/asked','w').close())"
    supervised = Supervised(tmp_path, stubborn, grace=600.0)
    supervised.popen.send_signal(signal.SIGINT)
    wait_for((tmp_path / "asked").exists, "the first signal was not passed on")
    assert not gone(supervised.pids[0])
    supervised.popen.send_signal(signal.SIGINT)
    assert supervised.outcome()[0] == 130
    assert all(map(gone, supervised.pids))


def test_sigusr1_leaves_time_to_save_however_often_it_comes(tmp_path: Path) -> None:
    """And so does the SIGTERM by which a batch system follows it."""
    asked, save = tmp_path / "asked", tmp_path / "save"
    saving = (
        f"import os, signal, threading, time\nsignal.signal(15, lambda *_: open(r'{asked}', 'a').write('x'))\n"
        f"def wait():\n    while not os.path.exists(r'{save}'): time.sleep(.01)\n    os._exit(0)\n"
        "threading.Thread(target=wait).start()"
    )
    supervised = Supervised(tmp_path, saving, grace=600.0)
    for number in (signal.SIGUSR1, signal.SIGUSR1, signal.SIGTERM):
        supervised.popen.send_signal(number)
        wait_for(asked.exists, "the first signal was not passed on")
    assert supervised.popen.poll() is None
    save.touch()
    assert supervised.outcome() == [138, "Stopped by SIGUSR1."]


@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGTERM])
def test_a_signal_to_every_process_of_a_job_is_one_request(tmp_path: Path, number: signal.Signals) -> None:
    """The worker dies of SIGTERM as it has nothing to save; nobody dies of SIGUSR1 but whom the supervisor ends."""
    supervised = Supervised(tmp_path, "pass", "# follows", settle=PATIENCE)
    for pid in (*supervised.pids, supervised.popen.pid):
        os.kill(pid, number)
    assert supervised.outcome() == [128 + number, f"Stopped by {number.name}."]
    assert all(map(gone, supervised.pids))


def test_workers_that_ignore_the_signal_are_killed_after_the_grace(tmp_path: Path) -> None:
    supervised = Supervised(tmp_path, "import signal\nsignal.signal(15, signal.SIG_IGN)", grace=0.3)
    supervised.popen.send_signal(signal.SIGTERM)
    code, message = supervised.outcome()
    assert code == 143 and "had not ended after 0 s, and was broken off" in str(message)
    assert all(map(gone, supervised.pids))


def test_who_follows_is_not_asked_and_may_finish_too(tmp_path: Path) -> None:
    """The first saves with the second, and both end by themselves."""
    first = (
        f"import os, signal, time\ndef save(*_):\n    open(r'{tmp_path}/save','w').close()\n"
        f"    while not os.path.exists(r'{tmp_path}/saved'): time.sleep(.01)\n    os._exit(0)\nsignal.signal(15, save)"
    )
    second = (
        f"# follows\nimport os, threading, time\ndef wait():\n"
        f"    while not os.path.exists(r'{tmp_path}/save'): time.sleep(.01)\n    time.sleep(.3)\n"
        f"    open(r'{tmp_path}/saved','w').close(); os._exit(0)\nthreading.Thread(target=wait).start()"
    )
    supervised = Supervised(tmp_path, first, second)
    supervised.popen.send_signal(signal.SIGTERM)
    assert supervised.outcome() == [143, "Stopped by SIGTERM."]
    assert (tmp_path / "saved").exists()


def test_who_follows_is_ended_when_the_first_does_not_save(tmp_path: Path) -> None:
    supervised = Supervised(tmp_path, "pass", "# follows", grace=600.0)
    supervised.popen.send_signal(signal.SIGTERM)
    assert supervised.outcome() == [143, "Stopped by SIGTERM."]
    assert all(map(gone, supervised.pids))


def test_killing_the_supervisor_leaves_no_orphan(tmp_path: Path) -> None:
    supervised = Supervised(tmp_path, "import signal\nsignal.signal(15, signal.SIG_IGN)", "pass")
    os.kill(supervised.popen.pid, signal.SIGKILL)
    supervised.popen.wait(PATIENCE)
    wait_for(lambda: all(map(gone, supervised.pids)), "a child outlived its supervisor")


def two_ends() -> tuple[Connection, Connection]:
    one, other = socket.socketpair()
    return Connection(one.detach()), Connection(other.detach())


def test_a_machine_that_follows_ends_with_the_first(tmp_path: Path) -> None:
    """The first process of the group here ends well; what serves on the other machine is told to end."""
    here, there = two_ends()
    with ThreadPoolExecutor(1) as pool:
        orders = pool.submit(there.recv)
        node = Node("node 1", here, service=True)
        assert supervise([python("rank0", "pass")], tmp_path, nodes=[node]) == Outcome(0)
        assert orders.result() == ("end",)


@pytest.mark.parametrize("service", [True, False])
def test_a_machine_that_is_lost(tmp_path: Path, capfd: pytest.CaptureFixture[str], service: bool) -> None:
    """One that trains ends the group, with a code of its own; without one that only serves the others go on."""
    here, there = two_ends()
    other = two_ends()
    go_on = "import time; time.sleep(1)" if service else SLEEP
    nodes = [Node("node 1", here, service), Node("node 2", other[0], service=True)]
    there.close()
    outcome = supervise([python("rank0", go_on)], tmp_path, nodes=nodes)
    assert outcome.code == (0 if service else LOST)
    assert ("node 1 is lost" in outcome.message) == (not service)
    assert ("The run goes on without its engines" in capfd.readouterr().out) == service


def test_the_last_machine_that_serves_says_why_the_run_failed(tmp_path: Path) -> None:
    here, there = two_ends()
    there.close()
    outcome = supervise([python("rank0", "raise SystemExit(1)")], tmp_path, nodes=[Node("node 1", here, True)])
    assert outcome.code == LOST and "node 1 is lost" in outcome.message


def test_what_failed_on_another_machine_is_told(tmp_path: Path) -> None:
    here, there = two_ends()
    there.send(("ended", 2, "data.path is not there."))
    outcome = supervise([python("rank0", SLEEP)], tmp_path, nodes=[Node("node 1", here)])
    assert outcome == Outcome(2, "On node 1: data.path is not there.")


def test_a_signal_to_another_machine_stops_all(tmp_path: Path) -> None:
    """The first rank is asked to stop, and the other machine ends when its own ranks have."""
    here, there = two_ends()
    ready = tmp_path / "ready"
    stops = f"import signal, sys; signal.signal(15, lambda *_: sys.exit(0)); open(r'{ready}', 'w'); signal.pause()"
    with ThreadPoolExecutor(1) as pool:

        def end() -> None:
            wait_for(ready.exists, "the first rank is ready")
            there.send(("asked", signal.SIGUSR1))
            there.send(("ended", 0, ""))

        pool.submit(end)
        outcome = supervise([python("rank0", stops)], tmp_path, PATIENCE, nodes=[Node("node 1", here)])
    assert outcome.code == 128 + signal.SIGUSR1


def test_following(tmp_path: Path) -> None:
    """Processes end when the lead says so or is gone; one that fails is told to it."""
    pids = tmp_path / "pid"
    service = python("engine0", f"import os; open(r'{pids}', 'w').write(str(os.getpid())); {SLEEP}", service=True)
    for last_words, code in ((("end",), 0), (None, LOST)):
        here, there = two_ends()
        pids.unlink(missing_ok=True)
        with ThreadPoolExecutor(1) as pool:

            def lead(last_words=last_words, there=there) -> None:
                wait_for(lambda: pids.exists() and pids.read_text(), "the engine runs")
                if last_words:
                    there.send(last_words)
                else:
                    there.close()

            pool.submit(lead)
            assert follow([service], tmp_path, Lead(here)).code == code
        assert gone(int(pids.read_text()))
        if last_words:
            assert there.recv() == ("ended", 0, "")
    here, there = two_ends()
    assert follow([python("rank3", "raise SystemExit(7)"), service], tmp_path, Lead(here)) == Outcome(0)
    kind, code, said = there.recv()
    assert (kind, code) == ("ended", 1) and "rank3 ended with exit code 7" in said
    here, there = two_ends()
    assert follow([python("rank3", "pass"), service], tmp_path, Lead(here)) == Outcome(0)
    assert there.recv() == ("ended", 0, "")
