"""A weight swap against the machine's memory copy.

    python -m benchmarks.swap [--repeats N] [--threads N] [--shape NAME --layers N] [--mbridge PYTHON]

A random Qwen3-0.6B-shaped bfloat16 model, or some layers of a larger one with a small vocabulary, lies sharded (TP2 x
PP2) in shared memory and is pulled into one engine; then into the two workers of another, one after the other, whose
matrices are cut as the trainer's are. The same ranks then send it point-to-point, from processes of their own, over
gloo on this machine's loopback. Owners hash before an engine stands still, so that is a row of its own. The floor is
torch copying the same bytes once, between the same kinds of memory, with as many threads. Every figure is the best of
the repeats, measured in turn in one run. Messages have a floor of their own: gloo carrying as many bytes, from the
memory of the weights in the same processes into memory of their size, without packing, unpacking or hashing.

With --mbridge, an interpreter that has megatron-core and mbridge exports the full tensors of the same model from the
same layout (mbridge_export.py), which is what a swap by gathered tensors begins with.
"""

import argparse
import json
import multiprocessing
import os
import subprocess
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from benchmarks.gpu_shapes import SHAPES
from megatron_rl.resharding.execute import box, flat
from megatron_rl.resharding.layout import ParallelSizes, merged
from megatron_rl.resharding.layouts.megatron import megatron_layout
from megatron_rl.resharding.layouts.sglang import EngineSizes, sglang_layout
from megatron_rl.resharding.layouts.transformers import transformers_layout
from megatron_rl.resharding.plan import Plan, make_plan
from megatron_rl.resharding.proof import prove
from megatron_rl.resharding.swap import Landing, Owned, Receiver, SwapSource, merge_hashes, owned_hashes
from megatron_rl.resharding.transports.endpoints import Endpoints
from megatron_rl.resharding.transports.point_to_point import PointToPointDestination, PointToPointSource
from megatron_rl.resharding.transports.shared_memory import publish

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
    "architectures": ["Qwen3ForCausalLM"],
    "hidden_act": "silu",
    "rms_norm_eps": 1e-6,
    "rope_theta": 1000000,
    "max_position_embeddings": 40960,
    "torch_dtype": "bfloat16",
}
VOCABULARY = 16384  # of another shape: its layers are what is looked at
SIZES = ParallelSizes(tensor=2, pipeline=2)
SOURCES = range(SIZES.world)
PART = 8 << 20  # bytes of a message of gloo alone


