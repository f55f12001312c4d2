"""Rollouts as rows to learn from: what each token weighs, and what goes with it."""

from collections.abc import Callable, Container, Mapping, Sequence
from functools import partial

import numpy as np

from megatron_rl.actor.rows import IMITATE, TrainingRow
from megatron_rl.algorithms.algorithm import Term
from megatron_rl.algorithms.published import settled
from megatron_rl.algorithms.terms.aggregation import SUMS, token_weights
from megatron_rl.config import Config
from megatron_rl.rollout.rollout import Rollout


class Rows:
    """The rows of one step's rollouts, which all have the same columns."""

    def __init__(self, config: Config, rollouts: Sequence[Rollout], dropped: Container[int] = ()) -> None:
        """``dropped``: numbers of rollouts that nothing is learned from."""
        self.options, self.rollouts, self.dropped = settled(config.algorithm), rollouts, dropped
        self.longest = self.options.aggregation_length or config.rollout.max_new_tokens
        self.rewarded = any(rollout.rewards is not None for rollout in rollouts)
        weighted = any(rollout.weights is not None for rollout in rollouts)
        self.imitated = self.options.hint_coef > 0
        self.shared = weighted or self.options.aggregation in SUMS  # weights that do not add up to 1

    def made(self, first: int, last: int) -> list[TrainingRow]:
        """Those of one mini-batch: of the samples ``first`` up to ``last``."""
        rollouts = self.rollouts[first:last]
        lengths = [self.rollouts[number].length if self._learned(number) else 0 for number in range(first, last)]
        weights = token_weights(lengths, self.options.aggregation, self.longest)
        shares = token_weights(lengths, "token-mean")
        return [
            TrainingRow(
                rollout.tokens,
                self._columns(rollout, weight, share),
                prompt=rollout.prompt,
                experts=rollout.experts,
                sample=first + number,
            )
            for number, (rollout, weight, share) in enumerate(zip(rollouts, weights, shares, strict=True))
        ]

    def _learned(self, number: int) -> bool:
        cut_off = self.rollouts[number].finish == "length"
        return number not in self.dropped and not (cut_off and self.options.truncated == "mask")

    def _columns(self, rollout: Rollout, weight: float, share: float) -> dict[str, np.ndarray]:
        weights = _where(rollout.drawn, weight)
        if rollout.weights is not None:
            weights = (np.where(rollout.drawn, weight, 0.0) * rollout.weights).astype(np.float32)
        columns = {"weight": weights, "rollout_logprobs": rollout.logprobs}
        if self.shared:
            columns["share"] = _where(rollout.drawn, share)
        if self.imitated:
            hinted = False if rollout.hinted is None else rollout.hinted
            columns[IMITATE] = (np.where(rollout.drawn, 0.0, weight) * self.options.hint_coef * hinted).astype(
                np.float32
            )
        if self.rewarded:
            given = rollout.rewards
            columns["token_reward"] = np.zeros(len(rollout.tokens), np.float32) if given is None else given
        if self.options.kl_coefs:
            coef = self.options.kl_coefs.get(rollout.example.data_source, self.options.kl_coef)
            columns["kl_coef"] = np.full(len(rollout.tokens), coef, np.float32)
        return columns


def _where(drawn: np.ndarray, value: float) -> np.ndarray:
    """``value`` as float32 where tokens were drawn, and 0."""
    return np.where(drawn, np.float32(value), np.float32(0.0))


def credited(
    rollouts: Sequence[Rollout], terms_at: Callable[[int], Mapping[str, float]], dropped: Container[int] = ()
) -> tuple[np.ndarray, dict[str, Term]]:
    """Every sample's reward, float64 [samples], and the terms that it is the weighted sum of.

    ``terms_at``: the weights at an RL step; those of a rollout are of the step for which it was scored. A completion
    that could not be scored has its reward in equal parts; one that is ``dropped`` has 0.
    """
    weights = {step: terms_at(step) for step in {rollout.scored.step for rollout in rollouts}}

    def column(of: Callable[[Rollout], float]) -> np.ndarray:
        return np.array([0.0 if number in dropped else of(r) for number, r in enumerate(rollouts)], dtype=np.float64)

    def score(rollout: Rollout, term: str) -> float:
        found, of = rollout.scored.components.get(f"{term}/score"), weights[rollout.scored.step]
        if found is not None or not of[term]:
            return float(found or 0.0)
        return float(rollout.scored.reward / sum(weight != 0 for weight in of.values()) / of[term])

    def weight(rollout: Rollout, term: str) -> float:
        return weights[rollout.scored.step][term]

    terms = {term: Term(column(partial(score, term=term)), column(partial(weight, term=term))) for term in terms_at(0)}
    return column(lambda rollout: rollout.scored.reward), terms
