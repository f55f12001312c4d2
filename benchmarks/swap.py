"""A weight swap against the machine's memory copy: python benchmarks/swap.py [--repeats N]

A random Qwen3-0.6B-shaped bfloat16 model lies sharded (TP2 x PP2) in shared memory and is pulled into one engine. The
floor is torch copying the same bytes once, between the same kinds of memory, with as many threads (one). Every figure
is the best of the repeats, measured in turn in one run.
"""

import argparse
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch

from megatron_rl.resharding.layout import ParallelSizes
from megatron_rl.resharding.megatron import megatron_layout
from megatron_rl.resharding.plan import Plan, make_plan
from megatron_rl.resharding.proof import prove
from megatron_rl.resharding.shared_memory import publish
from megatron_rl.resharding.swap import Owned, Receiver, SwapSource, merge_hashes, owned_hashes
from megatron_rl.resharding.transformers import transformers_layout

CONFIG: dict[str, Any] = {
    "model_type": "qwen3",
    "hidden_size": 1024,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "intermediate_size": 3072,
    "vocab_size": 151936,
    "num_hidden_layers": 28,
    "tie_word_embeddings": True,
}
SIZES = ParallelSizes(tensor=2, pipeline=2)


def seconds(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def hash_all(plan: Plan, ranks: list[dict[str, torch.Tensor]], into: list[Owned]) -> None:
    into.extend(owned_hashes(plan, r, parameters) for r, parameters in enumerate(ranks))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--repeats", type=int, default=7)
    repeats = parser.parse_args().repeats
    torch.set_num_threads(1)
    source_layout, destination = megatron_layout(CONFIG, SIZES), transformers_layout(CONFIG)
    planning = seconds(lambda: prove(make_plan(source_layout, destination), source_layout, destination))
    ranks = []
    for shard in source_layout.ranks:  # one buffer per rank, as in Megatron's DistributedDataParallel
        sizes = [int(np.prod(shape)) for shape in shard.locals.values()]
        parts = torch.empty(sum(sizes), dtype=torch.bfloat16).normal_(0, 0.02).split(sizes)
        ranks.append({n: p.view(shape) for (n, shape), p in zip(shard.locals.items(), parts, strict=True)})
    memories = [publish(rank) for rank in ranks]
    shapes = destination.ranks[0].locals
    engine = {n: torch.zeros(shape, dtype=torch.bfloat16) for n, shape in shapes.items()}
    receiver = Receiver(destination, engine, SwapSource(CONFIG, SIZES, False, False, memories))
    total = receiver.bytes
    origin, target = (torch.zeros(total, dtype=torch.uint8) for _ in range(2))
    publish({"origin": origin})

    times: dict[str, list[float]] = {"memcpy": [], "pull": [], "owners": []}
    for version in range(repeats):
        times["memcpy"].append(seconds(lambda: target.copy_(origin)))
        times["pull"].append(seconds(partial(receiver.pull, version)))
        owned: list[Owned] = []
        times["owners"].append(seconds(partial(hash_all, receiver.plan, ranks, owned)))
        receiver.verify(version, merge_hashes(receiver.plan, owned))
    floor, pull, owners = (min(times[key]) for key in ("memcpy", "pull", "owners"))
    print(receiver.plan.summary())
    print(f"plan and proof              {planning:8.3f} s, once")
    for name, took in (("memcpy", floor), ("pull with arrival hashes", pull), ("owners' hashes, all ranks", owners)):
        print(f"{name:27} {took:8.3f} s  {total / took / 1e9:6.1f} GB/s  {took / floor:5.2f} x memcpy")


if __name__ == "__main__":
    main()
