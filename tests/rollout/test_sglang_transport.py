"""Which transport a run takes, and where engines find its rank 0."""

import socket

import pytest

from megatron_rl.errors import InputError
from megatron_rl.rollout.config import SGLangConfig
from megatron_rl.rollout.sglang.transport import chosen_transport, control_host, far_hosts
from megatron_rl.system import machine

FAR = "192.0.2.7"  # for documentation: nobody's
HERE = [machine.place()] * 2
ELSEWHERE = [machine.place(), "another boot"]


@pytest.mark.parametrize(
    ("urls", "places", "gpus", "expected"),
    [
        ("", HERE, (), "shared_memory"),
        ("", HERE, (1,), "cuda_ipc"),
        ("http://127.0.0.1:1,http://localhost:2", HERE, (), "shared_memory"),
        (f"http://127.0.0.1:1, http://{FAR}:2", HERE, (), "gloo"),
        (f"http://{FAR}:2", HERE, (1,), "nccl"),
        ("", ELSEWHERE, (), "gloo"),
        ("", ELSEWHERE, (1,), "nccl"),
    ],
)
def test_the_fastest_that_reaches(
    urls: str, places: list[str], gpus: tuple[int, ...], expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "gpus", lambda: gpus)
    assert chosen_transport(SGLangConfig(urls=urls), places) == expected


def test_one_that_is_asked_for() -> None:
    for name in ("gloo", "files", "shared_memory"):
        assert chosen_transport(SGLangConfig(transport=name), HERE) == name
    with pytest.raises(InputError, match=f"shared_memory reads the trainer's memory, but the server at {FAR} runs on"):
        chosen_transport(SGLangConfig(transport="shared_memory", urls=f"http://{FAR}:1"), HERE)
    with pytest.raises(InputError, match="but trainer ranks run on another machine"):
        chosen_transport(SGLangConfig(transport="shared_memory"), ELSEWHERE)


def test_full_tensors_are_read_by_rank_0() -> None:
    assert chosen_transport(SGLangConfig(swap="disk", urls=f"http://{FAR}:1"), HERE) == "shared_memory"
    with pytest.raises(InputError, match=r"rollout\.sglang\.swap=disk needs all trainer ranks on one machine"):
        chosen_transport(SGLangConfig(swap="disk"), ELSEWHERE)


def test_rank_0_listens_where_the_engines_are(monkeypatch: pytest.MonkeyPatch) -> None:
    assert control_host(SGLangConfig()) == "" == control_host(SGLangConfig(urls="http://localhost:1"))
    assert control_host(SGLangConfig(host="127.0.0.1")) == "127.0.0.1"
    monkeypatch.setattr(machine, "address_towards", lambda host: f"towards {host}")
    assert control_host(SGLangConfig(urls=f"http://{FAR}:1")) == f"towards {FAR}"


def test_this_machine_and_others(monkeypatch: pytest.MonkeyPatch) -> None:
    assert machine.is_here("localhost") and not machine.is_here(FAR)
    assert machine.is_address("127.0.0.1")
    assert not any(map(machine.is_address, (FAR, "0.0.0.0", "nowhere", "")))
    assert machine.address_towards("127.0.0.1") == "127.0.0.1"
    monkeypatch.setattr(socket, "gethostbyname", lambda _: (_ for _ in ()).throw(socket.gaierror(-2, "unknown")))
    with pytest.raises(InputError, match="the host nowhere is not known here"):
        far_hosts(SGLangConfig(urls="http://nowhere:1"))
    assert 20000 <= machine.free_low_port() < 30000
