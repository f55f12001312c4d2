"""Training sequences as the rooms hand them round: numpy only, no padding."""

from dataclasses import dataclass, field

import numpy as np


@dataclass
class Sequence:
    """One prompt with its completion.

    ``columns`` are per-token numbers aligned with ``tokens``: ``columns[name][t]`` belongs to the
    prediction of ``tokens[t]``. Nothing predicts the first token, so index 0 is never read.
    """

    tokens: np.ndarray  # int64 [length]
    columns: dict[str, np.ndarray] = field(default_factory=dict)  # float32 [length] each
    prompt: int = 0  # so many first tokens have weight 0 and may be shared with other sequences

    def __len__(self) -> int:
        return len(self.tokens)
