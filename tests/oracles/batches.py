"""Random ragged batches, as padded matrices for the oracles and as flat tokens for this project."""

from dataclasses import dataclass, field

import numpy as np
import torch
from torch.nn.utils.rnn import pad_sequence


@dataclass
class Ragged:
    """Sequences side by side; the i-th has ``lengths[i]`` tokens. Of groups of ``size`` completions of one prompt."""

    seed: int
    size: int = 4
    prompts: int = 3
    longest: int = 12
    padded: dict[str, torch.Tensor] = field(default_factory=dict)  # float64 [sequences, longest]

    def __post_init__(self) -> None:
        rng = np.random.default_rng(self.seed)
        count = self.size * self.prompts
        self.lengths = rng.integers(1, self.longest + 1, count)
        self.lengths[0] = self.longest
        self.mask = (torch.arange(self.longest) < torch.from_numpy(self.lengths)[:, None]).double()
        self.groups = np.repeat(np.arange(self.prompts), self.size)
        self.rewards = rng.normal(size=count)
        self.scores = {name: rng.normal(size=count) for name in ("right", "format")}

        def noise(scale: float = 1.0) -> torch.Tensor:
            return torch.from_numpy(rng.normal(size=(count, self.longest)) * scale)

        new = -noise().abs()
        self.padded = {
            "logprobs": new,
            "old_logprobs": new + noise(0.3),
            "ref_logprobs": new + noise(0.3),
            "advantage": noise(),
            "values": noise(),
            "factor": noise().abs(),
        }

    def flat(self, name: str) -> torch.Tensor:
        """[n]"""
        return self.padded[name][self.mask.bool()]

    def token_level(self, rewards: np.ndarray) -> torch.Tensor:
        """Each sequence's reward at its last token, as verl has them."""
        matrix = torch.zeros_like(self.mask)
        matrix[torch.arange(len(rewards)), torch.from_numpy(self.lengths) - 1] = torch.from_numpy(rewards)
        return matrix


class Tokens:
    """All of a batch's sequences as one micro-batch of the only rank."""

    def __init__(self, ragged: Ragged) -> None:
        self.lengths = self.totals = torch.from_numpy(ragged.lengths)
        self.samples = torch.arange(len(self.lengths))
        self.columns = {name: ragged.flat(name) for name in ragged.padded}
        self.columns["weight"] = torch.ones(int(self.lengths.sum()))

    def sequence_sum(self, values: torch.Tensor) -> torch.Tensor:
        return torch.cat([part.sum().expand(len(part)) for part in values.split(self.lengths.tolist())])

    def whole(self, values: torch.Tensor) -> torch.Tensor:
        return pad_sequence(values.split(self.lengths.tolist()), batch_first=True)

    def own(self, whole: torch.Tensor) -> torch.Tensor:
        return torch.cat([row[:length] for row, length in zip(whole, self.lengths.tolist(), strict=True)])
