"""One SGLang server's HTTP interface: the calls that a trainer makes. Imports no torch."""

import asyncio
import base64
import json
import pickle
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import aiohttp
from packaging.version import Version

from megatron_rl.errors import InputError
from megatron_rl.rollout.sglang.servers.versions import supported
from megatron_rl.system.channel import KEY

_JSON = {"Content-Type": "application/json"}
_FOR_GOOD = (400, 413, 422)  # answers that the same call will always get

_ONE = {  # sizes that must be 1 in a server that is swapped
    "dp_size": "start a server for each copy and name them all in rollout.sglang.urls",
    "pp_size": "shard it by --tp-size instead",
    "nnodes": "have the run start it (rollout.sglang.nodes)",
}


class ServerError(ConnectionError):
    """A server is gone, late, or refused a call."""


class UnprocessableError(ServerError):
    """A server will never do what it was asked for."""


@dataclass(frozen=True)
class Abilities:
    """What differs from version to version; asked of the server itself."""

    version: str
    sessions: bool  # updates stand between /begin_weight_update and /end_weight_update (from 0.5.21)
    spans: bool  # an answer says which version drew which tokens (from 0.5.20)
    workers: int  # that share every matrix
    hooks: tuple[str, ...]  # functions that may load weights in its workers
    experts: bool  # its answers say which experts a mixture chose
    prefixes: bool  # it computes what texts begin with in common once


def _with_tensors(body: dict[str, Any], content: Any, workers: int) -> bytes:
    # Plain pickle: descriptors of shared memory, as torch's pickler passes them, do not survive HTTP.
    payload = base64.b64encode(content if isinstance(content, bytes) else pickle.dumps(content)).decode()
    return json.dumps(body | {"serialized_named_tensors": [payload] * workers}).encode()


