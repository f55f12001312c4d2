"""Processes of servers, without a model: what they leave readable, and what they leave behind."""

import stat
from pathlib import Path

from megatron_rl.rollout.sglang.process import ServerProcess, open_log


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
