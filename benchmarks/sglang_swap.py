"""Pause to resume of a real SGLang server: the pull of its workers against SGLang's own routes and against memcpy.

    python -m benchmarks.sglang_swap [--repeats N] [--layers N] [--ways pull,disk]

A random Qwen3-0.6B-shaped bfloat16 model lies sharded (TP2 x PP2) in shared memory of this process, which also plays
the trainer's ranks. One SGLang server takes its weights by each way in turn; all swaps are proved. memcpy is torch
copying the same bytes once with one thread. Best of the repeats, all in one run. Needs ``make sglang``.
"""

import argparse
import json
import secrets
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from benchmarks.swap import CONFIG, SIZES
from megatron_rl.config import Config
from megatron_rl.resharding.execute import flat, pull
from megatron_rl.resharding.layouts.megatron import megatron_layout
from megatron_rl.resharding.layouts.transformers import files_layout
from megatron_rl.resharding.plan import Plan, make_plan
from megatron_rl.resharding.swap import SwapSource, merge_hashes, owned_hashes
from megatron_rl.resharding.transports.shared_memory import publish
from megatron_rl.rollout.sglang.pool import SGLangEngines

WAYS = ("pull", "tensor", "disk", "distributed")


class Trainer(NamedTuple):
    """Who has the weights, and their owners' hashes for a plan and version."""

    source: SwapSource
    hashes: Callable[[Plan, int], np.ndarray]
    bring: Any = None  # how full tensors get into the server, where that is no way of the engine's own


def shards(architecture: dict[str, Any]) -> list[dict[str, torch.Tensor]]:
    """A random model's weights as the ranks hold them."""
    layout, files = megatron_layout(architecture, SIZES), files_layout(architecture)
    whole = {name: torch.empty(shape, dtype=torch.bfloat16) for name, shape in files.ranks[0].locals.items()}
    for name, tensor in whole.items():
        tensor.normal_(1.0 if "norm" in name else 0.0, 0.02)
    plan = make_plan(files, layout)
    ranks = []
    for rank, shard in enumerate(layout.ranks):
        held = {name: torch.zeros(shape, dtype=torch.bfloat16) for name, shape in shard.locals.items()}
        copies = [plan.copies[i] for i in plan.copies_to(rank)]
        pull(copies, {(0, name): flat(t) for name, t in whole.items()}, {name: flat(t) for name, t in held.items()})
        ranks.append(held)
    return ranks


def on_host(architecture: dict[str, Any]) -> Trainer:
    """A random model in shared memory of this process."""
    ranks = shards(architecture)
    source = SwapSource(architecture, SIZES, False, False, [publish(rank) for rank in ranks])

    def hashes(plan: Plan, version: int) -> np.ndarray:
        return merge_hashes(plan, [owned_hashes(plan, rank, parameters) for rank, parameters in enumerate(ranks)])

    return Trainer(source, hashes)


def memcpy(size: int) -> Callable[[], object]:
    """Torch copying so many bytes once, within this process's memory."""
    origin, target = (torch.zeros(size, dtype=torch.uint8) for _ in range(2))
    publish({"origin": origin})
    return lambda: target.copy_(origin)


def configuration() -> Config:
    config = Config()
    config.model.dtype = "bfloat16"
    config.rollout.engine, config.rollout.max_running = "sglang", 4
    config.data.max_prompt_tokens = config.rollout.max_new_tokens = 64
    return config


def compare(
    config: Config, trainers: Mapping[str, Trainer], floor: Callable[[int], Callable[[], object]], repeats: int
) -> tuple[int, dict[str, dict[str, float]]]:
    """Bytes of the model, and seconds by phase of the best swap of a server by each way (``way`` or ``way of where``).

    ``memcpy`` is among them: what ``floor`` makes for so many bytes.
    """
    source = next(iter(trainers.values())).source
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "config.json").write_text(json.dumps(source.hf_config), encoding="utf-8")
        engine = SGLangEngines(config.served(), Path(folder), secrets.token_bytes(16), Path(folder))
        try:
            return measure(engine, trainers, floor, repeats)
        finally:
            engine.stop()


def measure(
    engine: SGLangEngines,
    trainers: Mapping[str, Trainer],
    floor: Callable[[int], Callable[[], object]],
    repeats: int,
) -> tuple[int, dict[str, dict[str, float]]]:
    """See ``compare``; of this engine."""
    best: dict[str, dict[str, float]] = {}
    total, copy, version = 0, None, 0
    for way, (source, hashes, bring) in trainers.items():
        engine.options.swap = "pull" if bring else way.split()[0]
        plan = make_plan(source.layout(), engine.attach(source).layout)
        engine._way = bring or engine._way
        if copy is None:
            total = sum(plan.bytes().values())
            copy = floor(total)
        for _ in range(repeats):
            version += 1
            started = time.perf_counter()
            copy()
            copied = {"paused": time.perf_counter() - started}
            if copied["paused"] < best.setdefault("memcpy", copied)["paused"]:
                best["memcpy"] = copied
            owned = hashes(plan, version)
            engine.begin_swap(version)
            report = engine.finish_swap(version, owned)
            phases = {**report.phases, "copy and hashes": report.seconds}
            if phases["paused"] < best.setdefault(way, phases)["paused"]:
                best[way] = phases
    return total, best


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--layers", type=int, default=CONFIG["num_hidden_layers"], help="fewer: a smaller model")
    parser.add_argument("--ways", default=",".join(WAYS), help="with the pull first")
    options = parser.parse_args()
    torch.set_num_threads(1)
    architecture = CONFIG | {"num_hidden_layers": options.layers, "max_position_embeddings": 4096}
    trainer = on_host(architecture)
    ways = dict.fromkeys(options.ways.split(","), trainer)
    total, results = compare(configuration(), ways, memcpy, options.repeats)
    floor = results.pop("memcpy")["paused"]
    print(f"\n{total / 1e6:.0f} MB; memcpy {1e3 * floor:.0f} ms ({total / floor / 1e9:.1f} GB/s)")
    print(f"{'way':<12}{'pause -> resume':>17}{'x memcpy':>10}{'x pull':>8}   phases, ms")
    for way, phases in results.items():
        paused = phases["paused"]
        parts_ms = ", ".join(f"{k} {1e3 * v:.0f}" for k, v in phases.items() if k != "paused")
        ratios = f"{paused / floor:>10.2f}{paused / results['pull']['paused']:>8.2f}"
        print(f"{way:<12}{1e3 * paused:>14.0f} ms{ratios}   {parts_ms}")


if __name__ == "__main__":
    main()
