"""One rank of the tests of adapters and frozen weights.

argv: a JSON list of jobs {"name", "model", "actor": options, "dtype", "folder" of checkpoints, "given": whether B is
drawn instead of zero, "load": checkpoint or null, "save": step or null, "steps", "exact": as under true_on_policy,
"kl": whether there is a reference, "moves": whether it follows with DECAY}, and where to write this rank's results.
Step 0 of a "given" job has no learning rate: it shows gradients.
"""

import json
import sys
from pathlib import Path

import torch
import torch.distributed as dist

from megatron_rl.actor import accelerator, checkpoint, groups
from megatron_rl.actor.config import ActorConfig, LoRAConfig, OptimizerConfig
from megatron_rl.actor.trainer import Actor
from megatron_rl.actor.tuning.lora import drawn
from megatron_rl.actor.tuning.peft_folder import write_adapter
from megatron_rl.resharding.families.table import Kind
from megatron_rl.resharding.layout import TensorSpec
from megatron_rl.resharding.layouts.megatron import split
from tests.actor.training_ranks import sequences

SETTINGS = OptimizerConfig(lr=1e-2, weight_decay=0.1, clip_grad=0.5)
DECAY, SEED = 0.75, 7


def give(adapter) -> None:
    """B's rows, drawn by the name of the Hugging Face tensor that they belong to."""
    parts, rank = adapter.target.parts, adapter.b.shape[1]
    whole = {part: drawn(part, spec.shape[0], rank) for part, spec in parts.items()}
    if adapter.target.kind is Kind.ROW:
        [b] = whole.values()
        adapter.b.data.copy_(b)
        return
    specs = tuple(TensorSpec((s.shape[0], rank), (*s.index[:-1], rank)) for s in parts.values())
    _, boxes, _ = split(adapter.target.kind, specs, adapter.group.size(), adapter.group.rank())
    for part, start, shape, offset, strides in boxes:
        there = tuple(slice(first, first + count) for first, count in zip(start, shape, strict=True))
        values = list(whole.values())[part].view(specs[part].index)[there]
        adapter.b.data.as_strided(shape, strides, adapter.b.data.storage_offset() + offset).copy_(values)


def run(job: dict, out: Path) -> None:
    from megatron.core import parallel_state
    from megatron.core.distributed import finalize_model_grads

    options = dict(job["actor"])
    lora = LoRAConfig(**options.pop("lora", {}))
    config = ActorConfig(**options, lora=lora)
    groups.initialize(config, seed=0)
    folder = Path(job["model"])
    hf_config = json.loads((folder / "config.json").read_text())
    actor = Actor(hf_config, config, job["dtype"], str(folder), SEED)
    if job["exact"]:
        actor.sum_as_engine()
    gradients: dict = {}

    def finalize(model, tokens=None, **how) -> None:
        """Every rank keeps the whole gradient, before it is clipped."""
        finalize_model_grads(model, None, **(how | {"force_all_reduce": True}))
        for a in actor.adapters:
            gradients[a.target.name] = (a.a.main_grad.clone(), a.b.main_grad.clone(), a.group.rank())

    for chunk in actor.chunks:
        chunk.config.finalize_model_grads_func = finalize
    before = {name: p.clone() for name, p in actor.parameters().items()}
    if job["kl"]:
        actor.freeze_reference(moves=job["moves"])
    actor.new_optimizer(SETTINGS)
    if job["given"]:
        for adapter in actor.adapters:
            give(adapter)
        for optimizer in actor.optimizer.chained_optimizers:
            optimizer.reload_model_params()
        actor.merge()
    state = checkpoint.load(actor, Path(job["folder"]) / job["load"]) if job["load"] else {"step": 0}
    result: dict = {"before": before, "losses": [], "before_steps": []}

    def objective(logprobs, entropy, batch):
        loss = -(batch.columns["weight"] * logprobs).sum()
        return loss, {"loss": loss}

    for step in range(state["step"], job["steps"]):
        batches = actor.pack(sequences(step))
        if step == 0 and job["given"]:
            result["merged"] = {name: p.clone() for name, p in actor.parameters().items()}
            actor.score(batches, "logprobs")
            result["logprobs"] = [b.columns["logprobs"] for b in batches] if actor.last_stage else []
            result["norm"] = actor.update(batches, objective, 0.0)["grad_norm"]
            result["gradients"] = dict(gradients)
            continue
        result["losses"].append(actor.update(batches, objective, SETTINGS.lr)["loss"])
        if job["moves"]:
            if not result["before_steps"]:
                result["before_steps"].append(before)
            result["before_steps"].append({name: p.clone() for name, p in actor.parameters().items()})
            actor.kept_reference.follow(DECAY)
        if step + 1 == job["save"]:
            checkpoint.save(actor, Path(job["folder"]), str(step + 1), {"step": step + 1}, keep=1)
    if actor.adapters:
        write_adapter(actor, out / f"{job['name']}.adapter")
    result["weights"] = {name: p.clone() for name, p in actor.parameters().items()}
    if job["kl"]:
        with actor.reference():
            result["reference"] = {name: p.clone() for name, p in actor.parameters().items()}
        result["shared"] = sum(
            actor.kept_reference.held[f"{i}/{n}"] is a.base
            for a in actor.adapters
            for i, chunk in enumerate(actor.chunks)
            for n, p in chunk.named_parameters()
            if p is a.linear.weight
        )
    result["trained"] = [n for chunk in actor.chunks for n, p in chunk.named_parameters() if p.requires_grad]
    result["states"] = sum(
        sum(p.numel() for p in group["params"])
        for optimizer in actor.optimizer.chained_optimizers
        for group in optimizer.param_groups
    )
    torch.save(result, out / f"{job['name']}-{dist.get_rank()}.pt")
    parallel_state.destroy_model_parallel()
    dist.barrier()


if __name__ == "__main__":
    accelerator.adapt()
    for job in json.loads(Path(sys.argv[1]).read_text()):
        run(job, Path(sys.argv[2]))
    dist.destroy_process_group()
