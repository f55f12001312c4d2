"""Processes of servers, without a model: what they leave readable, and what they leave behind."""

import mmap
import os
import secrets
import stat
import subprocess
import time
from pathlib import Path

from megatron_rl.rollout.sglang.servers import leftovers
from megatron_rl.rollout.sglang.servers.process import ServerProcess, open_log
from tests.conftest import PATIENCE


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_what_holds_the_key_is_for_its_owner_alone(tmp_path: Path) -> None:
    """SGLang prints its options, with the key among them."""
    log = tmp_path / "logs" / "sglang0.log"
    server = ServerProcess("sglang0", {"api-key": "secret", "nonsense": 1}, {}, tmp_path, log)
    server.start()
    assert mode(log) == mode(tmp_path / "sglang0.yaml") == 0o600
    server.kill()


def test_a_log_that_was_there_is_closed_to_others(tmp_path: Path) -> None:
    log = tmp_path / "router.log"
    log.write_text("before\n")
    log.chmod(0o644)
    with open_log(log) as file:
        file.write(b"after\n")
    assert mode(log) == 0o600 and log.read_text() == "before\nafter\n"


def test_the_key_is_its_owners(tmp_path: Path) -> None:
    ServerProcess("sglang0", {"api-key": "secret"}, {}, tmp_path, tmp_path / "log")
    assert mode(tmp_path / "sglang0.yaml") == 0o600


def test_shared_memory_that_nobody_needs_is_removed() -> None:
    ended = subprocess.Popen(["true"])
    ended.wait()
    files = {
        name: Path("/dev/shm", f"{name}_{secrets.token_hex(4)}{end}")
        for name, end in [
            (f"sgl_shm_test_{ended.pid}", ""),
            (f"sgl_shm_test_{os.getpid()}", ""),
            ("sglang_loads_mapped", ".shm"),
            ("sglang_loads_left", ".shm"),
            ("sglang_loads_new", ".shm"),
        ]
    }
    try:
        for path in files.values():
            path.write_bytes(bytes(4096))
            if "mapped" not in path.name:
                os.utime(path, (0, time.time() + (PATIENCE if "new" in path.name else -60)))
        with files["sglang_loads_mapped"].open("r+b") as file, mmap.mmap(file.fileno(), 4096):
            os.utime(file.fileno(), (0, time.time() - 60))  # only now: others remove what is old and not mapped
            leftovers.remove()
            kept = {f"sgl_shm_test_{os.getpid()}", "sglang_loads_mapped", "sglang_loads_new"}
            assert {name for name, path in files.items() if path.exists()} == kept
    finally:
        for path in files.values():
            path.unlink(missing_ok=True)
