"""A server in the foreground: where it may listen, and whom the command believes. The server is a stand-in."""

import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from megatron_rl.commands import foreground
from megatron_rl.commands.foreground import check_address, interruptible, run_server
from megatron_rl.errors import InputError, Interrupted, RunError
from megatron_rl.rollout.sglang.servers.process import ServerProcess
from tests.conftest import PATIENCE, ROOT, free_port

SERVER = """
import sys, threading, time, yaml
from http.server import BaseHTTPRequestHandler, HTTPServer
options = yaml.safe_load(open(sys.argv[2]))

class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200 if self.headers["Authorization"] == "Bearer secret" else 401)
        self.end_headers()

print("its own words", flush=True)
if options["listens"]:
    HTTPServer((options["host"], options["port"]), Handler).serve_forever()
time.sleep(600)
"""


class Stranger(BaseHTTPRequestHandler):
    """Answers everything, and remembers what it was told."""

    def do_GET(self) -> None:
        self.server.heard.append(dict(self.headers))  # type: ignore[attr-defined]
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def sglang(tmp_path: Path) -> dict[str, str]:
    """The environment in which a stand-in is started."""
    (tmp_path / "sglang").mkdir()
    (tmp_path / "sglang" / "__init__.py").touch()
    (tmp_path / "sglang" / "launch_server.py").write_text(SERVER)
    return {"PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)])}


@pytest.fixture
def strangers() -> Iterator[Any]:
    """strangers(port): an HTTP server that takes every key; ``heard`` holds what it was told."""
    started = []

    def start(port: int) -> HTTPServer:
        server = HTTPServer(("127.0.0.1", port), Stranger)
        server.heard = []  # type: ignore[attr-defined]
        threading.Thread(target=server.serve_forever, daemon=True).start()
        started.append(server)
        return server

    yield start
    for server in started:
        server.shutdown()
        server.server_close()


def options(port: int, listens: bool) -> dict[str, Any]:
    return {"host": "127.0.0.1", "port": port, "model-path": "model", "listens": listens}


@pytest.mark.parametrize(
    ("host", "port", "said"),
    [
        ("127.0.0.1", 0, "--port 0 is no port: choose one of 1 to 65535."),
        ("127.0.0.1", 99999, "--port 99999 is no port: choose one of 1 to 65535."),
        ("1.2.3.4", 30000, r"No server can listen at 1.2.3.4, port 30000 \(Cannot assign requested address\)"),
        ("300.1.1.1", 30000, "--host '300.1.1.1' is no address"),
        ("", 30000, "--host '' is no address"),
    ],
)
def test_addresses_that_cannot_be_had(host: str, port: int, said: str) -> None:
    with pytest.raises(InputError, match=said):
        check_address(host, port)


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0"])
def test_a_port_that_another_server_holds(host: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as holder:
        port = holder.getsockname()[1]
        with pytest.raises(InputError, match=rf"port {port} \(Address already in use\): choose another --port"):
            run_server(options(port, True) | {"host": host}, {}, "secret", "", 60.0)


def test_a_stranger_that_takes_the_port_is_not_believed_and_hears_no_key(
    sglang: dict[str, str], strangers: Any, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """It comes after the look at the port; time is over three looks after the server has said something."""
    port, heard, look, looks = free_port(), [], ServerProcess.listens, [0]

    def take(host: str, port: int) -> None:
        check_address(host, port)
        heard.append(strangers(port).heard)

    def listens(server: ServerProcess, port: int) -> bool:
        looks[0] += "its own words" in server.last_words()
        return look(server, port)

    monkeypatch.setattr(foreground, "check_address", take)
    monkeypatch.setattr(ServerProcess, "listens", listens)
    monkeypatch.setattr(foreground, "time", SimpleNamespace(monotonic=lambda: float(looks[0])))
    with pytest.raises(RunError, match=r"(?s)was not ready in 3 s. It said:.*its own words"):
        run_server(options(port, False), sglang, "secret", "it is ready", 3.0)
    assert heard == [[]] and "it is ready" not in capfd.readouterr().out


def test_a_proxy_hears_no_key(
    sglang: dict[str, str], strangers: Any, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    proxy = strangers(0)
    monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{proxy.server_port}")
    monkeypatch.delenv("no_proxy", raising=False)
    output: list[str] = []

    def end() -> None:
        deadline = time.monotonic() + PATIENCE
        while "it is ready" not in "".join(output) and time.monotonic() < deadline:
            output.append(capfd.readouterr().out)
            time.sleep(0.1)
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=end)
    thread.start()
    code = run_server(options(free_port(), True), sglang, "secret", "it is ready", PATIENCE)
    thread.join()
    assert code == 128 + signal.SIGINT
    assert "it is ready" in "".join(output) and proxy.heard == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_what_is_inside_and_says_how_it_goes_on(number: signal.Signals) -> None:
    before = [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGHUP)]
    left = []
    with pytest.raises(Interrupted, match="Again\\.") as ended, interruptible("Again."):
        try:
            os.kill(os.getpid(), number)
            left.append("not reached")
        finally:
            left.append("cleaned up")
    assert (left, ended.value.signal) == (["cleaned up"], number)
    assert [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGHUP)] == before
