"""One path of the policy through one question: the record that generation makes and training learns from."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from megatron_rl.data.task import Example
from megatron_rl.rollout.protocol import Completion


class Scored(Protocol):
    """What scoring says of a rollout (``rewards.workers.pool.Scored``)."""

    @property
    def reward(self) -> float: ...
    @property
    def components(self) -> Mapping[str, float]: ...
    @property
    def report(self) -> Mapping[str, float] | None: ...


@dataclass
class Rollout:
    """Tokens from the prompt's first to the last, and what is known of each; a group is a list of one example's.

    Only tokens that the policy drew itself are learned from: not the prompt, nor what a hint, a tool or a partner said.
    """

    example: Example
    tokens: np.ndarray  # int64 [n]
    drawn: np.ndarray  # bool [n]: by the policy, and learned from
    logprobs: np.ndarray  # float32 [n], the engine's, nats; 0 where not drawn
    prompt: int  # so many first tokens are the prompt
    text: str  # what answers the prompt, without the token that ended it
    finish: str  # "stop" | "length"
    versions: tuple[tuple[int, int], ...]  # (version of the weights, tokens that they drew), in their order
    experts: np.ndarray | None = None  # int16 [n - 1, layers x top_k]: the engine's choice for tokens[:-1]
    rewards: np.ndarray | None = None  # float32 [n]: of single tokens, beside that of the whole (a strategy's)
    weights: np.ndarray | None = None  # float32 [n]: how much each drawn token's loss counts (a strategy's); None: 1
    hinted: np.ndarray | None = None  # bool [n]: told by a hint, which is imitated (algorithm.hint_coef); None: none is
    round: int = 0  # of those that its group was made in, from 0
    hint_rate: float = 0.0  # the share of a solution that its hint was to tell
    scored: Any = None  # Scored, once it has been

    @property
    def length(self) -> int:
        """How many tokens were drawn."""
        return int(np.count_nonzero(self.drawn))


def from_completion(example: Example, prompt: Sequence[int] | np.ndarray, completion: Completion, text: str) -> Rollout:
    """The rollout of a single completion of a prompt."""
    whole = len(prompt) + len(completion.tokens)
    tokens, logprobs, drawn = np.empty(whole, np.int64), np.zeros(whole, np.float32), np.zeros(whole, bool)
    tokens[: len(prompt)], tokens[len(prompt) :] = prompt, completion.tokens
    logprobs[len(prompt) :], drawn[len(prompt) :] = completion.logprobs, True
    return Rollout(
        example=example,
        tokens=tokens,
        drawn=drawn,
        logprobs=logprobs,
        prompt=len(prompt),
        text=text,
        finish=completion.finish_reason,
        versions=completion.versions,
        experts=completion.experts,
    )
