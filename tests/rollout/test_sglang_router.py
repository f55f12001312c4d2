"""The router's process, whether or not SGLang is there to run in it."""

import asyncio
from pathlib import Path

import aiohttp
import pytest

from megatron_rl.rollout.sglang.servers import router
from megatron_rl.rollout.sglang.servers.http import Server
from megatron_rl.system.machine import free_port


@pytest.mark.parametrize("restarts", [0, 1])
def test_it_is_watched_however_often_it_may_be_restarted(
    restarts: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before it is connected it is not given up; once it has ended too often, it is."""
    monkeypatch.setattr(router, "_WATCH", 0.0)
    # One that is started again does not come up.
    watched = router.Router(free_port(), b"key", tmp_path / "router.log", seconds=-1.0)

    async def told(http: aiohttp.ClientSession) -> None:
        task = asyncio.create_task(watched.watch(restarts, list))
        for _ in range(100):
            await asyncio.sleep(0)
        assert not task.done() and not watched.lost
        watched.server, watched.ready = Server(http, watched.url, "key"), True
        watched.stop()
        await task

    async def run() -> None:
        async with aiohttp.ClientSession() as http:
            await told(http)

    asyncio.run(run())
    assert "ended too often (rollout.sglang.restarts)" in watched.lost and not watched.ready
    watched.stop()
