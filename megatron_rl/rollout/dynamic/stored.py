"""Groups that wait for a later step, as bytes in a checkpoint: nothing of them is lost, to the last bit.

A header in JSON, its length before it (8 bytes, little-endian), and behind it the arrays of all rollouts, one after the
other. An example is kept as its index among the task's: the data of a run does not change.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np

from megatron_rl.data.task import Example
from megatron_rl.rollout.rollout import Rollout

FILE = "carried.rollouts"  # of a checkpoint


@dataclass(frozen=True)
class Waiting:
    """A scored group without a place in a batch yet."""

    index: int  # of its example among the task's training examples
    group: list[Rollout]


def pack(groups: Sequence[Waiting]) -> bytes:
    """The groups, for ``unpack``."""
    arrays: list[np.ndarray] = []

    def kept(value: Any) -> Any:
        if not isinstance(value, np.ndarray):
            return value
        arrays.append(value)
        return {"dtype": value.dtype.str, "shape": value.shape}

    header = [
        {
            "index": waiting.index,
            "group": [
                {f.name: kept(getattr(r, f.name)) for f in fields(r) if f.name not in ("example", "scored")}
                | {"scored": asdict(r.scored)}
                for r in waiting.group
            ],
        }
        for waiting in groups
    ]
    text = json.dumps(header).encode()
    return b"".join([len(text).to_bytes(8, "little"), text, *(np.ascontiguousarray(a).tobytes() for a in arrays)])


def unpack(content: bytes, example: Callable[[int], Example], scored: Callable[..., Any]) -> list[Waiting]:
    """What was packed. ``example``: that of an index; ``scored``: makes what scoring said, of its fields by name."""
    at = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:at])

    def read(value: Any) -> Any:
        nonlocal at
        if not (isinstance(value, dict) and value.keys() == {"dtype", "shape"}):
            return value
        array = np.frombuffer(content, value["dtype"], int(np.prod(value["shape"])), at).reshape(value["shape"])
        at += array.nbytes
        return array.copy()

    found = []
    for waiting in header:
        group = []
        for entry in waiting["group"]:
            values = {name: read(value) for name, value in entry.items() if name != "scored"}
            values["versions"] = tuple(map(tuple, values["versions"]))
            group.append(Rollout(example(waiting["index"]), **values, scored=scored(**entry["scored"])))
        found.append(Waiting(waiting["index"], group))
    return found
