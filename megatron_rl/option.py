"""What an option may be, declared beside it: ``lr: float = number(1e-6, least=0)  # peak learning rate``."""

import math
from dataclasses import Field, dataclass, field
from typing import Any, TypeVar

_T = TypeVar("_T", int, float, float | None)
LARGEST = 2**63 - 1  # whole numbers end up in C

_KEY = "allowed"


@dataclass(frozen=True)
class Allowed:
    """The values of a text (``choices``; none: any text) or of a number (``least`` and ``most`` are allowed, ``above``
    is not). Numbers are finite."""

    choices: tuple[str, ...] = ()
    least: float | None = None
    above: float | None = None
    most: float | None = None

    def holds(self, value: Any) -> bool:
        """Whether an option may have this value, which is of the option's type."""
        if isinstance(value, str):
            return not self.choices or value in self.choices
        if isinstance(value, bool) or not isinstance(value, int | float):
            return True
        return (
            _sensible(value)
            and (self.least is None or value >= self.least)
            and (self.above is None or value > self.above)
            and (self.most is None or value <= self.most)
        )

    def violation(self, value: Any) -> str:
        """What a value that does not hold must be: ``must be …``."""
        if isinstance(value, int | float) and not _sensible(value):
            kind = "a finite number" if isinstance(value, float) else f"a whole number below 2^{LARGEST.bit_length()}"
            return f"must be {kind}, {self}" if str(self) else f"must be {kind}"
        return f"must be {self}"

    def __str__(self) -> str:
        if self.choices:
            return " or ".join(filter(None, (", ".join(self.choices[:-1]), self.choices[-1])))
        if self.least is not None and self.most is not None:
            return f"between {self.least} and {self.most}"
        parts = []
        if self.least is not None:
            parts.append(f"{self.least} or more")
        if self.above is not None:
            parts.append(f"above {self.above}")
        if self.most is not None:
            parts.append(f"at most {self.most}")
        return " and ".join(parts)


def choice(*names: str, default: str = "") -> str:
    """A dataclass field that is one of ``names``, by default the first."""
    value: str = field(default=default or names[0], metadata={_KEY: Allowed(choices=names)})
    return value


def number(default: _T, *, least: float | None = None, above: float | None = None, most: float | None = None) -> _T:
    """A dataclass field that is a finite number: ``least`` or more, ``above`` something, at ``most`` something."""
    value: _T = field(default=default, metadata={_KEY: Allowed((), least, above, most)})
    return value


def allowed(of: "Field[Any]") -> Allowed:
    """What a field of a configuration may be."""
    found: Allowed = of.metadata.get(_KEY, Allowed())
    return found


def _sensible(value: float) -> bool:
    return math.isfinite(value) if isinstance(value, float) else -LARGEST <= value <= LARGEST
