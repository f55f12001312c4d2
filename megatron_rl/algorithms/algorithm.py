"""What an algorithm is: what has to be scored first, what a token gets credit for, and the loss of a micro-batch.

An algorithm runs alike on all ranks. The stage builds its micro-batches, has the columns of ``needs`` scored, lets it
``credit`` the batch once and then asks for the ``loss`` of every micro-batch of every update.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

import numpy as np
import torch

Loss = tuple[torch.Tensor, dict[str, torch.Tensor]]
"""A scalar and its metrics: this micro-batch's shares of the mini-batch's sums (``actor.trainer.Objective``)."""


class TokenBatch(Protocol):
    """A micro-batch as an algorithm sees it: the n trained tokens of s sequences, one sequence after the other.

    Under context parallelism a rank holds a part of each sequence's tokens.
    """

    columns: dict[str, torch.Tensor]  # float32 [n] each: weight, rollout_logprobs, and what was scored or credited
    lengths: torch.Tensor  # int64 [s]: how many of the n are of each sequence
    samples: torch.Tensor  # int64 [s]: the number of each sequence's sample in the whole batch
    totals: torch.Tensor  # int64 [s]: how many trained tokens each sequence has on all ranks together

    def sequence_sum(self, values: torch.Tensor) -> torch.Tensor:
        """[n] -> [n]: for every token the sum over its whole sequence, wherever that lies."""

    def whole(self, values: torch.Tensor) -> torch.Tensor:
        """[n] -> [s, longest], same dtype: every sequence's trained tokens in their order, zeros behind them.

        On every rank that holds a part of them, alike.
        """

    def own(self, whole: torch.Tensor) -> torch.Tensor:
        """[s, longest] -> [n]: this rank's tokens of what ``whole`` made."""


class Term(NamedTuple):
    """One of the rewards whose weighted sum is the samples' reward."""

    scores: np.ndarray  # float64 [samples]
    weights: np.ndarray  # float64 [samples]: of the step for which each was scored


def _alone(values: torch.Tensor) -> torch.Tensor:
    return values


@dataclass(frozen=True)
class CreditBatch:
    """What credit is given for: this rank's tokens, and the rewards of all ranks' samples.

    Ranks that do not end in log-probs, all pipeline stages but the last, have no micro-batches.
    """

    micro_batches: Sequence[TokenBatch]
    rewards: np.ndarray  # float64 [samples], of the whole batch, on every rank alike
    groups: np.ndarray  # int64 [samples]: samples of one prompt have one number
    terms: Mapping[str, Term] = field(default_factory=dict)  # what the rewards are the weighted sum of
    total: Callable[[torch.Tensor], torch.Tensor] = _alone
    """Adds up a tensor over all ranks that hold different tokens; collective, and alike on every rank afterwards."""

    def by_group(self) -> list[np.ndarray]:
        """The numbers of each group's samples, in the order of the groups."""
        order = np.argsort(self.groups, kind="stable")
        return np.split(order, np.flatnonzero(np.diff(self.groups[order])) + 1)

    def per_sample(self, column: str, values: np.ndarray) -> None:
        """Give every token of a sample its value: values float [samples] into ``column``."""
        table = torch.from_numpy(np.asarray(values, dtype=np.float32))
        for batch in self.micro_batches:
            mine = table.to(batch.lengths.device)[batch.samples]
            batch.columns[column] = mine.repeat_interleave(batch.lengths)

    def sample_means(self, column: str) -> np.ndarray:
        """The mean of a column over each sample's tokens, float64 [samples]; 0 where it has none. Collective."""
        sums = torch.zeros(2, len(self.rewards), dtype=torch.float64)
        for batch in self.micro_batches:
            numbers = batch.samples.repeat_interleave(batch.lengths).cpu()
            values = batch.columns[column].double().cpu()
            sums[0].index_add_(0, numbers, values)
            sums[1].index_add_(0, numbers, torch.ones_like(values))
        added = self.total(sums)
        return (added[0] / added[1].clamp(min=1)).numpy()

    def whiten(self, column: str, std: str) -> None:
        """Shift and scale a column to mean 0 and variance 1 over all trained tokens of all ranks; collective.

        (x - mean) / sqrt(var + 1e-8), as verl's masked_whiten; std: "sample" divides by n - 1, "population" by n. A
        single token becomes 0.
        """
        # twice over the data: the mean of squares would cancel where the mean is large
        values = [batch.columns[column].double() for batch in self.micro_batches]
        count, total = self._sums([torch.stack([torch.ones_like(v), v]) for v in values])
        mean = total / max(count, 1.0)
        [squares] = self._sums([(v - mean).square()[None] for v in values], 1)
        variance = squares / max(count - (std == "sample"), 1.0)
        for batch, value in zip(self.micro_batches, values, strict=True):
            batch.columns[column] = ((value - mean) / (variance + 1e-8) ** 0.5).float()

    def _sums(self, parts: list[torch.Tensor], rows: int = 2) -> list[float]:
        """Over all tokens of all ranks: parts [rows, n] each."""
        own = sum((part.sum(1).cpu() for part in parts), torch.zeros(rows, dtype=torch.float64))
        added: list[float] = self.total(own).tolist()
        return added


class Algorithm(Protocol):
    """One per file in ``policy/``; made of the run's ``AlgorithmConfig``."""

    needs: frozenset[str]
    """What is scored before credit is given: "old": column ``old_logprobs``, the policy's before the first update;
    "reference": ``ref_logprobs``, those of the frozen policy; "value": ``values``, the critic's;
    "teacher": ``teacher_logprobs``."""

    def credit(self, batch: CreditBatch) -> np.ndarray:
        """Write the column ``advantage`` of every micro-batch, and with a critic ``returns``.

        Returns each sample's mean advantage, float64 [samples], for the records. Collective.
        """

    def loss(self, batch: TokenBatch, logprobs: torch.Tensor, entropy: torch.Tensor) -> Loss:
        """logprobs, entropy: [n] of the policy that learns. ``old_logprobs`` [n] is among the columns by now."""
