"""Training rows as the rooms hand them round: numpy only, no padding."""

from dataclasses import dataclass, field
from typing import Any

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

    def __getstate__(self) -> tuple[Any, ...]:
        """What travels to the ranks: a step may have gigabytes of rows, of which this is a half.

        No vocabulary has 2^31 tokens, and most columns say one thing of the prompt and another of the rest.
        """
        columns = {name: _short(column, self.prompt) for name, column in self.columns.items()}
        return self.tokens.astype(np.int32).tobytes(), columns, self.prompt, self.experts, self.sample, self.unit

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        tokens, columns, self.prompt, self.experts, self.sample, self.unit = state
        self.tokens = np.frombuffer(tokens, np.int32).astype(np.int64)
        self.columns = {name: _whole(column) for name, column in columns.items()}

    def shared(self) -> bytes:
        """What rows that share their prompt have in common: its tokens and, where given, its routing."""
        routing = b"" if self.experts is None else self.experts[: self.prompt].tobytes()
        return self.tokens[: self.prompt].tobytes() + routing


_Short = tuple[int, int, int, int]  # the bits of two values, how often the first is there, and how often both


def _short(column: np.ndarray, prompt: int) -> bytes | _Short:
    """A column, without its repetitions where it has one value up to ``prompt`` and one from there on, bit by bit."""
    bits = np.ascontiguousarray(column, np.float32).view(np.int32)
    if 0 < prompt < len(bits):
        first, last = int(bits[0]), int(bits[-1])
        if bits[prompt] == last and (bits[prompt:] == last).all() and (bits[:prompt] == first).all():
            return first, last, prompt, len(bits)
    return bits.tobytes()


def _whole(column: bytes | _Short) -> np.ndarray:
    """What ``_short`` was made of."""
    if isinstance(column, bytes):
        return np.frombuffer(column, np.float32).copy()
    first, last, prompt, length = column
    bits = np.full(length, last, np.int32)
    bits[:prompt] = first
    return bits.view(np.float32)
