"""One rank of the parity tests: for every case, log-probs, logits, loss and gradients of a sharded actor."""

import json
import sys
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist

from megatron_rl.actor import accelerator, groups
from megatron_rl.actor.config import ActorConfig, OptimizerConfig
from megatron_rl.actor.rows import TrainingRow
from megatron_rl.actor.trainer import Actor


def run(case: dict, out: Path) -> None:
    from megatron.core import parallel_state
    from megatron.core.distributed import finalize_model_grads

    options = dict(case["actor"])
    true_on_policy, dtype = options.pop("true_on_policy", False), options.pop("dtype", "float32")
    config = ActorConfig(**options)
    groups.initialize(config, seed=0)
    folder = Path(case["model"])
    actor = Actor(json.loads((folder / "config.json").read_text()), config, dtype, str(folder))
    if true_on_policy:
        actor.sum_as_engine()
    for chunk in actor.chunks:  # every rank keeps the whole gradient, to be compared
        chunk.config.finalize_model_grads_func = lambda model, tokens=None, **kw: partial(
            finalize_model_grads, model, None
        )(**(kw | {"force_all_reduce": True}))
    actor.new_optimizer(OptimizerConfig(lr=0.0, clip_grad=1e9))
    sequences = [
        TrainingRow(
            np.array(s["tokens"]),
            {"weight": np.array(s["weight"], np.float32), "id": np.array(s["id"], np.float32)},
            prompt=s["prompt"],
            experts=np.array(s["experts"], np.int16) if case["replay"] else None,
        )
        for s in case["sequences"]
    ]
    batches = actor.pack(sequences)
    actor.score(batches, "logprobs", case["temperature"])
    scored = {}
    if actor.last_stage:
        for batch in batches:
            for i, value in zip(batch.columns["id"].long().tolist(), batch.columns["logprobs"].tolist(), strict=True):
                scored[i] = value

    def objective(logprobs, entropy, batch):
        columns = batch.columns
        loss = -(columns["weight"] * (logprobs + 0.3 * entropy)).sum()
        return loss, {
            "loss": loss,
            "entropy": (columns["weight"] * entropy).sum(),
            "max_logprob": logprobs.max() if len(logprobs) else loss * 0 - 99,
        }

    metrics = actor.update(batches, objective, lr=0.0, temperature=case["temperature"])
    gradients = {
        f"{i}/{n}": p.main_grad.clone() for i, chunk in enumerate(actor.chunks) for n, p in chunk.named_parameters()
    }
    torch.save(
        {"scored": scored, "metrics": metrics, "gradients": gradients}, out / f"{case['name']}-{dist.get_rank()}.pt"
    )
    parallel_state.destroy_model_parallel()
    dist.barrier()


if __name__ == "__main__":
    accelerator.adapt()
    cases, out = json.loads(Path(sys.argv[1]).read_text()), Path(sys.argv[2])
    for case in cases:
        run(case, out)
    dist.destroy_process_group()
