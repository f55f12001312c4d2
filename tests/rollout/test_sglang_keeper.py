"""Keepers of servers on other machines: real processes that call rank 0; their servers end at once, without SGLang."""

import asyncio
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from megatron_rl.config import Config
from megatron_rl.errors import InputError
from megatron_rl.rollout.config import Served, SGLangConfig
from megatron_rl.rollout.sglang import started
from megatron_rl.rollout.sglang.replica import LostError, Replica
from megatron_rl.rollout.sglang.servers.hosts import HOSTS, Hosts, hosts_of
from megatron_rl.rollout.sglang.servers.keeper import SESSION, FarServer, Keeper
from megatron_rl.rollout.sglang.servers.process import Part
from megatron_rl.rollout.sglang.servers.spread import SpreadServer
from megatron_rl.rollout.sglang.started import Started, servers
from megatron_rl.system import machine
from megatron_rl.system.channel import KEY, written
from megatron_rl.system.control import Control, WorkerError
from tests.conftest import PATIENCE

PRIVATE = b"k" * 16


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def served(engines: int, folder: Path) -> Served:
    config = Config()
    config.rollout.engine, config.rollout.engines, config.run.folder = "sglang", engines, str(folder)
    return config.served()


@pytest.fixture
def control() -> Iterator[Control]:
    address = written("127.0.0.1", machine.free_low_port())
    control = Control(address, PRIVATE)
    control.session(SESSION)
    yield control
    control.close()


@pytest.fixture
def keeping(control: Control) -> Iterator[list["subprocess.Popen[bytes]"]]:
    env = os.environ | {KEY: PRIVATE.hex(), "PYTHONPATH": os.getcwd()}
    module = "megatron_rl.rollout.sglang.servers.keeper"
    kept = [
        subprocess.Popen([sys.executable, "-m", module, control.address, str(n), "127.0.0.1"], env=env) for n in (0, 1)
    ]
    yield kept
    for keeper in kept:
        keeper.kill()
        keeper.wait()


def start(control: Control, folder: Path) -> Started:
    """One server here, two with the first keeper, none on a machine between, one with the second."""
    hosts = Hosts((1, 2, 0, 1), (1, 1, 1, 1), control.address)
    (folder / "private").mkdir()
    return servers(served(4, folder), folder / "model", PRIVATE, folder / "private", folder / "logs", control, hosts)


def test_servers_of_other_machines(control: Control, keeping: list["subprocess.Popen[bytes]"], tmp_path: Path) -> None:
    made = start(control, tmp_path)
    assert [replica.name for replica in made.replicas] == ["sglang0", "sglang1", "sglang2", "sglang3"]
    assert len({replica.url for replica in made.replicas}) == 4
    assert not made.elsewhere and not made.shares  # this is one machine after all
    one, two, three = (replica.process for replica in made.replicas[1:])
    assert isinstance(one, FarServer) and isinstance(two, FarServer) and isinstance(three, FarServer)
    assert not one.started and not one.ended
    one.start()  # it finds no model
    assert one.started and one.pid
    until(lambda: one.ended)
    assert (tmp_path / "logs/sglang1.log").exists() and one.last_words().strip()
    assert not two.ended and not made.replicas[1].off
    one.kill()

    keeping[0].kill()  # and with it its machine
    until(lambda: bool(one.lost))
    assert made.replicas[1].off and made.replicas[2].off and not made.replicas[3].off
    assert "its machine is lost" in one.lost and "nothing" in one.last_words()
    one.kill()  # nothing is left to do
    with pytest.raises(WorkerError, match="its machine is lost"):
        two.start()
    three.start()
    family = psutil.Process(keeping[1].pid).children(recursive=True)
    for keeper in made.keepers:
        keeper.release()
    assert keeping[1].wait(timeout=PATIENCE) == 0
    until(lambda: not any(process.is_running() for process in family))


