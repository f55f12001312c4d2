"""What a configuration would run, in a few lines."""

from pathlib import Path
from typing import Any

from megatron_rl.config import Config
from megatron_rl.data.config import DataConfig
from megatron_rl.data.order.mixture import parts, weights
from megatron_rl.launch.check import resolved
from megatron_rl.rollout.config import RolloutConfig
from megatron_rl.settings.footprint import footprint, read_config, readable
from megatron_rl.system import kernels, machine


def describe(config: Config, known: dict[str, Any] | None = None, model: str = "") -> str:
    """The processes, batches, lengths and needs of a configuration that has no violation.

    ``known``: the config.json of a model whose folder is elsewhere, ``model``: the file that it is read from.
    """
    actor, rollout, algorithm, run, sft = config.actor, config.rollout, config.algorithm, config.run, config.sft
    path, hf_config = config.model.path, known or read_config(config.model)
    needed = footprint(config, hf_config)
    world = config.actor.sizes().world
    completions = rollout.prompts_per_step * rollout.group_size
    updates = algorithm.minibatches * algorithm.epochs
    gpus = len(machine.gpus())
    where = f"{gpus} GPU{'s' if gpus > 1 else ''}" if gpus else "CPU"
    if (trainers := resolved(config.launch).nodes - config.launch.rollout_nodes) > 1:
        where = f"{trainers} nodes of {where}" if gpus else f"the CPUs of {trainers} nodes"
    more = {"virtual pipeline": actor.virtual_pipeline, "expert": actor.expert_parallel}
    terms = ", ".join(f"{name} x {weight:g}" for name, weight in config.rewards.terms.items())
    cache = "its cache" if gpus and rollout.engine == "sglang" else f"up to {readable(needed.cache)} for its cache"
    preference, rewarding = config.preference, config.reward_model
    imitated, compared = (f" from {path}" if path else "" for path in (sft.data.path, preference.data.path))
    lines = {
        "model": f"{hf_config['model_type']}, {needed.parameters / 1e6:,.2f} million parameters, {config.model.dtype}, "
        + (f"as {model} has it" if model else f"from {path}" if path else "from random weights"),
        "ranks": f"{world} on {where}: tensor {actor.tensor_parallel} x pipeline {actor.pipeline_parallel} x "
        f"context {actor.context_parallel} x data {actor.data_parallel}"
        + "".join(f", {name} {size}" for name, size in more.items() if size > 1),
        "kernels": _kernels(config.model.dtype),
        "engines": _engines(rollout) if config.generates() else "none: nothing is generated",
        "rewards": f"{terms}; {config.rewards.workers} worker process{'es' if config.rewards.workers > 1 else ''}",
        "data": _data(config.data),
        "warm start": f"{sft.steps} steps of {sft.batch_size} examples{imitated}" if sft.steps else "none",
        "preference": f"{preference.steps} steps of {preference.batch_size} pairs{compared}, {preference.loss}",
        "rewarding": f"{rewarding.steps} steps of {rewarding.batch_size} pairs from {rewarding.data.path}",
        "RL": f"{run.steps} steps of {rollout.prompts_per_step} prompts x {rollout.group_size} completions = "
        f"{completions}, in {updates} update{'s' if updates > 1 else ''} of {completions // algorithm.minibatches}",
        "tokens": f"prompts up to {config.data.max_prompt_tokens}, completions up to {rollout.max_new_tokens}, "
        f"micro-batches up to {actor.micro_batch_tokens} on a rank",
        "memory": f"{readable(max(needed.ranks))} a rank and activations"
        + (f"; {readable(needed.engine)} an engine and {cache}" if config.generates() else ""),
        "disk": f"{readable(needed.checkpoint)} a checkpoint",
        "folder": f"{Path(run.folder) / run.name}",
    }
    left_out = [] if preference.steps else ["preference"]
    left_out += [] if rewarding.steps else ["rewarding"]
    left_out += [] if run.steps else ["RL"]
    left_out += [] if config.generates() else ["rewards"]
    left_out += [] if config.asks() else ["data"]
    return "\n".join(f"  {name:<11}{text}" for name, text in lines.items() if name not in left_out)


def _kernels(dtype: str) -> str:
    gpus = bool(machine.gpus())
    found = "taken for Transformer Engine's" if machine.elsewhere() and gpus else kernels.found()
    return f"Megatron's own layers, in float32; for the rest {found}" if gpus and dtype == "float32" else found


def _data(data: DataConfig) -> str:
    if data.mixture:
        shares = weights(data)
        return "; ".join(f"{100 * shares[name]:.3g} % {name}: {_data(part)}" for name, part in parts(data).items())
    return data.task + (f" from {data.path}" if data.path else "")


def _engines(rollout: RolloutConfig) -> str:
    if rollout.engine == "embedded":
        return f"{rollout.engines} embedded on CPU"
    if rollout.sglang.urls:
        return f"{rollout.engine_count} sglang, started elsewhere"
    workers = rollout.sglang.tensor_parallel
    return (
        f"{rollout.engines} sglang"
        + (f" of {workers} workers" if workers > 1 else "")
        + (f" on {rollout.sglang.nodes} nodes" if rollout.sglang.nodes > 1 else "")
        + (", colocated" if rollout.sglang.colocated else "")
    )
