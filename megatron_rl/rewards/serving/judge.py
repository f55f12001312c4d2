"""A language model as judge, behind any server with OpenAI's ``/v1/chat/completions``."""

import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from math import isfinite
from pathlib import Path
from typing import Any

import xxhash

from megatron_rl.data.task import Sample
from megatron_rl.errors import InputError
from megatron_rl.rewards.serving.client import Client, RefusedError, UnansweredError, call_violations
from megatron_rl.rewards.serving.rubric import read_rubric

KEY = "MEGATRON_RL_JUDGE_KEY"  # environment variable
PATTERN = r"<Score>\s*(-?[0-9.]+)\s*</Score>"
REMEMBERED = 1 << 16  # scores that a worker keeps in memory
COUNTS = ("calls", "cached", "failures", "retries", "seconds", "prompt_tokens", "completion_tokens")


@dataclass(frozen=True)
class Judgement:
    """What a judge says of one sample."""

    score: float  # 0 to 1
    counts: Mapping[str, float]  # of COUNTS


@dataclass(frozen=True)
class Judge:
    """Asks with a rubric and reads a number from ``low`` to ``high`` out of the answer, the last match of ``pattern``.

    ``default``: the score where no call is answered, or the answer has no such number; None: an error. ``cache``: a
    folder of scores that workers and continued runs share; "": each worker remembers its own. ``key``: the environment
    variable with the key; it is sent if it is set.
    """

    url: str
    model: str
    rubric: str
    pattern: str = PATTERN
    low: float = 0.0
    high: float = 1.0
    default: float | None = None
    timeout: float = 3.0
    retries: int = 2
    temperature: float = 0.0
    max_tokens: int = 1024
    cache: str = ""
    key: str = KEY
    _known: dict[str, float] = field(default_factory=dict, init=False, repr=False, compare=False)
    _clients: list[Client] = field(default_factory=list, init=False, repr=False, compare=False)

    async def __call__(self, sample: Sample) -> Judgement:
        """Raises ConnectionError and ValueError without a ``default``, and ValueError for a refusal in any case."""
        text = read_rubric(self.rubric).filled(sample)
        place = xxhash.xxh3_128_hexdigest(json.dumps([*self._identity(), text]).encode())
        if (known := self._recall(place)) is not None:
            return Judgement(known, dict.fromkeys(COUNTS, 0.0) | {"cached": 1.0})
        counts = dict.fromkeys(COUNTS, 0.0) | {"calls": 1.0}
        try:
            answer = await self._client().post(
                {
                    "model": self.model,
                    "messages": [{"role": "user", "content": text}],
                    "temperature": self.temperature,
                    "max_tokens": self.max_tokens,
                }
            )
            counts |= {"retries": float(answer.retries), "seconds": answer.seconds} | _tokens(answer.content)
            score = self._read(answer.content)
        except RefusedError as error:
            raise ValueError(
                f"the judge {self.model} at {self.url} refuses ({error}); its key is {self.key}'s"
            ) from error
        except UnansweredError as error:
            counts["retries"] = float(error.retries)
            return self._failed(f"gave no answer in {error.retries + 1} calls: {error}", counts, ConnectionError)
        except ValueError as error:
            return self._failed(str(error), counts, ValueError)
        self._remember(place, score)
        return Judgement(score, counts)

    def violations(self, deadline: float) -> list[str]:
        """As ``registry.Service``."""
        found = []
        try:
            read_rubric(self.rubric)
        except InputError as error:
            found.append(str(error))
        try:
            if re.compile(self.pattern).groups != 1:
                found.append(f"pattern is {self.pattern!r}; it must have one group, the score.")
        except re.error as error:
            found.append(f"pattern is {self.pattern!r}, which is no regular expression: {error}.")
        if not (isfinite(self.low) and isfinite(self.high) and self.low < self.high):
            found.append(f"low={self.low} must be below high={self.high}: a score is scaled to 0 … 1 between them.")
        if self.key != KEY and not os.environ.get(self.key):
            found.append(f"key names the environment variable {self.key}, which is not set.")
        if self.cache and Path(self.cache).exists() and not Path(self.cache).is_dir():
            found.append(f"cache={self.cache} is no folder.")
        return found + call_violations(self.url, self.timeout, self.retries, deadline)

    def unfit(self, sample: Sample) -> list[str]:
        """As ``registry.Service``: places of the rubric that a sample does not fill."""
        try:
            read_rubric(self.rubric).filled(sample)
        except InputError as error:
            return [str(error)]
        return []

    def facts(self) -> dict[str, Any]:
        """As ``registry.Service``."""
        rubric = read_rubric(self.rubric)
        return {"judge": self.model, "url": self.url, "rubric": self.rubric, "rubric_hash": rubric.hash}

    def _identity(self) -> tuple[Any, ...]:
        """All that a score hangs on but the text."""
        rubric = read_rubric(self.rubric).hash
        return (self.model, self.url, rubric, self.pattern, self.low, self.high, self.temperature, self.max_tokens)

    def _client(self) -> Client:
        if not self._clients:
            url = f"{self.url.rstrip('/').removesuffix('/v1')}/v1/chat/completions"
            self._clients.append(Client(url, os.environ.get(self.key, ""), self.timeout, self.retries))
        return self._clients[0]

    def _read(self, content: Any) -> float:
        """The score, 0 to 1, of a server's answer. Raises ValueError."""
        try:
            said = content["choices"][0]["message"]["content"] or ""
        except (LookupError, TypeError) as error:
            raise ValueError(f"gave no chat completion: {str(content)[:200]}") from error
        found = re.findall(self.pattern, str(said))
        if not found:
            raise ValueError(f"gave no {self.pattern}: {said[-200:]!r}")
        try:
            number = float(found[-1])
        except ValueError:
            raise ValueError(f"gave the score {found[-1]!r}, which is no number") from None
        if not self.low <= number <= self.high:
            raise ValueError(f"gave the score {number:g}; it must be between low={self.low:g} and high={self.high:g}")
        return (number - self.low) / (self.high - self.low)

    def _failed(self, said: str, counts: dict[str, float], error: type[Exception]) -> Judgement:
        if self.default is None:
            raise error(f"the judge {self.model} at {self.url} {said}")
        return Judgement(self.default, counts | {"failures": 1.0})

    def _recall(self, place: str) -> float | None:
        if place in self._known or not self.cache:
            return self._known.get(place)
        try:
            self._know(place, float((self._folder(place) / place).read_text()))
        except (FileNotFoundError, ValueError):  # nobody asked yet; somebody else's file
            return None
        return self._known[place]

    def _know(self, place: str, score: float) -> None:
        if len(self._known) >= REMEMBERED:
            del self._known[next(iter(self._known))]
        self._known[place] = score

    def _remember(self, place: str, score: float) -> None:
        self._know(place, score)
        if self.cache:
            folder = self._folder(place)
            folder.mkdir(parents=True, exist_ok=True)
            beside = folder / f".{place}.{os.getpid()}"
            beside.write_text(f"{score!r}\n")
            beside.replace(folder / place)  # not flushed to the disk, which would hold up all others: it is a cache

    def _folder(self, place: str) -> Path:
        return Path(self.cache) / place[:2]


def _tokens(content: Any) -> dict[str, float]:
    """What the server says that a call cost."""
    usage = content.get("usage") if isinstance(content, dict) else None
    names = ("prompt_tokens", "completion_tokens")
    if not isinstance(usage, dict):
        return dict.fromkeys(names, 0.0)
    return {name: float(usage.get(name) or 0) for name in names}


@lru_cache(maxsize=16)
def judge_of(**args: Any) -> Judge:
    """The judge with these arguments: one in a worker, for what it remembers."""
    return Judge(**args)
