"""How long lost engines take to come back, against their first start: python -m benchmarks.sglang_recovery

Two real SGLang servers with a small random model stand behind the router. While they answer 1,000 prompts, one is
killed and the other's scheduler stopped. Recovery is from then until both hold the trainer's weights again: noticing
(the stopped one: ``rollout.sglang.health_seconds``, 10 here), SGLang's start, and a swap. Needs ``make sglang``.
"""

import argparse
import json
import os
import secrets
import signal
import tempfile
import threading
import time
from pathlib import Path

import psutil
import torch

from benchmarks.sglang_swap import configuration, shards
from benchmarks.swap import CONFIG, SIZES
from megatron_rl.resharding.plan import make_plan
from megatron_rl.resharding.swap import SwapSource, merge_hashes, owned_hashes
from megatron_rl.resharding.transports.shared_memory import publish
from megatron_rl.rollout.protocol import Completion, Request, Sampling
from megatron_rl.rollout.sglang.pool import SGLangEngines
from megatron_rl.rollout.sglang.replica import Replica

SMALL = {"hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 2, "vocab_size": 1024}
PROMPTS, NEW = 1000, 16
BEFORE = 0.5  # seconds of generation before the engines are lost


def lose(killed: Replica, stopped: Replica) -> None:
    """Kill the one's server, stop the other's scheduler."""
    assert killed.process is not None and stopped.process is not None
    os.kill(killed.process.pid, signal.SIGKILL)
    for child in psutil.Process(stopped.process.pid).children(recursive=True):
        if "scheduler" in " ".join(child.cmdline()):
            child.suspend()


def main() -> None:
    """The command line."""
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    torch.set_num_threads(1)
    architecture = CONFIG | SMALL | {"architectures": ["Qwen3ForCausalLM"], "max_position_embeddings": 256}
    architecture |= {"rms_norm_eps": 1e-6, "hidden_act": "silu"}
    ranks = shards(architecture)
    source = SwapSource(architecture, SIZES, False, False, [publish(rank) for rank in ranks])
    config = configuration()
    config.rollout.engines, config.rollout.max_running, config.rollout.sglang.health_seconds = 2, 32, 10.0
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "config.json").write_text(json.dumps(architecture), encoding="utf-8")
        begun = time.monotonic()
        engines = SGLangEngines(config.served(), Path(folder), secrets.token_bytes(16), Path(folder))
        try:
            plan = make_plan(source.layout(), engines.attach(source).layout)
            engines.begin_swap(1)
            engines.finish_swap(1, merge_hashes(plan, [owned_hashes(plan, r, held) for r, held in enumerate(ranks)]))
            start = time.monotonic() - begun
            answered, back = recover(engines)
        finally:
            engines.stop()
    print(f"both started, attached and swapped in {start:.1f} s")
    print(f"both back after {back:.1f} s, {back / start:.2f} x that; all prompts answered after {answered:.1f} s")


def recover(engines: SGLangEngines) -> tuple[float, float]:
    """Seconds from the loss until everything is answered, and until both engines are armed."""
    requests = [Request([i % 1000, i // 1000, 9], [i]) for i in range(PROMPTS)]
    groups: list[list[Completion]] = []
    generation = threading.Thread(
        target=lambda: groups.extend(engines.generate(requests, Sampling(NEW, temperature=1.0, ignore_stop=True)))
    )
    generation.start()
    time.sleep(BEFORE)
    lost = time.monotonic()
    lose(*engines.replicas)
    while not (all(replica.restarted for replica in engines.replicas) and all(r.armed for r in engines.replicas)):
        if not generation.is_alive() and all(replica.armed for replica in engines.replicas):
            raise SystemExit(
                "everything was answered before the engines were lost: a faster machine needs more prompts"
            )
        time.sleep(0.05)
    back = time.monotonic() - lost
    generation.join()
    answered = time.monotonic() - lost
    assert [len(group) for group in groups] == [1] * PROMPTS
    return answered, back


if __name__ == "__main__":
    main()
