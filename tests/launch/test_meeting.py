"""Supervisors of several machines that meet: real connections, the others in threads."""

import json
import os
import socket
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from megatron_rl.config import Config
from megatron_rl.errors import InputError
from megatron_rl.launch import meeting
from megatron_rl.launch.meeting import gathered, join, sweep
from megatron_rl.launch.nodes import ALONE, Nodes
from tests.conftest import PATIENCE


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Config:
    for name in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"):
        monkeypatch.delenv(name, raising=False)
    config = Config()
    config.run.folder, config.run.name = str(tmp_path / "runs"), "r"
    return config


def node(index: int, count: int = 3) -> Nodes:
    return Nodes(count, index, "slurm7.0.0", number=7)


def others(config: Config, count: int = 3) -> list[Any]:
    pool = ThreadPoolExecutor(count)
    return [pool.submit(join, config, node(index, count)) for index in range(1, count)]


def test_all_nodes_are_told_what_to_do(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(meeting, "_CLOCKS", 0.0)  # however far apart they call in, they are asked for the same time
    arrived = others(config)
    with gathered(config, node(0)) as (address, peers):
        (file,) = (path for path in Path(config.run.folder).iterdir() if path.is_file())
        assert file.name == ".r.slurm7.0.0"
        assert file.stat().st_mode & 0o777 == 0o600  # the key is in it
        port = int(json.loads(file.read_text())["address"].rpartition(":")[2])
        assert 20000 <= port < 30000
        assert [peer.name for peer in peers] == ["node 1", "node 2"]
        assert all(len(set(peer.arrival.ports)) == 64 for peer in peers)
        for number, peer in enumerate(peers):
            peer.say("start", number)
        assert [arrival.result()[1] for arrival in arrived] == [0, 1]
        assert address
    assert not list(Path(config.run.folder).iterdir())  # nothing is left


def test_where_nothing_is_to_do_they_end(config: Config) -> None:
    arrived = others(config)
    with gathered(config, node(0)):
        pass
    assert [arrival.result()[1] for arrival in arrived] == [None, None]


def test_alone_nobody_is_waited_for(config: Config) -> None:
    with gathered(config, ALONE) as (address, peers):
        assert (address, peers) == ("127.0.0.1", [])
    assert not Path(config.run.folder).exists()


def test_who_does_not_come_is_named(config: Config) -> None:
    config.launch.meet_seconds = 3.0
    arrived = ThreadPoolExecutor(1).submit(join, config, node(2))
    with (
        pytest.raises(InputError, match=r"Not all of the 3 nodes .* 3 s .*node \[1(, 2)?\] of 3 did not call"),
        gathered(config, node(0)),
    ):
        pass
    with pytest.raises(InputError, match=r"The first node has ended before the run began|found no way"):
        arrived.result()
    assert not list(Path(config.run.folder).glob(".r.slurm*0"))


def test_a_file_that_does_not_appear(config: Config) -> None:
    config.launch.meet_seconds = 0.5
    with pytest.raises(InputError, match=r"node 1 found no way .*\.r\.slurm7\.0\.0, which the first"):
        join(config, node(1))
    Path(config.run.folder).mkdir()
    with socket.socket() as taken, pytest.raises(InputError, match="nobody answers"):
        taken.bind(("127.0.0.1", 0))  # and does not listen
        stale = {"address": f"127.0.0.1:{taken.getsockname()[1]}", "key": "00" * 16}  # of a first node that was killed
        (Path(config.run.folder) / ".r.slurm7.0.0").write_text(json.dumps(stale))
        join(config, node(1))


def test_a_stale_file_is_waited_out(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    refused, call = threading.Event(), meeting.call_in

    def calling(*arguments: Any) -> Any:
        try:
            return call(*arguments)
        except OSError:
            refused.set()
            raise

    monkeypatch.setattr(meeting, "call_in", calling)
    Path(config.run.folder).mkdir()
    (Path(config.run.folder) / ".r.slurm7.0.0").write_text('{"address": "127.0.0.1:9", "key": "00"}')
    arrived = others(config, 2)
    assert refused.wait(PATIENCE)
    with gathered(config, node(0, 2)) as (_, peers):
        peers[0].say("start", "job")
    assert arrived[0].result()[1] == "job"


Change = Callable[[meeting.Arrival], meeting.Arrival]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            lambda it: replace(it, options=dict(it.options) | {"run.steps": 7}),
            "node 1 was started with run.steps=7, the first node with 100",
        ),
        (lambda it: replace(it, code={"commit": "f" * 40, "modified": True}), "node 1 runs commit ffffffffffff with"),
        (lambda it: replace(it, gpus=(1, 2)), "node 1 has 2 GPUs, and the first node 0"),
        (lambda it: replace(it, facts=it.facts | {"python": "3.9.1"}), "node 1 has python 3.9.1, the first node 3"),
        (lambda it: replace(it, facts=it.facts | {"versions": {}}), "node 1 has torch not at all, the first node 2"),
        (lambda it: replace(it, problems=("it does not see model.path=/m",)), "node 1: it does not see model.path=/m"),
    ],
)
def test_nodes_that_cannot_work_together(
    config: Config, monkeypatch: pytest.MonkeyPatch, change: Change, said: str
) -> None:
    arrival = meeting._arrival

    def changed(*arguments: Any) -> meeting.Arrival:
        found = arrival(*arguments)
        return change(found) if threading.current_thread() is not threading.main_thread() else found

    monkeypatch.setattr(meeting, "_arrival", changed)
    arrived = others(config, 2)
    with pytest.raises(InputError, match=said), gathered(config, node(0, 2)):
        pass
    with pytest.raises(InputError, match="This node cannot take part"):
        arrived[0].result()
    assert not list(Path(config.run.folder).iterdir())


@pytest.mark.parametrize("ahead", [3600, -3600])
def test_a_clock_that_is_wrong(config: Config, monkeypatch: pytest.MonkeyPatch, ahead: int) -> None:
    now, first = time.time, threading.main_thread()
    monkeypatch.setattr(time, "time", lambda: now() + ahead * (threading.current_thread() is not first))
    arrived = others(config, 2)
    differs = "node 1's clock differs from the first node's by 3(60|59)"
    with pytest.raises(InputError, match=differs), gathered(config, node(0, 2)):
        pass
    with pytest.raises(InputError, match="This node cannot take part"):
        arrived[0].result()


def test_a_folder_that_nodes_do_not_share(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(meeting, "_prove_shared", lambda *_: [])  # it writes where the first node does not look
    arrived = others(config, 2)
    with pytest.raises(InputError, match=r"node 1 wrote a file .* does not see it"), gathered(config, node(0, 2)):
        pass
    with pytest.raises(InputError):
        arrived[0].result()


def test_what_killed_jobs_left_is_removed(config: Config) -> None:
    folder = Path(config.run.folder)
    folder.mkdir()
    kept = [".r.slurm7.0.0", ".r.slurm7.0.0.node1", ".other.slurm6.0.0", ".r.yaml", ".r.x.slurm1.0.0"]
    for name in (*kept, ".r.slurm6.0.0", ".r.slurm6.0.1.node2", ".r.torchrun-abc.0"):
        (folder / name).write_text("")
    sweep(config, node(0))
    assert sorted(os.listdir(folder)) == sorted(kept)
