"""One rank of the tests of scalar heads: values and gradients at a sharding, and steps of a critic beside a policy.

argv: a JSON list of jobs, and where to write this rank's results. A job is a parity case {"name", "model", "actor",
"sequences"}, one of rewards {"name", "model", "actor", "pairs"}, or a run {"name", "model", "actor", "folder" of
checkpoints, "load": step or null, "save": step or null}.
"""

import json
import sys
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist

from megatron_rl.actor import accelerator, checkpoint, groups
from megatron_rl.actor.config import ActorConfig, OptimizerConfig
from megatron_rl.actor.rows import TrainingRow
from megatron_rl.actor.trainer import Actor
from megatron_rl.algorithms.terms.value import value_loss
from megatron_rl.errors import InputError
from megatron_rl.resharding.families import with_scalar_head
from megatron_rl.swap.trainer import Alone
from megatron_rl.training.stages.reward_model import reward_objective, reward_row
from tests.actor.training_ranks import SETTINGS, sequences

STEPS = 4


def actors(folder: str, config: ActorConfig, policy: bool) -> list[Actor]:
    hf_config = json.loads((Path(folder) / "config.json").read_text())
    configs = [with_scalar_head(hf_config)] + ([hf_config] if policy else [])
    return [Actor(found, config, "float32", folder) for found in configs]


def compare(job: dict, config: ActorConfig, out: Path) -> dict:
    from megatron.core.distributed import finalize_model_grads

    (actor,) = actors(job["model"], config, policy=False)
    for chunk in actor.chunks:  # every rank keeps the whole gradient, to be compared
        chunk.config.finalize_model_grads_func = lambda model, tokens=None, **kw: partial(
            finalize_model_grads, model, None
        )(**(kw | {"force_all_reduce": True}))
    actor.new_optimizer(OptimizerConfig(lr=0.0, clip_grad=1e9))
    rows = [
        TrainingRow(
            np.array(s["tokens"]),
            {name: np.array(s[name], np.float32) for name in ("weight", "id", "return")},
            prompt=s["prompt"],
        )
        for s in job["sequences"]
    ]
    batches = actor.pack(rows)
    actor.score(batches, "values")
    scored = {}
    if actor.last_stage:
        for batch in batches:
            assert batch.columns["values"].dtype == torch.float32
            scored |= dict(zip(batch.columns["id"].long().tolist(), batch.columns["values"].tolist(), strict=True))

    def objective(values, batch):
        loss = (batch.columns["weight"] * 0.5 * (values - batch.columns["return"]).square()).sum()
        return loss, {"loss": loss}

    metrics = actor.update(batches, objective, lr=0.0)
    gradients = {
        f"{i}/{n}": p.main_grad.clone() for i, chunk in enumerate(actor.chunks) for n, p in chunk.named_parameters()
    }
    return {"scored": scored, "metrics": metrics, "gradients": gradients}


def prefer(job: dict, config: ActorConfig, out: Path) -> dict:
    """One update on pairs, without a step: loss, metrics and gradient norm; then the model as a folder."""
    (actor,) = actors(job["model"], config, policy=False)
    actor.new_optimizer(OptimizerConfig(lr=0.0, clip_grad=1e9))
    rows = [
        reward_row(tuple(pair["prompt"]), tuple(pair[reply]), 2 * number + place, number)
        for number, pair in enumerate(job["pairs"])
        for place, reply in enumerate(("chosen", "rejected"))
    ]
    batches = actor.pack(rows)
    pairs = len(job["pairs"])
    metrics = actor.update(batches, lambda values, batch: reward_objective(values, batch, pairs, 0.5), lr=0.0)
    Alone(actor).export(out / f"{job['name']}-exported", Path(job["model"]))
    return {"metrics": metrics, "micro_batches": len(batches)}


def train(job: dict, config: ActorConfig, out: Path) -> dict:
    """A policy that imitates and a critic that learns when its tokens are large: two optimisers, one checkpoint."""
    critic, policy = actors(job["model"], config, policy=True)
    for actor in (critic, policy):
        actor.new_optimizer(SETTINGS)
    folder, step, losses = Path(job["folder"]), 0, []
    if job["load"]:
        step = checkpoint.load(policy, folder / job["load"], {"critic": critic})["step"]

    def imitate(logprobs, entropy, batch):
        loss = -(batch.columns["weight"] * logprobs).sum()
        return loss, {"loss": loss}

    def learn(values, batch):
        return value_loss(
            values, batch.columns["values"], (batch.targets > 50).float(), batch.columns["weight"], clip=0.5
        )

    while step < STEPS:
        batches = policy.pack(sequences(step))
        critic.score(batches, "values")
        losses.append(
            (policy.update(batches, imitate, 1e-2)["loss"], critic.update(batches, learn, 1e-3)["value_loss"])
        )
        step += 1
        if step == job["save"]:
            checkpoint.save(policy, folder, str(step), {"step": step}, 1, beside={"critic": critic})
            checkpoint.save(policy, folder / "alone", str(step), {"step": step}, 1)
    refused = ""
    if job["save"]:  # a checkpoint without a critic, of a run without one
        before = [p.clone() for p in policy.parameters().values()]
        checkpoint.load(policy, folder / "alone" / f"step-{job['save']}")
        alone = [p.clone() for p in policy.parameters().values()]
        checkpoint.load(policy, folder / f"step-{job['save']}")  # what it holds besides is left alone
        assert all(torch.equal(a, b) for a, b in zip(alone, policy.parameters().values(), strict=True))
        for p, kept in zip(policy.parameters().values(), before, strict=True):
            p.copy_(kept)
        try:
            checkpoint.load(policy, folder / "alone" / f"step-{job['save']}", {"critic": critic})
        except InputError as error:
            refused = str(error)
    named = (("policy", policy), ("critic", critic))
    weights = {name: {n: p.clone() for n, p in actor.parameters().items()} for name, actor in named}
    return {"losses": losses, "weights": weights, "refused": refused}


if __name__ == "__main__":
    from megatron.core import parallel_state

    accelerator.adapt()
    for job in json.loads(Path(sys.argv[1]).read_text()):
        config = ActorConfig(**job["actor"])
        groups.initialize(config, seed=0)
        out = Path(sys.argv[2])
        work = prefer if "pairs" in job else compare if "sequences" in job else train
        result = work(job, config, out)
        torch.save(result, out / f"{job['name']}-{dist.get_rank()}.pt")
        parallel_state.destroy_model_parallel()
        dist.barrier()
    dist.destroy_process_group()
