"""One rank of the tests of pairs: for every case the stage's own batch, scores, loss and gradients of a sharded actor.

argv: a JSON list of cases {"name", "policy", "reference", "positive", "negative": folders, "actor": options,
"preference": options, "pairs": [[prompt, prefix, chosen, rejected], …] as token ids}, and where to write the results.
"""

import json
import sys
from functools import partial
from pathlib import Path

import torch
import torch.distributed as dist

from megatron_rl.actor import accelerator, groups
from megatron_rl.actor.config import ActorConfig, OptimizerConfig
from megatron_rl.actor.trainer import Actor
from megatron_rl.algorithms.pairs.cdpo import CONTRAST
from megatron_rl.algorithms.pairs.config import PreferenceConfig
from megatron_rl.training.stages.preference import pair_objective, pair_rows


def run(case: dict, out: Path) -> None:
    from megatron.core import parallel_state
    from megatron.core.distributed import finalize_model_grads

    config, options = ActorConfig(**case["actor"]), PreferenceConfig(**case["preference"])
    groups.initialize(config, seed=0)
    folder = Path(case["policy"])
    actor = Actor(json.loads((folder / "config.json").read_text()), config, "float32", str(folder))
    for role in ("reference", "positive", "negative"):
        actor.load(case[role])
        actor.freeze_reference(role)
    actor.load(case["policy"])
    for chunk in actor.chunks:  # every rank keeps the whole gradient, to be compared
        chunk.config.finalize_model_grads_func = lambda model, tokens=None, **kw: partial(
            finalize_model_grads, model, None
        )(**(kw | {"force_all_reduce": True}))
    actor.new_optimizer(OptimizerConfig(lr=0.0, clip_grad=1e9))
    batches = actor.pack(pair_rows([tuple(map(tuple, pair)) for pair in case["pairs"]], options))
    with actor.reference():
        actor.score(batches, "ref_logprobs")
    if options.loss == "cdpo":
        actor.score_contrast(batches, "critical", "positive", "negative", CONTRAST)
    metrics = actor.update(batches, lambda logprobs, entropy, batch: pair_objective(logprobs, batch, options), lr=0.0)
    gradients = {
        f"{i}/{n}": p.main_grad.clone() for i, chunk in enumerate(actor.chunks) for n, p in chunk.named_parameters()
    }
    torch.save({"metrics": metrics, "gradients": gradients}, out / f"{case['name']}-{dist.get_rank()}.pt")
    parallel_state.destroy_model_parallel()
    dist.barrier()


if __name__ == "__main__":
    accelerator.adapt()
    cases, out = json.loads(Path(sys.argv[1]).read_text()), Path(sys.argv[2])
    for case in cases:
        run(case, out)
    dist.destroy_process_group()
