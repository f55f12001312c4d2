"""A rank that says where it listens after the job's groups are made: run by test_parallel.py."""

import os
import sys
from pathlib import Path

import psutil
import torch
import torch.distributed as dist

from megatron_rl.actor import groups
from megatron_rl.actor.config import ActorConfig

groups.initialize(ActorConfig(tensor_parallel=2), seed=0)
total = torch.ones(1)
dist.all_reduce(total)
assert total.item() == 2 and "GLOO_SOCKET_IFNAME" not in os.environ
found = {c.laddr.ip for c in psutil.Process().net_connections("tcp") if c.status == psutil.CONN_LISTEN}
Path(sys.argv[1], f"rank{dist.get_rank()}").write_text(" ".join(sorted(found)))
dist.barrier()
groups.shutdown()