class Server:
    """One server at ``url``. Every method raises ServerError, and InputError where the server has another key."""

    def __init__(self, http: aiohttp.ClientSession, url: str, key: str) -> None:
        self.http, self.url = http, url.rstrip("/")
        self._headers = {"Authorization": f"Bearer {key}"}
        self.abilities: Abilities | None = None
        self.unready = ""  # why the last look found it not ready

    async def call(self, method: str, path: str, body: Any = None, *, seconds: float) -> Any:
        """The answer to one request, parsed where it is JSON. ``body`` is bytes, or will be JSON."""
        sent: dict[str, Any] = {"data": body} if isinstance(body, bytes) else {"json": body}
        timeout = aiohttp.ClientTimeout(total=seconds)
        try:
            async with self.http.request(
                method, self.url + path, headers=self._headers | _JSON, timeout=timeout, **sent
            ) as response:
                text = await response.text()
        except TimeoutError as error:
            raise ServerError(f"{self.url}{path} did not answer in {seconds:.0f} s") from error
        except aiohttp.ClientError as error:
            raise ServerError(f"{self.url}{path}: {error or type(error).__name__}") from error
        if response.status == 401:
            raise InputError(
                f"The SGLang server at {self.url} has another key: start it and the run with the same {KEY} "
                "(`megatron-rl engine` prints it)."
            )
        try:
            content = json.loads(text) if text else None
        except ValueError:
            content = text
        if not 200 <= response.status < 300 or (isinstance(content, dict) and content.get("success") is False):
            kind = UnprocessableError if response.status in _FOR_GOOD else ServerError
            raise kind(f"{self.url}{path} answered {response.status}: {text[:500]}")
        return content

    async def ask_abilities(self, seconds: float, nodes: int = 1) -> Abilities:
        """Learn what the server can do. Raises InputError for a version or a kind that is not supported.

        ``nodes``: of a server that this run has started on so many machines.
        """
        info = await self.call("GET", "/server_info", seconds=seconds)
        version = str(info.get("version", "0"))
        supported(version)
        for name, what in _ONE.items():
            if int(info.get(name) or 1) > (nodes if name == "nnodes" else 1):
                raise InputError(
                    f"The SGLang server at {self.url} was started with {name}={info[name]}, which a swap cannot fill: "
                    f"{what}."
                )
        if preferred := info.get("preferred_sampling_params"):
            raise InputError(
                f"The SGLang server at {self.url} was started with preferred_sampling_params={preferred}, so that it "
                "draws otherwise than it is asked to: start it without."
            )
        paths = (await self.call("GET", "/openapi.json", seconds=seconds))["paths"]
        self.abilities = Abilities(
            version,
            sessions="/begin_weight_update" in paths,
            spans=Version(version) >= Version("0.5.20"),
            workers=int(info["tp_size"]),
            hooks=tuple(info.get("custom_weight_loader") or ()),
            experts=bool(info.get("enable_return_routed_experts")),
            prefixes=not info["disable_radix_cache"],
        )
        return self.abilities

    async def ready(self, seconds: float = 5.0) -> bool:
        """Whether the server answers; it does once its model is built."""
        try:
            await self.call("GET", "/model_info", seconds=seconds)
        except ServerError as error:
            self.unready = str(error)
            return False
        return True

    async def healthy(self, seconds: float) -> bool:
        """Whether the scheduler works: it answers something in time. Not to be asked while the server is paused."""
        try:
            await self.call("GET", "/health_generate", seconds=seconds)
        except ServerError:
            return False
        return True

    async def generate(self, body: dict[str, Any], seconds: float) -> dict[str, Any]:
        """One completion."""
        answer: dict[str, Any] = await self.call("POST", "/generate", body, seconds=seconds)
        return answer

    async def abort(self, request: str, seconds: float = 5.0) -> None:
        """Give up a request."""
        await self.call("POST", "/abort_request", {"rid": request}, seconds=seconds)

    async def pause(self, seconds: float) -> None:
        """Stop decoding; what runs goes back to the queue, its tokens are kept and its cache is not.

        Older versions cannot drop the cache with requests in the queue: there what runs is given up.
        """
        assert self.abilities is not None
        mode = "retract" if self.abilities.sessions else "abort"
        await self.call("POST", "/pause_generation", {"mode": mode}, seconds=seconds)

    async def resume(self, seconds: float) -> None:
        """Decode again."""
        await self.call("POST", "/continue_generation", {}, seconds=seconds)

    async def begin(self, seconds: float) -> None:
        """Open an update session, where the version has them."""
        assert self.abilities is not None
        if self.abilities.sessions:
            await self.call("POST", "/begin_weight_update", {"selector": "target"}, seconds=seconds)

    async def end(self, seconds: float) -> None:
        """Close the update session."""
        assert self.abilities is not None
        if self.abilities.sessions:
            await self.call("POST", "/end_weight_update", {}, seconds=seconds)

    async def update_from_tensor(
        self, content: Any, workers: int, load_format: str | None, version: int | None, seconds: float
    ) -> None:
        """Hand ``content`` (picklable, or pickled) to every worker.

        With a ``version`` the cache is flushed and the version set.
        """
        body: dict[str, Any] = {"flush_cache": version is not None}
        if load_format is not None:
            body["load_format"] = load_format
        if version is not None:
            body["weight_version"] = str(version)
        if self.abilities is not None and self.abilities.sessions:
            body["selector"] = "target"
        if isinstance(content, bytes):  # a bucket of weights
            data = await asyncio.to_thread(_with_tensors, body, content, workers)
        else:
            data = _with_tensors(body, content, workers)
        await self.call("POST", "/update_weights_from_tensor", data, seconds=seconds)

    async def update_from_disk(self, folder: str, seconds: float) -> None:
        """Have the server load a Hugging Face folder."""
        body = {"model_path": folder, "load_format": "auto", "flush_cache": False}
        await self.call("POST", "/update_weights_from_disk", body, seconds=seconds)

    async def join_group(self, address: tuple[str, int], world: int, group: str, backend: str, seconds: float) -> None:
        """Have the workers join a process group, from rank 1 on."""
        body = {
            "master_address": address[0],
            "master_port": address[1],
            "rank_offset": 1,
            "world_size": world,
            "group_name": group,
            "backend": backend,
        }
        await self.call("POST", "/init_weights_update_group", body, seconds=seconds)

    async def leave_group(self, group: str, seconds: float) -> None:
        """Have the workers destroy the group."""
        await self.call("POST", "/destroy_weights_update_group", {"group_name": group}, seconds=seconds)

    async def receive(
        self, names: list[str], dtypes: list[str], shapes: list[list[int]], group: str, seconds: float
    ) -> None:
        """Have the workers load tensors that rank 0 of the group broadcasts, one after the other."""
        body: dict[str, Any] = {"names": names, "dtypes": dtypes, "shapes": shapes, "group_name": group}
        body["flush_cache"] = False
        await self.call("POST", "/update_weights_from_distributed", body, seconds=seconds)

    async def release(self, what: Sequence[str], seconds: float) -> None:
        """Give back the memory of the "weights", which are lost, or of the "kv_cache"."""
        await self.call("POST", "/release_memory_occupation", {"tags": [*what]}, seconds=seconds)

    async def reclaim(self, what: str, seconds: float) -> None:
        """Take back the memory of the "weights" or of the "kv_cache", with nothing in it."""
        await self.call("POST", "/resume_memory_occupation", {"tags": [what]}, seconds=seconds)
