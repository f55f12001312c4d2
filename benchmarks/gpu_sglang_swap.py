"""Pause to resume of a real SGLang server on the trainer's GPU, against a copy of the same bytes on it.

    python -m benchmarks.gpu_sglang_swap [--shape qwen3-4b] [--layers N] [--repeats 5]
                                         [--ways …] [key=value …] [--dry-run]

A random bfloat16 model lies in another process's GPU memory as Megatron keeps it, and the server's worker pulls it
through CUDA IPC (``pull``). ``handles``: SGLang's update_weights_from_tensor, as other trainers call it:
full tensors in Hugging Face's shapes, gathered on the GPU, of which the server is sent CUDA IPC handles. ``pull host``
and ``disk`` begin in shared host memory. All swaps are proved. The floor is one device-to-device copy. key=value:
options of rollout.sglang. Prints a line of JSON; best of the repeats, in milliseconds. A dry run takes a tiny shape and
the ways that begin in host memory. Starting the server takes a minute and more.
"""

import argparse
import json
import multiprocessing
from collections.abc import Callable
from multiprocessing.reduction import ForkingPickler
from typing import Any

import numpy as np
import torch
from omegaconf import OmegaConf

from benchmarks.gpu_head import DEVICE, ON_GPU, synchronise
from benchmarks.gpu_shapes import SHAPES
from benchmarks.gpu_swap import SIZES, own
from benchmarks.sglang_swap import Trainer, compare, configuration, on_host
from megatron_rl.resharding.execute import flat, pull
from megatron_rl.resharding.layouts.transformers import files_layout
from megatron_rl.resharding.plan import Plan, make_plan
from megatron_rl.resharding.swap import SwapSource, merge_hashes
from megatron_rl.rollout.config import SGLangConfig
from megatron_rl.rollout.sglang.servers.http import Server


def on_device(architecture: dict[str, Any]) -> Trainer:
    """A random model in the GPU memory of a process that ends with this one."""
    spawn = multiprocessing.get_context("spawn")
    pipe, theirs = spawn.Pipe()
    spawn.Process(target=own, args=(theirs, architecture), daemon=True).start()
    theirs.close()
    source = SwapSource(architecture, SIZES, True, False, [pipe.recv()])
    planned = False

    def hashes(plan: Plan, version: int) -> np.ndarray:
        nonlocal planned
        if not planned:
            pipe.send(plan)
            planned = True
        pipe.send(version)
        return merge_hashes(plan, [pipe.recv()[0]])

    return Trainer(source, hashes)


class Handles:
    """SGLang's update_weights_from_tensor with CUDA tensors of this process."""

    def __init__(self, source: SwapSource) -> None:
        files, memory = files_layout(source.hf_config), source.memories[0]
        self.copies = make_plan(source.layout(), files).copies
        self.sources = {(0, name): t for name, t in memory.open().items()}  # type: ignore[union-attr]
        self.tensors = {
            name: torch.empty(shape, dtype=torch.bfloat16, device=DEVICE)
            for name, shape in files.ranks[0].locals.items()
        }

    async def __call__(self, server: Server, version: int) -> None:
        pull(self.copies, self.sources, {name: flat(t) for name, t in self.tensors.items()})
        synchronise()
        content = bytes(ForkingPickler.dumps(list(self.tensors.items())))
        await server.update_from_tensor(content, 1, None, None, 120.0)


def device_copy(size: int) -> Callable[[], object]:
    """So many bytes on the GPU, to the end."""
    origin, target = (torch.zeros(size, dtype=torch.uint8, device=DEVICE) for _ in range(2))

    def copy() -> None:
        target.copy_(origin)
        synchronise()

    return copy


def main() -> None:
    """Print a line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=list(SHAPES), default="qwen3-4b")
    parser.add_argument("--layers", type=int, help="instead of the shape's")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--ways", default="pull,handles,pull host,disk")
    parser.add_argument("--dry-run", action="store_true", help="a tiny shape, without what needs a GPU")
    parser.add_argument("overrides", nargs="*", help="key=value of rollout.sglang")
    options = parser.parse_args()
    if options.dry_run:
        options.shape, options.ways = "tiny", "pull host,disk"
    shape = SHAPES[options.shape] | ({"num_hidden_layers": options.layers} if options.layers else {})
    architecture = shape | {"torch_dtype": "bfloat16", "max_position_embeddings": 4096}
    config = configuration()
    chosen = OmegaConf.merge(OmegaConf.structured(SGLangConfig), OmegaConf.from_dotlist(options.overrides))
    config.rollout.sglang = OmegaConf.to_object(chosen)  # type: ignore[assignment]
    host = None
    trainers = {}
    for way in options.ways.split(","):
        if way == "pull":
            trainers[way] = on_device(architecture)
        elif way == "handles":
            trainer = on_device(architecture)
            trainers[way] = trainer._replace(bring=Handles(trainer.source))
        else:
            host = host or on_host(architecture)
            trainers[way] = host
    total, results = compare(config, trainers, device_copy, options.repeats)
    found = {
        "benchmark": "gpu_sglang_swap",
        "device": torch.cuda.get_device_name() if ON_GPU else "CPU",
        "shape": options.shape,
        "layers": shape["num_hidden_layers"],
        "gigabytes": round(total / 1e9, 3),
        "options": options.overrides,
        "ms": {way: {name: round(1e3 * s, 2) for name, s in phases.items()} for way, phases in results.items()},
        "times_floor": {w: round(p["paused"] / results["memcpy"]["paused"], 2) for w, p in results.items()},
    }
    print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main()
