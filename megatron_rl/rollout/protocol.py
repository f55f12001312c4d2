"""What the trainer and a rollout engine say to each other."""

from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from megatron_rl.resharding.terms import Attached, Reach, SwapReport


@dataclass(frozen=True)
class Sampling:
    """How completions are drawn. ``temperature`` 0 is greedy decoding."""

    max_new_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    stop_tokens: tuple[int, ...] = ()  # generation ends after one of these, which is kept
    ignore_stop: bool = False  # never end early
    experts: bool = False  # say which experts every token went to (SGLang, mixtures of experts)


@dataclass(frozen=True)
class Request:
    """One prompt and one completion for each of ``seeds``.

    A completion depends on the weights, the prompt, the sampling parameters and its own seed: not on
    the other requests that are decoded with it. The embedded engine keeps that to the last bit. SGLang's servers are
    sent the seed, and draw by it when they were started with enable_deterministic_inference (on GPUs): a number for
    each seed and position decides between the tokens. Otherwise they draw with random numbers of their own, and the
    same seed gives another completion each time.
    """

    tokens: Sequence[int]
    seeds: Sequence[int]  # each in [0, 2**63)


@dataclass(frozen=True)
class Completion:
    """One sampled continuation; ``tokens`` and ``logprobs`` have the same length, and may be given as any sequence.

    Rank 0 may hold tens of millions of them: lists of Python's numbers would take eight times the memory, and Python's
    garbage collector would walk along them.
    """

    tokens: Sequence[int]  # kept as an array of int32; a stop token, when one was drawn, is the last
    logprobs: Sequence[float]  # kept as float32; nats, of the temperature-scaled distribution before top-p / top-k
    finish_reason: str  # "stop" | "length"
    versions: tuple[tuple[int, int], ...]  # (version of the weights, tokens that they drew), in their order
    # int16 [prompt + tokens - 1, layers x top_k], where asked for: the last token goes through no layer. Tokens drawn
    # before a swap in mid-generation are computed again after it, and their experts are then the new weights' choice
    experts: np.ndarray | None = field(default=None, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "tokens", _compact("i", self.tokens))
        object.__setattr__(self, "logprobs", _compact("f", self.logprobs))

    @property
    def weight_version(self) -> int:
        """Of the weights that drew the first token: the oldest."""
        return self.versions[0][0]


@dataclass(frozen=True)
class Given:
    """A text whose last ``scored`` tokens are scored, each after all before it."""

    tokens: Sequence[int]
    scored: int


@dataclass(frozen=True)
class Scored:
    """What the model makes of them."""

    logprobs: list[float]  # natural log, one for each
    greedy: bool  # whether each is the most likely token at its place


def _compact(kind: str, numbers: Sequence[Any]) -> "array[Any]":
    """As an array of int32 ("i") or float32 ("f")."""
    return numbers if isinstance(numbers, array) and numbers.typecode == kind else array(kind, numbers)


class Completer(Protocol):
    """What answers requests: an engine, whoever fills it."""

    async def complete(self, request: Request, sampling: Sampling) -> list[Completion]:
        """One request's completions, in the order of its seeds; awaited in any thread's event loop.

        Many are awaited at the same time: an engine that decodes a batch at a time makes one of the calls of one tick
        of a loop, in their order, whose completions are those of one ``generate`` to the last bit.
        """

    def progress(self) -> tuple[int, int]:
        """Completions that are done, and those that were asked for, since nothing was under way; (0, 0) then.

        To be called in any thread, at any time: it does not wait.
        """

    def stop(self) -> None:
        """End the engine's process."""


class Engine(Completer, Protocol):
    """A rollout engine, as rank 0 sees it."""

    def reach(self, places: Sequence[str]) -> Reach:
        """Choose the transport; ``places``: ``machine.place()`` of each trainer rank.

        Raises InputError where the options leave none.
        """

    def attach(self, source: Any) -> Attached:
        """Learn where the trainer's ranks keep their weights (``resharding.swap.SwapSource``), and plan the way."""

    def begin_swap(self, version: int) -> None:
        """Start copying the ranks' weights into the engine; returns at once."""

    def finish_swap(self, version: int, hashes: np.ndarray) -> SwapReport:
        """Wait for the copy and compare what landed with the owners' hashes (uint64, one per copy of the plan).

        Raises ``SwapError`` naming the first tensor that differs; the engine then serves nothing
        until a swap succeeds.
        """

    def generate(self, requests: Sequence[Request], sampling: Sampling) -> list[list[Completion]]:
        """Completions in the order of the requests and of their seeds."""

    def release(self) -> None:
        """The trainer goes on: its weights change until the next swap, and on a shared GPU it needs the memory."""

    def stalled(self) -> bool:
        """Whether completions are under way that nothing can go on with before the next swap."""

    def health(self) -> dict[str, Any]:
        """Process id, weight version, resident memory in bytes."""
