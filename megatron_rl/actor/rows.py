"""Training rows as the rooms hand them round: numpy only, no padding."""

from dataclasses import dataclass, field

import numpy as np

IMITATE = "imitate"
"""A column of weights: such tokens are imitated, whatever else is learned from the row, and have no other columns."""


@dataclass
class TrainingRow:
    """One sequence to learn from: a prompt with what follows it.

    ``columns`` are per-token numbers aligned with ``tokens``: ``columns[name][t]`` belongs to the
    prediction of ``tokens[t]``. Nothing predicts the first token, so index 0 is never read.
    """

    tokens: np.ndarray  # int64 [length]
    columns: dict[str, np.ndarray] = field(default_factory=dict)  # float32 [length] each
    prompt: int = 0  # so many first tokens have weight 0 and may be shared with other rows
    experts: np.ndarray | None = None  # int16 [length - 1, layers x top_k]: the engine's choice for tokens[:-1]
    sample: int = 0  # the number of the sample, in the whole batch, that it was made of
    unit: int = -1  # rows of one unit (a preference pair) share a micro-batch; -1: a row for itself

    def __len__(self) -> int:
        return len(self.tokens)

    def shared(self) -> bytes:
        """What rows that share their prompt have in common: its tokens and, where given, its routing."""
        routing = b"" if self.experts is None else self.experts[: self.prompt].tobytes()
        return self.tokens[: self.prompt].tobytes() + routing
