"""Completions from servers over HTTP: token ids in, token ids and their log-probs out.

Every completion is a request of its own. A request whose server died, was restarted or was too slow is sent again
under a new name, so that each is answered once; of one that its server gave up, what it drew is kept and the rest is
asked for. How many are under way is bounded by what the servers can run, whoever asks.
A request's seed goes along, as the parameter sampling_seed, which every supported version knows: ``protocol.Request``
says whose draws it decides. These depend on the position in the text, so what is asked for anew goes on as it would.
"""

import asyncio
import base64
import math
import secrets
from array import array
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field, replace
from itertools import count
from typing import Any

import numpy as np

from megatron_rl.errors import InputError
from megatron_rl.rollout.protocol import Completion, Request, Sampling
from megatron_rl.rollout.sglang.servers.http import Server, ServerError, UnprocessableError

ATTEMPTS = 8  # at one completion
ABORTS = 100  # of one completion by its server
_PAUSE = 0.5  # seconds before a request is sent again
# Names are never used again: SGLang 0.5.12 keeps that of a request that it refused.
_PROCESS, _serial = secrets.token_hex(4), count()


def body(request: Request, sampling: Sampling, name: str) -> dict[str, Any]:
    """What /generate is asked for the request's first seed."""
    greedy = sampling.temperature == 0
    replay = {"return_routed_experts": True} if sampling.experts else {}
    return replay | {
        "rid": name,
        "input_ids": list(request.tokens),
        "return_logprob": True,
        "stream": False,
        "sampling_params": {
            "max_new_tokens": sampling.max_new_tokens,
            "temperature": sampling.temperature,
            "top_p": 1.0 if greedy else sampling.top_p,
            "top_k": 1 if greedy else sampling.top_k or -1,
            "stop_token_ids": list(sampling.stop_tokens),
            "ignore_eos": sampling.ignore_stop,
            "sampling_seed": request.seeds[0],
        },
    }


@dataclass(frozen=True)
class Part:
    """Tokens of a completion that one request brought; "" as its reason: it was given up before its end."""

    tokens: "array[int]" = field(default_factory=lambda: array("i"))
    logprobs: "array[float]" = field(default_factory=lambda: array("f"))
    versions: tuple[tuple[int, int], ...] = ()
    finish_reason: str = ""
    experts: np.ndarray | None = None

    def __add__(self, more: "Part") -> "Part":
        versions = list(self.versions)
        for version, tokens in more.versions:
            if versions and versions[-1][0] == version:
                tokens += versions.pop()[1]
            versions.append((version, tokens))
        return Part(
            self.tokens + more.tokens,
            self.logprobs + more.logprobs,
            tuple(versions),
            more.finish_reason,
            more.experts,  # of the whole text: what was there before went through the layers again
        )

    def whole(self) -> Completion:
        """The completion, when it has ended."""
        return Completion(self.tokens, self.logprobs, self.finish_reason, self.versions, self.experts)


def part(answer: dict[str, Any], experts: bool = False) -> Part:
    """What /generate answered, with the chosen ``experts`` if they were asked for.

    A log-prob that is no number is a NaN: whoever learns leaves that completion out (``rollout.sound``). Raises
    ServerError for an answer that contradicts itself.
    """
    meta = answer["meta_info"]
    kind = (meta["finish_reason"] or {"type": "abort"})["type"]
    drawn = meta.get("output_token_logprobs") or []
    tokens = array("i", [token for _, token, *_ in drawn])
    logprobs = array("f", [math.nan if value is None else value for value, *_ in drawn])
    if kind == "abort" and not tokens:
        return Part()
    if tokens.tolist() != list(answer["output_ids"]):
        raise ServerError(f"a server answered {len(answer['output_ids'])} tokens with log-probs of others")
    spans = meta.get("weight_versions") or [{"version": meta["weight_version"], "start": 0, "end": len(tokens)}]
    versions = tuple((_number(span["version"]), span["end"] - span["start"]) for span in spans)
    if kind == "abort":
        return Part(tokens, logprobs, versions)
    routing = _experts(meta, meta["prompt_tokens"] + len(tokens) - 1) if experts else None
    return Part(tokens, logprobs, versions, "stop" if kind == "stop" else "length", routing)


def _experts(meta: dict[str, Any], positions: int) -> np.ndarray:
    """int16 [positions, layers x top_k] from SGLang's base64 of int32 [positions, layers, top_k]."""
    encoded = meta.get("routed_experts")
    if encoded is None:
        raise ServerError("a server did not say which experts it chose")
    chosen = np.frombuffer(base64.b64decode(encoded), dtype=np.int32)
    if not chosen.size or chosen.size % positions:
        raise ServerError(f"a server answered {chosen.size} choices of experts for {positions} tokens")
    return chosen.reshape(positions, -1).astype(np.int16)


def _number(version: str) -> int:
    return int(version) if version.lstrip("-").isdecimal() else -1  # what a server starts with has no number


async def generate(
    send_to: Server,
    requests: Sequence[Request],
    sampling: Sampling,
    *,
    slots: asyncio.Semaphore,
    seconds: float,
    available: Callable[[], Awaitable[None]],
    abort: Callable[[str], Awaitable[None]],
    done: Callable[[], None],
) -> list[list[Completion]]:
    """Completions in the order of the requests and of their seeds.

    One that is under way holds one of the ``slots``, which all calls share, and is so for at most ``seconds``.
    ``available`` is awaited before each is sent: it returns when a server can take it, and raises when none will.
    ``abort`` ends a request by its name, wherever it runs. ``done`` is called for each that has ended. Raises
    InputError for a request that the servers refuse, ServerError for one that none answers.
    """

    async def one(request: Request, seed: int) -> Completion:
        error: Exception | None = None
        async with slots:
            failures = aborts = 0
            so_far = Part()
            while failures < ATTEMPTS and aborts < ABORTS:
                await asyncio.sleep(_PAUSE * failures)
                await available()
                name = f"{seed:016x}-{_PROCESS}-{next(_serial)}"
                rest = replace(sampling, max_new_tokens=sampling.max_new_tokens - len(so_far.tokens))
                text = Request([*request.tokens, *so_far.tokens], [seed])
                try:
                    so_far += part(await send_to.generate(body(text, rest, name), seconds), sampling.experts)
                except UnprocessableError as failed:
                    raise InputError(
                        f"A server refuses a prompt of {len(text.tokens)} tokens with up to {rest.max_new_tokens} more "
                        f"({failed}): see rollout.max_new_tokens, data.max_prompt_tokens and rollout.sglang.args."
                    ) from failed
                except ServerError as failed:
                    error, failures = failed, failures + 1
                    await abort(name)  # it may still run
                    continue
                if len(so_far.tokens) > sampling.max_new_tokens:
                    drawn = f"{len(so_far.tokens)} tokens of a completion that may have {sampling.max_new_tokens}"
                    raise ServerError(f"a server drew {drawn}")
                if len(so_far.tokens) == sampling.max_new_tokens and not so_far.finish_reason:
                    so_far = replace(so_far, finish_reason="length")  # given up behind its last token
                if so_far.finish_reason:
                    done()
                    return so_far.whole()
                aborts += 1  # by a swap, of versions that cannot keep requests: the rest is asked for with its weights
        raise ServerError(f"a completion failed {failures + aborts} times; the last time: {error or 'given up'}")

    tasks = [asyncio.ensure_future(one(request, seed)) for request in requests for seed in request.seeds]
    try:
        flat = await asyncio.gather(*tasks)
    except BaseException:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        raise
    rows = iter(flat)
    return [[next(rows) for _ in request.seeds] for request in requests]
