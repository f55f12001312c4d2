"""A weight swap between two processes on one GPU, against a copy of the same bytes on it.

    python -m benchmarks.gpu_swap [--layers 36] [--repeats 7]

A random bfloat16 model of Qwen3-4B's shape (8 GB) lies in one process as Megatron keeps it and is pulled by another
into SGLang's layout through CUDA IPC. The floor is one device-to-device copy of as many bytes in the pulling process.
Then the FP8 block quantisation of the same weights, compared bit for bit with the CPU's, against a copy that reads and
writes as many bytes. Best of the repeats, taken in turns.
"""

import argparse
import json
import multiprocessing
import time
from collections.abc import Callable
from functools import partial
from multiprocessing.connection import Connection
from typing import Any

import torch

from benchmarks.gpu_train import SHAPES
from megatron_rl.resharding.execute import flat
from megatron_rl.resharding.layout import ParallelSizes
from megatron_rl.resharding.layouts.megatron import megatron_layout
from megatron_rl.resharding.layouts.sglang import EngineSizes, sglang_layout
from megatron_rl.resharding.quantise import quantise_blockwise
from megatron_rl.resharding.swap import Receiver, SwapSource, merge_hashes
from megatron_rl.resharding.transports.cuda_ipc import HeldOnDevice, offer

SIZES = ParallelSizes()


def weights(shapes: dict[str, tuple[int, ...]], draw: bool) -> dict[str, torch.Tensor]:
    """Tensors of one buffer, as Megatron's DistributedDataParallel keeps them."""
    sizes = [int(torch.Size(shape).numel()) for shape in shapes.values()]
    whole = torch.empty(sum(-(-n // 128) * 128 for n in sizes), dtype=torch.bfloat16, device="cuda")
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
    torch.cuda.synchronize()
    pipe.send(offer(parameters))
    end = HeldOnDevice(pipe.recv(), 0, parameters)
    for version in iter(pipe.recv, None):
        started = time.perf_counter()
        owned = end.push(version)
        pipe.send((owned, time.perf_counter() - started))


def seconds(work: Callable[[], object]) -> float:
    torch.cuda.synchronize()
    started = time.perf_counter()
    work()
    torch.cuda.synchronize()
    return time.perf_counter() - started


def copies(receiver: Receiver) -> None:
    receiver.transport.copy()  # type: ignore[attr-defined]


def quantised(matrices: list[torch.Tensor]) -> None:
    for matrix in matrices:
        quantise_blockwise(matrix)


def main() -> None:
    """Print one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=36)
    parser.add_argument("--repeats", type=int, default=7)
    options = parser.parse_args()
    config = SHAPES["qwen3-4b"] | {"num_hidden_layers": options.layers, "torch_dtype": "bfloat16"}
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
    origin, target = (torch.empty(receiver.bytes, dtype=torch.uint8, device="cuda") for _ in range(2))
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
    del origin, target
    best = {name: min(taken[1:]) for name, taken in times.items()}
    matrices = [flat(p).view(p.shape) for p in parameters.values() if p.dim() == 2][1:]
    read = sum(m.numel() * m.element_size() for m in matrices)
    some = torch.empty(int(read * 0.75), dtype=torch.uint8, device="cuda")  # reads 2 bytes and writes 1 an element
    other = torch.empty_like(some)
    floor = min(seconds(lambda: other.copy_(some)) for _ in range(options.repeats))
    quantising = min(seconds(partial(quantised, matrices)) for _ in range(3))
    wrong = 0
    for matrix in matrices[:3]:
        there, here = quantise_blockwise(matrix), quantise_blockwise(matrix.cpu())
        wrong += int((there[0].cpu().view(torch.uint8) != here[0].view(torch.uint8)).sum())
        wrong += int((there[1].cpu() != here[1]).sum())
    found = {
        "benchmark": "gpu_swap",
        "device": torch.cuda.get_device_name(),
        "layers": options.layers,
        "gigabytes": round(receiver.bytes / 1e9, 3),
        "copies": len(receiver.copies),
        "seconds": {name: round(value, 5) for name, value in best.items()},
        "copies_of_floor": round(best["floor"] / best["copies"], 3),
        "pull_with_proof_times_floor": round(best["pull"] / best["floor"], 2),
        "owner_hash_times_floor": round(best["owner"] / best["floor"], 2),
        "quantise_of_copy": round(floor / quantising, 3),
        "quantise_wrong": wrong,
    }
    print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main()
