"""One rank of a tensor-parallel group that quantises its shard: python fp8_ranks.py RANK WORLD FOLDER.

FOLDER holds config.json and the rank's parameters, RANK.pt; it gets what the rank offers, RANK.offered.pt.
"""

import json
import sys
from functools import partial
from pathlib import Path

import torch
import torch.distributed as dist

from megatron_rl.resharding.layout import ParallelSizes
from megatron_rl.resharding.layouts.megatron import megatron_layout
from megatron_rl.resharding.quantise import ShardQuantiser, quantised_names

if __name__ == "__main__":
    rank, world, folder = int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3])
    config = json.loads((folder / "config.json").read_text())
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=world)
    layout = megatron_layout(config, ParallelSizes(tensor=world))
    quantiser = ShardQuantiser(layout, rank, quantised_names(config))
    offered = quantiser(torch.load(folder / f"{rank}.pt"), partial(dist.all_reduce, op=dist.ReduceOp.MAX))
    torch.save(offered, folder / f"{rank}.offered.pt")
    dist.destroy_process_group()
