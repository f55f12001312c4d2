"""A rank that is handed its share of rank 0's values: run by test_groups.py."""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch.distributed as dist

from megatron_rl.actor import groups
from megatron_rl.actor.config import ActorConfig

PICKLED: list[int] = []


class Value:
    """Notes that it is pickled."""

    def __init__(self, number: int, size: int) -> None:
        self.number, self.content = number, np.full(size, number)

    def __getstate__(self) -> dict[str, Any]:
        PICKLED.append(self.number)
        return self.__dict__


groups.initialize(ActorConfig(tensor_parallel=4), seed=0)
rank, seen = dist.get_rank(), []
for shares in ([0, 0, 1, 1], [0, 1, 0, 1], [1, 0, 1, 2], [0, 0, 0, 0]):
    values = [Value(number, 10 ** (4 * number)) for number in range(max(shares) + 1)]
    got = groups.scatter(values if rank == 0 else None, shares)
    assert got.number == shares[rank] and got.content.shape == (10 ** (4 * got.number),)
    assert (got.content == got.number).all()
    seen.append(sorted(PICKLED))
    PICKLED.clear()
Path(sys.argv[1], f"rank{rank}").write_text(json.dumps(seen))
dist.barrier()
groups.shutdown()