def seconds(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def hash_all(plan: Plan, ranks: list[dict[str, torch.Tensor]], into: list[Owned]) -> None:
    into.extend(owned_hashes(plan, r, parameters) for r, parameters in enumerate(ranks))


def join(meet: str, rank: int, ranks: list[dict[str, torch.Tensor]]) -> Endpoints:
    world = len(ranks) + 1
    dist.init_process_group("gloo", init_method=meet, rank=rank, world_size=world)
    return Endpoints(range(world - 1), [world - 1])


def bare(memory: dict[int, torch.Tensor], rank: int) -> None:
    """Carry ``memory`` (peer -> bytes) to those peers, or fill it from them as the last rank, in messages of 8 MiB."""
    start = dist.isend if rank in SOURCES else dist.irecv
    works: dict[tuple[int, int], Any] = {}
    for message in range(max(len(held) for held in memory.values()) // PART):
        for peer, held in memory.items():
            if (peer, message % 2) in works:
                works[peer, message % 2].wait()
            works[peer, message % 2] = start(held[message * PART : (message + 1) * PART], peer)
    for work in works.values():
        work.wait()


def send(meet: str, rank: int, plan: Plan, ranks: list[dict[str, torch.Tensor]], repeats: int) -> None:
    """A source process."""
    torch.set_num_threads(1)  # those of the process that it was forked from are not there
    end = PointToPointSource(plan, rank, ranks[rank], torch.bfloat16, join(meet, rank, ranks))
    weights = next(iter(ranks[rank].values())).untyped_storage()  # one buffer has them all
    held = torch.empty(0, dtype=torch.uint8).set_(weights)[: sum(plan.bytes().values()) // len(ranks)]
    for version in range(repeats):
        bare({len(ranks): held}, rank)
        end.push(version)


def copy_all(plan: Plan, ranks: list[dict[str, torch.Tensor]], engine: dict[str, torch.Tensor]) -> None:
    """The copies of a plan without hashes."""
    for c in plan.copies:
        shape, (read, write) = merged(c.shape, c.source_strides, c.destination_strides)
        source = box(flat(ranks[c.source_rank][c.source]), shape, read, c.source_offset)
        box(flat(engine[c.destination]), shape, write, c.destination_offset).copy_(source)


def two_workers(config: dict[str, Any], source: SwapSource, ranks: list[dict[str, torch.Tensor]]) -> list[Receiver]:
    """An engine with the trainer's tensor parallelism, after a first swap that is proved."""
    layout = sglang_layout(config, EngineSizes(tensor=SIZES.tensor))
    found = []
    for rank, shard in enumerate(layout.ranks):
        held = {name: torch.zeros(shape, dtype=torch.bfloat16) for name, shape in shard.locals.items()}
        receiver = Receiver(layout, held, source, rank)
        owned: list[Owned] = []
        receiver.pull(0)
        hash_all(receiver.plan, ranks, owned)
        receiver.verify(0, merge_hashes(receiver.plan, owned))
        found.append(receiver)
    return found


def pull_all(workers: list[Receiver], version: int) -> None:
    for worker in workers:
        worker.pull(version)


def mbridge(python: str, config: dict[str, Any], ranks: int, repeats: int) -> float:
    """Seconds of mbridge's export."""
    script = Path(__file__).parent / "mbridge_export.py"
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "config.json").write_text(json.dumps(config), encoding="utf-8")
        command = [python, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)]
        done = subprocess.run(
            [*command, script, folder, str(repeats)],
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            encoding="utf-8",
            check=True,
        )
    return float(done.stdout.split()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1, help="of memcpy, copies and pull")
    parser.add_argument("--shape", choices=list(SHAPES), help="instead of Qwen3-0.6B's")
    parser.add_argument("--layers", type=int, default=4, help="of that shape")
    parser.add_argument("--mbridge", metavar="PYTHON", help="interpreter with megatron-core and mbridge")
    options = parser.parse_args()
    repeats = options.repeats
    torch.set_num_threads(options.threads)
    config = CONFIG
    if options.shape:
        config = SHAPES[options.shape] | {"num_hidden_layers": options.layers, "vocab_size": VOCABULARY}
    source_layout, destination = megatron_layout(config, SIZES), transformers_layout(config)
    planning = seconds(lambda: prove(make_plan(source_layout, destination), source_layout, destination))
    ranks = []
    for shard in source_layout.ranks:  # one buffer per rank, as in Megatron's DistributedDataParallel
        sizes = [int(np.prod(shape)) for shape in shard.locals.values()]
        parts = torch.empty(sum(sizes), dtype=torch.bfloat16).normal_(0, 0.02).split(sizes)
        ranks.append({n: p.view(shape) for (n, shape), p in zip(shard.locals.items(), parts, strict=True)})
    memories = [publish(rank) for rank in ranks]
    shapes = destination.ranks[0].locals
    engine = {n: torch.zeros(shape, dtype=torch.bfloat16) for n, shape in shapes.items()}
    offered = SwapSource(config, SIZES, False, False, memories)
    receiver, workers = Receiver(destination, engine, offered), two_workers(config, offered, ranks)
    total = receiver.bytes
    origin, target = (torch.zeros(total, dtype=torch.uint8) for _ in range(2))
    publish({"origin": origin})

    times: dict[str, list[float]] = {"memcpy": [], "copies": [], "pull": [], "workers": [], "owners": []}
    for version in range(repeats):
        times["memcpy"].append(seconds(lambda: target.copy_(origin)))
        times["copies"].append(seconds(partial(copy_all, receiver.plan, ranks, engine)))
        times["pull"].append(seconds(partial(receiver.pull, version)))
        times["workers"].append(seconds(partial(pull_all, workers, version)))
        owned: list[Owned] = []
        times["owners"].append(seconds(partial(hash_all, receiver.plan, ranks, owned)))
        proof = merge_hashes(receiver.plan, owned)
        receiver.verify(version, proof)
        receiver.commit(version)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        meet = f"file://{folder}/meet"
        fork = multiprocessing.get_context("fork")
        senders = [fork.Process(target=send, args=(meet, r, receiver.plan, ranks, repeats)) for r in range(len(ranks))]
        for sender in senders:
            sender.start()
        end = PointToPointDestination(receiver.plan, 0, engine, join(meet, len(ranks), ranks))
        landing = Landing(receiver.plan, 0, engine, end)
        times["bare"], times["messages"] = [], []
        parts = dict(enumerate(target.split(total // len(ranks))[: len(ranks)]))
        for version in range(repeats):
            times["bare"].append(seconds(partial(bare, parts, len(ranks))))
            times["messages"].append(seconds(partial(landing.pull, version)))
            landing.verify(version, proof)
            landing.commit(version)
        for sender in senders:
            sender.join()
    floor, copies, pull, parted, owners, empty, messages = (min(found) for found in times.values())
    print(receiver.plan.summary())
    print(f"plan and proof              {planning:8.3f} s, once")
    for name, took in (
        ("memcpy", floor),
        ("copies alone", copies),
        ("pull with arrival hashes", pull),
        ("the same, of two workers", parted),
        ("owners' hashes, all ranks", owners),
        ("gloo alone", empty),
        ("point-to-point with hashes", messages),
    ):
        print(f"{name:27} {took:8.3f} s  {total / took / 1e9:6.1f} GB/s  {took / floor:5.2f} x memcpy")
    print(f"copies alone: {floor / copies:.0%} of memcpy's rate; hashes: {pull / copies - 1:.2f} x the copies more")
    if options.mbridge:
        export = mbridge(options.mbridge, config, len(ranks), repeats)
        print(
            f"mbridge's export alone, {len(ranks)} processes over gloo: {export:.2f} s, {export / pull:.0f} x the pull"
        )
    print(f"point-to-point: {messages / empty:.2f} x gloo alone, {end.staging / 1e6:.1f} MB of staging memory")


if __name__ == "__main__":
    main()
