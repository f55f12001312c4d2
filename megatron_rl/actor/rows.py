"""Training rows as the rooms hand them round: numpy only, no padding."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np

IMITATE = "imitate"
"""A column of weights: such tokens are imitated, whatever else is learned from the row, and have no other columns."""


_BYTES = 4  # of a number of a column


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


_Short = tuple[bytes, bytes, int, int]  # two values, how often the first is there, and how often both


def _short(column: np.ndarray, prompt: int) -> bytes | _Short:
    """A column, without its repetitions where it has one value up to ``prompt`` and one from there on, bit by bit."""
    content = np.ascontiguousarray(column, np.float32).tobytes()
    cut, length = _BYTES * prompt, len(content)
    if 0 < cut < length and _one_value(content, cut, length) and _one_value(content, 0, cut):
        return content[:_BYTES], content[-_BYTES:], prompt, length // _BYTES
    return content


def _one_value(content: bytes, begin: int, end: int) -> bool:
    """Whether a stretch of a column is one number again and again: it is what it is one number further on."""
    if content[begin : begin + _BYTES] != content[end - _BYTES : end]:  # nearly all columns that are not
        return False
    return content[begin : end - _BYTES] == content[begin + _BYTES : end]


def _whole(column: bytes | _Short) -> np.ndarray:
    """What ``_short`` was made of."""
    if isinstance(column, bytes):
        return np.frombuffer(column, np.float32).copy()
    first, last, prompt, length = column
    found = np.empty(length, np.float32)
    for part, value in ((found[:prompt], first), (found[prompt:], last)):
        part.view(np.int32)[:] = np.frombuffer(value, np.int32)  # not as numbers: NaN has many
    return found
