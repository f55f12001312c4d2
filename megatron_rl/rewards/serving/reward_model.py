"""A reward model that ``megatron-rl serve`` serves, asked over HTTP."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from math import isfinite
from typing import Any

from megatron_rl.data.task import Sample
from megatron_rl.rewards.serving.client import Client, RefusedError, UnansweredError, call_violations

KEY = "MEGATRON_RL_REWARD_KEY"  # environment variable: the key that the server printed


@dataclass(frozen=True)
class Given:
    """What a reward model gives."""

    score: float
    counts: Mapping[str, float]  # "failed", "retries" and "seconds"


@dataclass(frozen=True)
class RewardModel:
    """The model at ``url`` (http://HOST:PORT). ``default``: the score where no call is answered; None: an error."""

    url: str
    timeout: float = 3.0
    retries: int = 2
    default: float | None = None
    _clients: list[Client] = field(default_factory=list, init=False, repr=False, compare=False)

    async def __call__(self, prompt: str, response: str) -> Given:
        """The score of a prompt, as it was tokenised, and a response.

        Raises ConnectionError without a ``default``, and ValueError for a refusal or what is no score.
        """
        try:
            answer = await self._client().post({"inputs": [{"prompt": prompt, "response": response}]})
        except RefusedError as error:
            raise ValueError(f"the reward model at {self.url} refuses ({error}); its key is {KEY}'s") from error
        except UnansweredError as error:
            said = f"gave no score in {error.retries + 1} calls: {error}"
            return self._failed(ConnectionError, said, error.retries)
        except ValueError as error:
            return self._failed(ValueError, str(error))
        try:
            score = float(answer.content["scores"][0])
        except (LookupError, TypeError, ValueError):
            return self._failed(ValueError, f"gave {str(answer.content)[:200]}, which has no score", answer.retries)
        if not isfinite(score):
            return self._failed(ValueError, f"gave the score {score}", answer.retries)
        return Given(score, {"failed": 0.0, "retries": float(answer.retries), "seconds": answer.seconds})

    def _failed(self, error: type[Exception], said: str, retries: int = 0) -> Given:
        if self.default is None:
            raise error(f"the reward model at {self.url} {said}")
        return Given(self.default, {"failed": 1.0, "retries": float(retries), "seconds": 0.0})

    def violations(self, deadline: float) -> list[str]:
        """As ``registry.Service``."""
        return call_violations(self.url, self.timeout, self.retries, deadline)

    def unfit(self, sample: Sample) -> list[str]:
        """As ``registry.Service``: it takes any text."""
        return []

    def facts(self) -> dict[str, Any]:
        """As ``registry.Service``."""
        return {"reward_model": self.url}

    def _client(self) -> Client:
        if not self._clients:
            client = Client(f"{self.url.rstrip('/')}/score", os.environ.get(KEY, ""), self.timeout, self.retries)
            self._clients.append(client)
        return self._clients[0]


@lru_cache(maxsize=16)
def model_of(**args: Any) -> RewardModel:
    """The model with these arguments: one in a worker, for its connections."""
    return RewardModel(**args)
