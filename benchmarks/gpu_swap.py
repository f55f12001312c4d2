"""A weight swap between two processes on one GPU, against a copy of the same bytes on it.

    python -m benchmarks.gpu_swap [--layers 36] [--repeats 7] [--dry-run]

A random bfloat16 model of Qwen3-4B's shape (8 GB) lies in one process as Megatron keeps it and is pulled by another
into SGLang's layout through CUDA IPC. The floor is one device-to-device copy of as many bytes in the pulling process.
Best of the repeats, taken in turns. A dry run takes a tiny shape and, without a GPU, memory that both processes share.
"""

import argparse
import json
import multiprocessing
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import Connection
from typing import Any

import torch

from benchmarks.gpu_head import DEVICE, ON_GPU, synchronise
from benchmarks.gpu_shapes import SHAPES
from megatron_rl.resharding.execute import flat
from megatron_rl.resharding.layout import ParallelSizes
from megatron_rl.resharding.layouts.megatron import megatron_layout
from megatron_rl.resharding.layouts.sglang import EngineSizes, sglang_layout
from megatron_rl.resharding.swap import Receiver, SwapSource, merge_hashes
from megatron_rl.resharding.transports.cuda_ipc import DeviceMemory, HeldOnDevice, offer
from megatron_rl.resharding.transports.shared_memory import Place

SIZES = ParallelSizes()


@dataclass(frozen=True)
class Shared(DeviceMemory):
    """Host memory in the place of a GPU's."""

    tensors: dict[str, torch.Tensor]

    def open(self) -> dict[str, torch.Tensor]:
        return {name: flat(t) for name, t in self.tensors.items()}


def offered(parameters: dict[str, torch.Tensor]) -> DeviceMemory:
    if ON_GPU:
        return offer(parameters)
    places = {n: Place(0, 0, tuple(t.shape), t.dtype) for n, t in parameters.items()}
    return Shared(0, (), places, {n: t.share_memory_() for n, t in parameters.items()})


def weights(shapes: dict[str, tuple[int, ...]], draw: bool) -> dict[str, torch.Tensor]:
    """Tensors of one buffer, as Megatron's DistributedDataParallel keeps them."""
    sizes = [int(torch.Size(shape).numel()) for shape in shapes.values()]
    whole = torch.empty(sum(-(-n // 128) * 128 for n in sizes), dtype=torch.bfloat16, device=DEVICE)
    if draw:
        whole.normal_(0, 0.02)
    found, at = {}, 0
    for (name, shape), n in zip(shapes.items(), sizes, strict=True):
        found[name], at = whole[at : at + n].view(shape), at + -(-n // 128) * 128
    return found


def own(pipe: Connection, config: dict[str, Any]) -> None:
    """The trainer's process: offers its weights, and hashes them whenever it is told a version."""
    torch.manual_seed(0)
    parameters = weights(dict(megatron_layout(config, SIZES, fused_norms=True).ranks[0].locals), draw=True)
    synchronise()
    pipe.send(offered(parameters))
    end = HeldOnDevice(pipe.recv(), 0, parameters)
    for version in iter(pipe.recv, None):
        started = time.perf_counter()
        owned = end.push(version)
        pipe.send((owned, time.perf_counter() - started))


def seconds(work: Callable[[], object]) -> float:
    synchronise()
    started = time.perf_counter()
    work()
    synchronise()
    return time.perf_counter() - started


def copies(receiver: Receiver) -> None:
    receiver.transport.copy()  # type: ignore[attr-defined]


def main() -> None:
    """Print one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=36)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--dry-run", action="store_true", help="a tiny shape")
    options = parser.parse_args()
    layers = 1 if options.dry_run else options.layers
    shape = SHAPES["tiny" if options.dry_run else "qwen3-4b"]
    config = shape | {"num_hidden_layers": layers, "torch_dtype": "bfloat16"}
    spawn = multiprocessing.get_context("spawn")
    pipe, theirs = spawn.Pipe()
    owner = spawn.Process(target=own, args=(theirs, config), daemon=True)
    owner.start()
    theirs.close()
    engine = sglang_layout(config, EngineSizes())
    parameters = weights(dict(engine.ranks[0].locals), draw=False)
    memory = pipe.recv()
    receiver = Receiver(engine, parameters, SwapSource(config, SIZES, True, False, [memory]))
    pipe.send(receiver.plan)
    origin, target = (torch.empty(receiver.bytes, dtype=torch.uint8, device=DEVICE) for _ in range(2))
    times: dict[str, list[float]] = {"floor": [], "copies": [], "pull": [], "owner": []}
    for version in range(options.repeats + 1):
        times["floor"].append(seconds(partial(target.copy_, origin)))
        times["copies"].append(seconds(partial(copies, receiver)))
        times["pull"].append(seconds(partial(receiver.pull, version)))
        pipe.send(version)
        owned, took = pipe.recv()
        times["owner"].append(took)
        receiver.verify(version, merge_hashes(receiver.plan, [owned]))
        receiver.commit(version)
    pipe.send(None)
    owner.join(60)
    best = {name: min(taken[1:]) for name, taken in times.items()}
    found = {
        "benchmark": "gpu_swap",
        "device": torch.cuda.get_device_name() if ON_GPU else "CPU",
        "layers": layers,
        "gigabytes": round(receiver.bytes / 1e9, 3),
        "copies": len(receiver.copies),
        "seconds": {name: round(value, 5) for name, value in best.items()},
        "copies_of_floor": round(best["floor"] / best["copies"], 3),
        "pull_with_proof_times_floor": round(best["pull"] / best["floor"], 2),
        "owner_hash_times_floor": round(best["owner"] / best["floor"], 2),
        "left_to_torch": sum(len(b.sources) for b in receiver.transport._batches),  # type: ignore[attr-defined, misc]
    }
    print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main()
