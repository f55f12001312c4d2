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
from pathlib import Path
from typing import Any

import torch

from benchmarks.swap import CONFIG, SIZES
from megatron_rl.config import Config
from megatron_rl.resharding.execute import flat, pull
from megatron_rl.resharding.layouts.megatron import megatron_layout
from megatron_rl.resharding.layouts.transformers import files_layout
from megatron_rl.resharding.plan import make_plan
from megatron_rl.resharding.swap import SwapSource, merge_hashes, owned_hashes
from megatron_rl.resharding.transports.shared_memory import publish
from megatron_rl.rollout.sglang.pool import SGLangEngines

WAYS = ("pull", "tensor", "disk", "distributed")


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


def configuration() -> Config:
    config = Config()
    config.model.dtype = "bfloat16"
    config.rollout.engine, config.rollout.max_running = "sglang", 4
    config.data.max_prompt_tokens = config.rollout.max_new_tokens = 64
    return config


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--layers", type=int, default=CONFIG["num_hidden_layers"], help="fewer: a smaller model")
    parser.add_argument("--ways", default=",".join(WAYS), help="with the pull first")
    options = parser.parse_args()
    torch.set_num_threads(1)
    architecture = CONFIG | {"num_hidden_layers": options.layers, "architectures": ["Qwen3ForCausalLM"]}
    architecture |= {"max_position_embeddings": 4096, "rms_norm_eps": 1e-6, "hidden_act": "silu"}
    ranks = shards(architecture)
    source = SwapSource(architecture, SIZES, False, False, [publish(rank) for rank in ranks])
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "config.json").write_text(json.dumps(architecture), encoding="utf-8")
        engine = SGLangEngines(configuration().served(), Path(folder), secrets.token_bytes(16), Path(folder))
        try:
            results = measure(engine, source, ranks, options.repeats, options.ways.split(","))
        finally:
            engine.stop()
    total = results.pop("bytes")["bytes"]
    floor = results.pop("memcpy")["paused"]
    print(f"\n{total / 1e6:.0f} MB; memcpy {1e3 * floor:.0f} ms ({total / floor / 1e9:.1f} GB/s)")
    print(f"{'way':<12}{'pause -> resume':>17}{'x memcpy':>10}{'x pull':>8}   phases, ms")
    for way, phases in results.items():
        paused = phases["paused"]
        parts_ms = ", ".join(f"{k} {1e3 * v:.0f}" for k, v in phases.items() if k != "paused")
        ratios = f"{paused / floor:>10.2f}{paused / results['pull']['paused']:>8.2f}"
        print(f"{way:<12}{1e3 * paused:>14.0f} ms{ratios}   {parts_ms}")


def measure(
    engine: SGLangEngines, source: SwapSource, ranks: list[dict[str, torch.Tensor]], repeats: int, ways: list[str]
) -> dict[str, dict[str, float]]:
    """Seconds by phase of the best swap by each way."""
    best: dict[str, dict[str, float]] = {}
    attached = engine.attach(source)
    plan = make_plan(source.layout(), attached.layout)
    total = sum(plan.bytes().values())
    origin, target = (torch.zeros(total, dtype=torch.uint8) for _ in range(2))
    publish({"origin": origin})
    version = 0
    for way in ways:
        engine.options.swap = way
        engine.attach(source)
        for _ in range(repeats):
            version += 1
            started = time.perf_counter()
            target.copy_(origin)
            copied = {"paused": time.perf_counter() - started}
            if copied["paused"] < best.setdefault("memcpy", copied)["paused"]:
                best["memcpy"] = copied
            owned = [owned_hashes(plan, rank, parameters) for rank, parameters in enumerate(ranks)]
            engine.begin_swap(version)
            report = engine.finish_swap(version, merge_hashes(plan, owned))
            phases = {**report.phases, "copy and hashes": report.seconds}
            if phases["paused"] < best.setdefault(way, phases)["paused"]:
                best[way] = phases
    return best | {"bytes": {"bytes": float(total)}}


if __name__ == "__main__":
    main()
