"""mbridge's side of benchmarks/swap.py: torchrun --nproc-per-node 4 mbridge_export.py MODEL REPEATS

Four ranks on the CPU (TP2 x PP2, gloo) hold a random model of MODEL/config.json, and mbridge exports its full Hugging
Face tensors on every rank, each of which is let go at once. The last line of rank 0's output is what was exported
(elements) and the seconds of the fastest of the repeats, without imports and building the model.
"""

import sys
import time
from pathlib import Path

import torch
import torch.distributed as dist
from mbridge_convert import open_bridge

from megatron_rl.actor import accelerator, groups
from megatron_rl.actor.config import ActorConfig
from megatron_rl.actor.model import build_model
from megatron_rl.resharding.families.architecture import read_architecture
from megatron_rl.resharding.folders.hf import read_hf_config


def main(model: Path, repeats: int) -> None:
    accelerator.adapt()
    actor = ActorConfig(threads=1, tensor_parallel=2, pipeline_parallel=2)
    groups.initialize(actor, seed=0)
    bridge = open_bridge(model)
    chunks = build_model(read_architecture(read_hf_config(model)), actor, torch.bfloat16)
    found = []
    for _ in range(repeats):
        dist.barrier()
        started = time.perf_counter()
        count = sum(tensor.numel() for _, tensor in bridge.export_weights(chunks))
        dist.barrier()
        found.append(time.perf_counter() - started)
    if dist.get_rank() == 0:
        print(count, min(found))
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
