"""One rank of ``check --numerics``: a step of the recipe's last stage on random material, and what came of it.

``python -m megatron_rl.launch.numerics.rank FOLDER…``, each folder a run's with a config.yaml; writes rank{n}.pt there:

* ``scored``: token -> its log-prob (or value), of this rank's tokens
* ``metrics``: of the step
* ``gradients``, ``weights``: by model and local name; summed over all ranks, and after one optimiser step
"""

import math
import sys
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from megatron_rl.actor import accelerator, groups
from megatron_rl.actor.trainer import Actor
from megatron_rl.config import Config
from megatron_rl.launch.numerics.material import Material
from megatron_rl.resharding.families import canonical_tensors
from megatron_rl.system import processes
from megatron_rl.tracking.run_folder import RunFolder
from megatron_rl.training.batch import Batch, Step, scatter
from megatron_rl.training.models import Models
from megatron_rl.training.progress import Progress
from megatron_rl.training.stages import stages
from megatron_rl.training.stages.stage import Stage

STEP = 1e-2  # learning rate of the one step: a weight moves by so much at most
_TOKEN = "token"  # a column: the number of a token in the whole batch

Tensors = dict[str, dict[str, torch.Tensor]]  # by model and local name


def measure(run: RunFolder, config: Config) -> None:
    """Compute and write this rank's results; collective."""
    from megatron.core import parallel_state

    groups.initialize(config.actor, config.run.seed)
    at = Progress([*config.chain()][-1])
    other = run.model_folder().with_name("other")
    at.set_reference(run, other)
    models = Models(run, config)
    [stage] = stages(config, run, at)
    stage.enter(models, at)
    models.hold(run.model_folder())  # where a reference was frozen, the policy has its weights

    material = Material(config, models.policy.arch.vocab) if groups.first() else None
    scored = _score(models.policy, scatter(_step(stage, material, at), models.policy), config.rollout.temperature)
    everywhere = groups.gather(scored)
    if material is not None:
        material.engine_says(_drawn(material, {k: v for part in everywhere for k, v in part.items()}))
    batch = scatter(_step(stage, material, at), models.policy)

    trained = {"policy": models.policy, **models.beside}
    with_gradients, options = _keep_gradients(trained), _optimizers(config)
    for optimizer in options:
        optimizer.lr = 0.0
    for actor in trained.values():
        actor.new_optimizer(actor.optimizer_config)
    metrics, _ = stage.learn(models, batch, 0)
    gradients = {name: dict(kept) for name, kept in with_gradients.items()}

    for optimizer in options:
        optimizer.lr = STEP
    for name, actor in trained.items():
        norm = metrics["value_grad_norm" if name == "critic" else "grad_norm"]
        actor.new_optimizer(replace(actor.optimizer_config, **_smooth(actor, norm)))
    stage.learn(models, batch, 0)
    weights = {name: {n: p.clone() for n, p in actor.parameters().items()} for name, actor in trained.items()}
    content = {"scored": scored, "metrics": metrics, "gradients": gradients, "weights": weights}
    torch.save(content, run.path / f"rank{dist.get_rank()}.pt")
    parallel_state.destroy_model_parallel()
    groups.barrier()


def _step(stage: Stage, material: Material | None, at: Progress) -> Step | None:
    """The stage's batch, whose tokens are numbered; rank 0's."""
    if material is None:
        return None
    material.rng = np.random.default_rng(material.config.run.seed + 1)
    step, count = stage.batch(material, at), 0
    for row in (row for rows in step.minibatches for row in rows):
        row.columns[_TOKEN] = np.arange(count, count + len(row), dtype=np.float32)
        count += len(row)
    return step


def _score(policy: Actor, batch: Batch, temperature: float) -> dict[int, float]:
    [mine] = batch.minibatches
    packed = policy.build(mine, batch.columns)
    policy.score(packed, "scored", temperature)
    found: dict[int, float] = {}
    for part in packed if policy.last_stage else ():
        tokens, values = part.columns[_TOKEN].long().tolist(), part.columns["scored"].tolist()
        found.update(zip(tokens, values, strict=True))
    return found


def _drawn(material: Material, scored: dict[int, float]) -> list[float]:
    """The log-probs of all drawn tokens of the rollouts, in their order; nothing predicts what was not scored."""
    drawn = [token for group in material.groups for rollout in group for token in rollout.drawn]
    return [scored.get(number, 0.0) for number, token in enumerate(drawn) if token]


def _optimizers(config: Config) -> list[Any]:
    """Whose learning rates stages ask for."""
    return [
        config.actor.optimizer,
        config.critic.optimizer,
        config.sft_optimizer,
        config.preference_optimizer,
        config.reward_model_optimizer,
    ]


def _smooth(actor: Actor, norm: float) -> dict[str, Any]:
    """An AdamW whose first step does not turn round where a gradient is nearly 0, and which clips.

    Its first step is lr x g / (|g| + eps): with a small eps the sign of g alone, which rounding decides.
    """
    count = sum(spec.elements for spec in canonical_tensors(actor.hf_config).values())
    return {"lr": STEP, "eps": max(norm / 2 / math.sqrt(count), 1e-12), "clip_grad": norm / 2}


def _keep_gradients(trained: dict[str, Actor]) -> Tensors:
    """From now on every pass leaves copies of a model's gradients, as they are when ranks have summed them up."""
    kept: Tensors = {name: {} for name in trained}

    def keeping(name: str, actor: Actor, finalize: Callable[..., None]) -> Callable[..., None]:
        def finalize_and_keep(*args: Any, **kwargs: Any) -> None:
            finalize(*args, **kwargs)
            kept[name].update(_whole_gradients(actor))

        return finalize_and_keep

    for name, actor in trained.items():
        for chunk in actor.chunks:
            config: Any = chunk.config
            config.finalize_model_grads_func = keeping(name, actor, config.finalize_model_grads_func)
    return kept


def _whole_gradients(actor: Actor) -> dict[str, torch.Tensor]:
    """By local name; of a bucket each data-parallel rank has one share summed up, which the others are given here."""
    own: list[tuple[torch.Tensor, torch.Tensor]] = []
    for chunk in actor.wrapped:
        for buffer in (*chunk.buffers, *chunk.expert_parallel_buffers):
            ranks = buffer.data_parallel_group.size()
            for bucket in buffer.buckets:
                own.append((bucket.grad_data, bucket.grad_data.clone()))
                share = bucket.grad_data.view(ranks, -1)[buffer.data_parallel_group.rank()].clone()
                dist.all_gather_into_tensor(bucket.grad_data, share, group=buffer.data_parallel_group)
    found = {
        f"{i}/{name}": p.main_grad.clone()
        for i, chunk in enumerate(actor.chunks)
        for name, p in chunk.named_parameters()
    }
    for data, before in own:
        data.copy_(before)
    return found


def main() -> None:
    """Every folder that is named, one after the other."""
    accelerator.adapt()
    for path in sys.argv[1:]:
        run = RunFolder(path)
        measure(run, run.config())
    dist.destroy_process_group()


if __name__ == "__main__":
    processes.run(main)
