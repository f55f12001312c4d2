"""One rank of the training tests: takes optimiser steps, saves, continues, and shows its weights.

argv: a JSON list of jobs {"name", "model", "actor": options, "dtype", "folder" of checkpoints, "load": step or null,
"save": step or null, "steps", "kl", "broken": step before which an update is not finite, "follow": whether a reference
becomes the policy after every step}, and where to write this rank's results. Every step trains on sequences that
depend on the step's number alone.
"""

import json
import math
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist

from megatron_rl.actor import accelerator, checkpoint, groups
from megatron_rl.actor.config import ActorConfig, OptimizerConfig
from megatron_rl.actor.rows import TrainingRow
from megatron_rl.actor.trainer import Actor
from megatron_rl.algorithms.config import AlgorithmConfig
from megatron_rl.training.models import Models

SETTINGS = OptimizerConfig(lr=1e-2, weight_decay=0.1, clip_grad=0.5, warmup_steps=0, decay="constant")


def sequences(step: int) -> list[TrainingRow]:
    """Eight sequences of random tokens; prompts of three tokens weigh nothing."""
    rng = np.random.default_rng(step)
    result = []
    for length in (9, 17, 23, 12, 5, 30, 8, 21):
        weight = np.where(np.arange(length) < 3, 0.0, 0.01).astype(np.float32)
        result.append(TrainingRow(rng.integers(0, 99, length), {"weight": weight}))
    return result


def run(job: dict, out: Path) -> None:
    from megatron.core import parallel_state

    config = ActorConfig(**job["actor"])
    groups.initialize(config, seed=0)
    folder = Path(job["model"])
    actor = Actor(json.loads((folder / "config.json").read_text()), config, job["dtype"], str(folder))
    if job["kl"] or job.get("follow"):
        actor.freeze_reference(moves=bool(job.get("follow")))
    actor.new_optimizer(replace(SETTINGS, lr=1.0) if job["load"] else SETTINGS)  # a step's own rate counts
    state = checkpoint.load(actor, Path(job["folder"]) / job["load"]) if job["load"] else {"step": 0}

    def objective(logprobs, entropy, batch):
        columns = batch.columns
        loss = -(columns["weight"] * logprobs).sum()
        if job["kl"]:
            ratio = columns["reference"] - logprobs
            loss = loss + job["kl"] * (columns["weight"] * (ratio.exp() - ratio - 1)).sum()
        return loss, {"loss": loss}

    losses, before, after = [], [], []
    for step in range(state["step"], job["steps"]):
        batches = actor.pack(sequences(step))
        if job["kl"]:
            live = {name: p.clone() for name, p in actor.parameters().items()}
            with actor.reference():
                actor.score(batches, "reference")
            assert all(torch.equal(p, live[name]) for name, p in actor.parameters().items())
            actor.score(batches, "live")
            before += [b.columns["reference"] for b in batches]
            after += [b.columns["live"] for b in batches]
        if step == job.get("broken"):  # on one rank alone
            weight = batches[0].columns["weight"]
            batches[0].columns["weight"] = weight * float("nan") if dist.get_rank() else weight
            metrics = actor.update(batches, objective, 1e-2)
            assert not math.isfinite(metrics["grad_norm"]) and metrics["skipped_updates"] == 1
            assert actor.finite()
            batches[0].columns["weight"] = weight
        losses.append(actor.update(batches, objective, 1e-2)["loss"])
        if job.get("follow"):
            models = object.__new__(Models)
            models.policy = actor
            models.keep_up(AlgorithmConfig(kl_coef=0.1, reference_every=1), step + 1)
        assert actor.finite()
        if job.get("follow"):
            held = actor.kept_reference.held
            assert held and all(torch.equal(part, actor.parameters()[name]) for name, part in held.items())
        actor.sleep()  # where actor.asleep says so
        if step + 1 == job["save"]:
            checkpoint.save(actor, Path(job["folder"]), str(step + 1), {"step": step + 1}, keep=1)
    result = {"losses": losses, "weights": {n: p.clone() for n, p in actor.parameters().items()}}
    result |= {"reference": before, "live": after}
    if job["save"]:
        result["saved"] = sum(file.stat().st_size for file in Path(job["folder"]).rglob("*.distcp"))
    torch.save(result, out / f"{job['name']}-{dist.get_rank()}.pt")
    if job.get("broken") is not None:
        next(iter(actor.parameters().values())).view(-1)[0] = math.nan if dist.get_rank() else 0.0
        assert not actor.finite()
    parallel_state.destroy_model_parallel()
    dist.barrier()


if __name__ == "__main__":
    accelerator.adapt()
    for job in json.loads(Path(sys.argv[1]).read_text()):
        run(job, Path(sys.argv[2]))
    dist.destroy_process_group()
