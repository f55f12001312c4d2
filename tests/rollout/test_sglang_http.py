"""What a server's answers are taken for; the server is a stand-in."""

import asyncio
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from megatron_rl.errors import InputError
from megatron_rl.rollout.sglang.servers.http import Server

INFO = {"version": "0.5.21", "tp_size": 1, "dp_size": 1, "pp_size": 1, "nnodes": 1, "disable_radix_cache": False}


def ask(method: str, *arguments: Any, **info: Any) -> tuple[Any, Server]:
    """The result of a call of ``Server``, whose server says ``info`` of itself."""

    async def run() -> tuple[Any, Server]:
        app = web.Application()
        app.router.add_get("/server_info", lambda _: _json(INFO | info))
        app.router.add_get("/openapi.json", lambda _: _json({"paths": {}}))
        runner = web.AppRunner(app)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        try:
            async with aiohttp.ClientSession() as http:
                server = Server(http, f"http://127.0.0.1:{runner.addresses[0][1]}", "key")
                return await getattr(server, method)(*arguments), server
        finally:
            await runner.cleanup()

    return asyncio.run(run())


async def _json(content: Any) -> web.Response:
    return web.json_response(content)


@pytest.mark.parametrize("name", ["dp_size", "pp_size", "nnodes"])
def test_a_server_that_a_swap_cannot_fill(name: str) -> None:
    assert ask("ask_abilities", 5.0)[0].workers == 1
    with pytest.raises(InputError, match=f"was started with {name}=2, which a swap cannot fill: "):
        ask("ask_abilities", 5.0, **{name: 2})


def test_a_server_that_draws_otherwise_than_it_is_asked_to() -> None:
    assert ask("ask_abilities", 5.0, preferred_sampling_params=None)[0].workers == 1
    with pytest.raises(InputError, match=r"preferred_sampling_params={'min_p': 0.1}, so that it draws otherwise"):
        ask("ask_abilities", 5.0, preferred_sampling_params={"min_p": 0.1})


def test_why_a_server_is_not_ready() -> None:
    ready, server = ask("ready")
    assert not ready and "/model_info answered 404" in server.unready

    async def nobody() -> Server:
        async with aiohttp.ClientSession() as http:
            server = Server(http, "http://127.0.0.1:1", "key")
            assert not await server.ready()
            return server

    assert "Connect call failed" in asyncio.run(nobody()).unready
