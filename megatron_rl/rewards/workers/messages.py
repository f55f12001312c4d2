"""What a reward worker says to the pool."""

from typing import NamedTuple

READY, BEGUN = 0, 1  # it can take batches; it has read its batch


class Done(NamedTuple):
    """A sample is scored."""

    place: int  # in its batch
    reward: float
    components: dict[str, float]
    report: dict[str, float] | None


class Late(NamedTuple):
    """A sample's asynchronous rewards were cancelled at its deadline; the worker goes on."""

    place: int
    seconds: float  # that it had


class Failed(NamedTuple):
    """An error that ends the run."""

    said: str
    place: int | None = None  # of the sample that it is about