def test_a_server_on_two_machines_ends_with_one_of_them(
    control: Control, keeping: list["subprocess.Popen[bytes]"], tmp_path: Path
) -> None:
    rollout = served(1, tmp_path)
    rollout.rollout.sglang.tensor_parallel, rollout.rollout.sglang.nodes = 4, 2
    hosts = Hosts((0, 1, 1), (1, 0, 0), control.address, span=2)
    made = servers(rollout, tmp_path / "model", PRIVATE, tmp_path, tmp_path / "logs", control, hosts)
    (replica,) = made.replicas
    both = replica.process
    assert isinstance(both, SpreadServer) and replica.places == (machine.place(),) * 2
    assert not both.started and not both.ended and not both.lost
    both.start()
    assert both.started and both.pid == both.parts[0].pid
    until(lambda: both.ended)  # it finds no model
    assert "\n 0:" in both.last_words() or "\n 1:" in both.last_words()
    both.kill()
    both.start()
    keeping[1].kill()  # and with it its machine
    until(lambda: bool(both.lost))
    assert replica.off and both.ended and "its machine is lost" in both.lost
    first = both.parts[0].pid  # it may have ended for lack of a model by now
    both.kill()
    until(lambda: not psutil.pid_exists(first))
    for keeper in made.keepers:
        keeper.release()
    assert keeping[0].wait(timeout=PATIENCE) == 0


def test_one_whose_second_machine_is_lost_as_it_is_started_ends_on_the_first() -> None:
    class Part:
        running, lost = True, ""

        def __init__(self, lost: bool) -> None:
            self.goes = lost

        def start(self) -> None:
            if self.goes:
                raise WorkerError("keeper 1 did not answer start in 60 s")
            self.running = True

        def kill(self, gently: bool = False) -> None:
            self.running = False

    parts: list[Any] = [Part(False), Part(True)]
    replica = Replica("sglang0", "http://127.0.0.1:1", SpreadServer(parts), SGLangConfig(), None)  # type: ignore
    with pytest.raises(LostError, match="did not answer start"):
        asyncio.run(replica.restart("it ended"))
    assert not any(part.running for part in parts)


def test_how_its_parts_find_each_other(tmp_path: Path) -> None:
    rollout = served(1, tmp_path)
    rollout.rollout.sglang.tensor_parallel, rollout.rollout.sglang.nodes = 4, 2
    first, second = Keeper("::1", PRIVATE, tmp_path), Keeper("127.0.0.1", PRIVATE, tmp_path)
    meeting = first.free_address()
    for number, keeper in enumerate((first, second)):
        urls, shared = keeper.prepare(rollout, tmp_path, tmp_path, [7], 0, parts=[Part(number, 2, meeting)])
        assert len(urls) == 1 and not shared
    written = [yaml.safe_load((tmp_path / name).read_text()) for name in ("sglang7.yaml", "sglang7-1.yaml")]
    assert [each["node-rank"] for each in written] == [0, 1]
    assert {(each["nnodes"], each["tp-size"], each["dist-init-addr"]) for each in written} == {(2, 4, meeting)}
    assert written[0]["random-seed"] == written[1]["random-seed"]
    assert [each["host"] for each in written] == ["::1", "127.0.0.1"] and meeting.startswith("[::1]:")


def test_a_keeper_that_does_not_call_is_named(
    control: Control, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(started, "START_SECONDS", 0.2)
    with pytest.raises(InputError, match=r"keeper \[0, 1\] of 2 did not call"):
        start(control, tmp_path)


def test_where_the_servers_are_is_told_to_rank_0(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(HOSTS, raising=False)
    assert hosts_of(3, 8) == Hosts((3,), (8,))
    there = Hosts((0, 2, 2), (4, 0, 0), "[::1]:20001", 2)
    monkeypatch.setenv(HOSTS, there.written())
    assert hosts_of(3, 8) == there
