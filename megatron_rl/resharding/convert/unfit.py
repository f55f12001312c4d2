"""A number that another dtype does not have. Imports no torch."""

from typing import Any

import numpy as np

from megatron_rl.errors import InputError

Bits = np.ndarray[Any, Any]  # elements as they lie, whatever they mean: unsigned integers of their size


class UnfitError(InputError):
    """Rows hold a number that another dtype cannot: which, where in the rows, and what a cast makes of them."""

    def __init__(self, text: str, at: int, value: float, result: tuple[Bits, Bits | None]) -> None:
        super().__init__(text)
        self.at, self.value, self.result = at, value, result
