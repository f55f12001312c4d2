"""Copies of a run's numbers in other programs' formats, which never stop a run."""

from collections.abc import Callable
from typing import Any


class Mirror:
    """Something numbers are copied to as long as it takes them; what it raises is said once, and it gets no more.

    ``make`` is called at once and returns what has the methods that ``call`` names, or None for no mirror at all.
    """

    def __init__(self, name: str, make: Callable[[], Any]) -> None:
        self.name, self._target = name, None
        self._target = self._guarded(make)

    def __bool__(self) -> bool:
        return self._target is not None

    def call(self, method: str, *arguments: Any) -> None:
        """Have the mirror do something."""
        if self._target is not None:
            self._guarded(lambda: getattr(self._target, method)(*arguments))

    def _guarded(self, action: Callable[[], Any]) -> Any:
        try:
            return action()
        except Exception as error:  # whatever another program raises: the run's own files have the numbers
            said = " ".join(str(error).split()) or type(error).__name__
            print(f"warning: {self.name} takes no more numbers ({said[:300]}); the run goes on.", flush=True)
            self._target = None
            return None
