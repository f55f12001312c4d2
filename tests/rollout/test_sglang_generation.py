"""What a server is asked for, and what is made of its answers."""

import asyncio
from typing import Any

import pytest

from megatron_rl.rollout.protocol import Completion, Request, Sampling
from megatron_rl.rollout.sglang.generation import body, generate
from megatron_rl.rollout.sglang.servers.http import ServerError


def test_a_request_leaves_nothing_open_that_decides_what_is_drawn() -> None:
    """Its seed too: without one, a deterministic server draws the same for all completions of a prompt."""
    sampling = Sampling(9, temperature=0.7, top_p=0.9, top_k=5, stop_tokens=(2, 0))
    asked = body(Request([4, 5], [2**63 - 1]), sampling, "name")
    assert (asked["rid"], asked["input_ids"], asked["return_logprob"]) == ("name", [4, 5], True)
    assert asked["sampling_params"] == {
        "max_new_tokens": 9,
        "temperature": 0.7,
        "top_p": 0.9,
        "top_k": 5,
        "stop_token_ids": [2, 0],
        "ignore_eos": False,
        "sampling_seed": 2**63 - 1,
    }
    greedy = body(Request([4], [1]), Sampling(9, temperature=0.0, top_p=0.9, ignore_stop=True), "name")
    assert greedy["sampling_params"].items() >= {"top_p": 1.0, "top_k": 1, "ignore_eos": True}.items()


class Interrupted:
    """A server that gives a completion up after so many tokens, each time that it is asked; then it draws what it may,
    and ``beyond`` more."""

    def __init__(self, *given_up_after: int, beyond: int = 0) -> None:
        self.given_up_after, self.beyond = list(given_up_after), beyond
        self.asked: list[dict[str, Any]] = []

    async def generate(self, asked: dict[str, Any], seconds: float) -> dict[str, Any]:
        self.asked.append(asked)
        most = asked["sampling_params"]["max_new_tokens"]
        reason = "abort" if self.given_up_after else "length"
        count = self.given_up_after.pop(0) if self.given_up_after else most + self.beyond
        first = len(asked["input_ids"])
        tokens = list(range(first, first + count))
        meta = {
            "finish_reason": {"type": reason},
            "output_token_logprobs": [(-0.5, token, None) for token in tokens],
            "weight_version": str(len(self.asked)),
        }
        return {"output_ids": tokens, "meta_info": meta}


def completed(server: Any, sampling: Sampling) -> list[list[Completion]]:
    async def nothing(*_: object) -> None: ...

    async def run() -> list[list[Completion]]:
        slots = asyncio.Semaphore(1)
        requests = [Request([0, 1], [7])]
        return await generate(
            server, requests, sampling, slots=slots, seconds=1.0, available=nothing, abort=nothing, done=lambda: None
        )

    return asyncio.run(run())


@pytest.mark.parametrize("given_up_after", [(), (4,), (4, 3), (0, 4, 0, 3), (4, 5), (9,), (8,)])
def test_a_completion_never_exceeds_its_budget_however_often_it_is_interrupted(given_up_after: tuple[int, ...]) -> None:
    server = Interrupted(*given_up_after)
    [[done]] = completed(server, Sampling(9))
    assert list(done.tokens) == list(range(2, 11)) and len(done.logprobs) == 9 and done.finish_reason == "length"
    assert sum(count for _, count in done.versions) == 9
    left = [9]
    for count in given_up_after:
        left += [left[-1] - count] if left[-1] > count else []
    assert [asked["sampling_params"]["max_new_tokens"] for asked in server.asked] == left
    assert [len(asked["input_ids"]) for asked in server.asked] == [11 - most for most in left]


@pytest.mark.parametrize("server", [Interrupted(4, beyond=1), Interrupted(12)])
def test_a_server_that_draws_more_than_it_may_is_not_believed(server: Interrupted) -> None:
    with pytest.raises(ServerError, match=r"drew 1[02] tokens of a completion that may have 9"):
        completed(server, Sampling(9))
