"""What an algorithm is: what has to be scored first, what a token gets credit for, and the loss of a micro-batch.

An algorithm runs alike on all ranks. The stage builds its micro-batches, has the columns of ``needs`` scored, lets it
``credit`` the batch once and then asks for the ``loss`` of every micro-batch of every update.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch

Loss = tuple[torch.Tensor, dict[str, torch.Tensor]]
"""A scalar and its metrics: this micro-batch's shares of the mini-batch's sums (``actor.trainer.Objective``)."""


class TokenBatch(Protocol):
    """A micro-batch as an algorithm sees it: the n trained tokens of s sequences, one sequence after the other."""

    columns: dict[str, torch.Tensor]  # float32 [n] each: weight, rollout_logprobs, and what was scored or credited
    lengths: torch.Tensor  # int64 [s]: how many of the n are of each sequence
    samples: torch.Tensor  # int64 [s]: the number of each sequence's sample in the whole batch

    def sequence_sum(self, values: torch.Tensor) -> torch.Tensor:
        """[n] -> [n]: for every token the sum over its whole sequence, wherever that lies."""


@dataclass(frozen=True)
class CreditBatch:
    """What credit is given for: this rank's tokens, and the rewards of all ranks' samples."""

    micro_batches: Sequence[TokenBatch]
    rewards: np.ndarray  # float64 [samples], of the whole batch, on every rank alike
    groups: np.ndarray  # int64 [samples]: samples of one prompt have one number

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


class Algorithm(Protocol):
    """One per file in this room."""

    needs: frozenset[str]  # "old": log-probs before the first update; "reference": those of the frozen policy

    def credit(self, batch: CreditBatch) -> np.ndarray:
        """Write the column ``advantage`` of every micro-batch; returns each sample's mean, float64 [samples]."""

    def loss(self, batch: TokenBatch, logprobs: torch.Tensor, entropy: torch.Tensor) -> Loss:
        """logprobs, entropy: [n] of the policy that learns. ``old_logprobs`` [n] is among the columns by now."""
