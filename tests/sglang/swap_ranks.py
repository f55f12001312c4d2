"""One rank of the swap tests: trains a little, swaps, and compares the engine's log-probs with the actor's.

argv: a JSON list of jobs {"name", "model", "actor": options, "swaps", "workers"}, the address of the engine, of so many
workers, that serves this model's architecture, and where rank 0 writes the largest gap of every swap.
"""

import json
import sys
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist

from megatron_rl.actor import accelerator, groups
from megatron_rl.actor.config import ActorConfig, OptimizerConfig
from megatron_rl.actor.rows import TrainingRow
from megatron_rl.actor.trainer import Actor
from megatron_rl.rollout.protocol import Request, Sampling
from megatron_rl.rollout.sglang.pool import SGLangEngines
from megatron_rl.swap.trainer import Swap
from megatron_rl.system.channel import key_from_environment
from tests.sglang.conftest import configuration

SETTINGS = OptimizerConfig(lr=3e-3, warmup_steps=0, decay="constant")
SAMPLING = Sampling(12, ignore_stop=True)
REQUESTS = [Request([7, 8, 9], [1, 2]), Request([4] * 11, [3, 4]), Request([60, 2], [5, 6])]


def learning(step: int) -> list[TrainingRow]:
    """Random tokens to imitate: every step changes every weight."""
    rng = np.random.default_rng(step)
    return [
        TrainingRow(rng.integers(0, 99, n), {"weight": np.full(n, 0.01, dtype=np.float32)}) for n in (9, 17, 23, 12)
    ]


def sampled(engine: SGLangEngines | None) -> list[TrainingRow]:
    """The engine's completions on every rank."""
    box: list[list[TrainingRow]] = [[]]
    if engine is not None:
        for request, group in zip(REQUESTS, engine.generate(REQUESTS, SAMPLING), strict=True):
            for c in group:
                tokens = np.array([*request.tokens, *c.tokens])
                logprobs = np.zeros(len(tokens), dtype=np.float32)
                weight = np.zeros(len(tokens), dtype=np.float32)
                logprobs[len(request.tokens) :], weight[len(request.tokens) :] = c.logprobs, 1.0
                box[0].append(TrainingRow(tokens, {"weight": weight, "rollout": logprobs}, prompt=len(request.tokens)))
    dist.broadcast_object_list(box, src=0)
    return box[0]


def run(job: dict, url: str, out: Path) -> None:
    from megatron.core import parallel_state

    config = ActorConfig(**job["actor"])
    groups.initialize(config, seed=0)
    folder = Path(job["model"])
    engine = None
    if dist.get_rank() == 0:
        engine = SGLangEngines(
            configuration(urls=url, tensor_parallel=job["workers"]).served(), folder, key_from_environment(), out
        )
    actor = Actor(json.loads((folder / "config.json").read_text()), config, "float32", str(folder))
    actor.new_optimizer(SETTINGS)
    swap = Swap(actor, engine)

    def imitation(logprobs, entropy, batch):
        loss = -(batch.columns["weight"] * logprobs).sum()
        return loss, {"loss": loss}

    gaps, moved, drifted = [], [], 0.0
    for version in range(job["swaps"]):
        before = {n: p.clone() for n, p in actor.parameters().items()}
        actor.update(actor.pack(learning(version)), imitation, 3e-3)
        moved.append(min(float((p - before[n]).abs().max()) for n, p in actor.parameters().items()))
        drifted += swap(version).get("replicas_differ", 0.0)
        batches = actor.pack(sampled(engine))
        actor.score(batches, "mine")
        largest = torch.zeros(())
        for batch in batches if actor.last_stage else []:
            gap = (batch.columns["mine"] - batch.columns["rollout"])[batch.columns["weight"] > 0].abs()
            largest = torch.maximum(largest, gap.max()) if len(gap) else largest
        dist.all_reduce(largest, dist.ReduceOp.MAX)
        gaps.append(float(largest))
    if engine is not None:
        (out / f"{job['name']}.json").write_text(json.dumps({"gaps": gaps, "moved": moved, "drifted": drifted}))
        engine.stop()
    parallel_state.destroy_model_parallel()
    dist.barrier()


if __name__ == "__main__":
    accelerator.adapt()
    for job in json.loads(Path(sys.argv[1]).read_text()):
        run(job, sys.argv[2], Path(sys.argv[3]))
    dist.destroy_process_group()
