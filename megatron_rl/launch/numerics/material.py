"""Random material for one step of any stage: what rank 0 lets a stage draw on where there is no task and no engine."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from megatron_rl.config import Config
from megatron_rl.data.sets.conversations import Conversation
from megatron_rl.data.sets.pairs import Pair
from megatron_rl.data.task import Example
from megatron_rl.launch.numerics.shape import GROUPS, LONGEST, SIZE
from megatron_rl.rewards.workers.pool import Scored
from megatron_rl.rollout.rollout import Rollout
from megatron_rl.training.batch import Drawn
from megatron_rl.training.progress import Progress

_GAP = 0.05  # nats, of the engine's log-probs to the actor's


@dataclass
class Texts:
    """A cursor over rows that ``make`` makes; a text is its tokens' numbers."""

    make: Callable[[], Any]

    def take(self, count: int, step: int = 0) -> list[Any]:
        """As ``data.prompts.Cursor``."""
        return [self.make() for _ in range(count)]

    def state(self) -> dict[str, int]:
        """Nothing goes on behind it."""
        return {}


class Material:
    """A ``Source`` of stages: the same numbers for the same seed and vocabulary, whatever the layout.

    ``logprobs``: those of the drawn tokens of all rollouts, one after the other, once they are known.
    """

    def __init__(self, config: Config, vocabulary: int) -> None:
        self.config, self.vocabulary = config, vocabulary
        self.rng = np.random.default_rng(config.run.seed)
        self.prompts: Any = {
            "sft": Texts(self._conversation),
            "preference": Texts(self._pair),
            "reward_model": Texts(self._pair),
        }
        self.groups = [self._group(number) for number in range(GROUPS)] if config.run.steps else []

    def encode(self, text: str) -> tuple[int, ...]:
        """The numbers in a text."""
        return tuple(map(int, text.split()))

    def warn(self, text: str) -> None:
        """What is said of a step of a run means nothing here."""

    def take(self, at: Progress) -> Drawn:
        """The groups of rollouts."""
        return Drawn(self.groups, {}, {})

    def engine_says(self, logprobs: Sequence[float]) -> None:
        """Let an engine have given the drawn tokens nearly these log-probs."""
        left = np.asarray(logprobs, np.float32)
        left = left + self.rng.normal(0.0, _GAP, len(left)).astype(np.float32)
        for group in self.groups:
            for rollout in group:
                rollout.logprobs[rollout.drawn] = left[: rollout.length]
                left = left[rollout.length :]

    def _tokens(self, least: int, most: int) -> np.ndarray:
        return self.rng.integers(0, self.vocabulary, self.rng.integers(least, most + 1))

    def _text(self, least: int, most: int) -> str:
        return " ".join(map(str, self._tokens(least, most)))

    def _conversation(self) -> Conversation:
        return Conversation(((self._text(3, LONGEST // 2), False), (self._text(3, LONGEST), True)))

    def _pair(self) -> Pair:
        return Pair(self._text(3, LONGEST // 2), "", self._text(3, LONGEST), self._text(3, LONGEST))

    def _group(self, number: int) -> list[Rollout]:
        sources = [*self.config.algorithm.kl_coefs, ""]
        example = Example(f"random/{number}", "", "", data_source=sources[number % len(sources)])
        prompt = self._tokens(3, LONGEST // 2)
        return [self._rollout(example, prompt) for _ in range(SIZE)]

    def _rollout(self, example: Example, prompt: np.ndarray) -> Rollout:
        completion = self._tokens(4, LONGEST)
        hint = 2 if self.config.rollout.strategy == "hinted" else 0
        tokens = np.concatenate([prompt, completion]).astype(np.int64)
        place = np.arange(len(tokens))
        drawn = place >= len(prompt) + hint
        scores = {name: float(self.rng.uniform()) for name in self.config.rewards.parts}
        reward = sum(self.config.rewards.parts_at(0)[name] * score for name, score in scores.items())
        return Rollout(
            example=example,
            tokens=tokens,
            drawn=drawn,
            logprobs=np.zeros(len(tokens), np.float32),
            prompt=len(prompt),
            text="",
            finish="length" if len(completion) == LONGEST else "stop",
            versions=((0, int(drawn.sum())),),
            hinted=(place >= len(prompt)) & ~drawn if hint else None,
            scored=Scored(reward, {f"{name}/score": score for name, score in scores.items()}),
        )
