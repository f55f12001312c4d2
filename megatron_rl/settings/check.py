"""Everything that is wrong with a configuration on this machine, found before anything is started.

``check`` imports no torch. Where the tokenizer and the rows of the data can be looked at, a child process does that
(``python -m megatron_rl.settings.check``), for the tokenizer brings torch along.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from math import inf
from pathlib import Path
from typing import Any

import psutil

from megatron_rl.algorithms.check import check_algorithm, check_sft
from megatron_rl.config import Config
from megatron_rl.data.check import check_data
from megatron_rl.data.registry import held_out
from megatron_rl.errors import InputError
from megatron_rl.evaluation.check import check_evaluation
from megatron_rl.resharding.layouts.megatron import layout_violations
from megatron_rl.rewards.registry import check_rewards
from megatron_rl.rollout.check import check_rollout
from megatron_rl.rollout.sglang.check import check_sglang_gpus, check_sglang_model
from megatron_rl.settings.footprint import Footprint, footprint, read_config, readable
from megatron_rl.settings.load import from_yaml, to_yaml
from megatron_rl.system import machine

CHOICES = {
    "run.resume": ("auto", "never"),
    "model.dtype": ("bfloat16", "float32"),
    "actor.recompute": ("none", "selective", "full"),
    "actor.fp8": ("none", "delayed", "tensorwise", "blockwise"),
    "actor.optimizer.decay": ("constant", "linear", "cosine"),
    "sft_optimizer.decay": ("constant", "linear", "cosine"),
    "tracking.wandb": ("auto", "online", "offline", "off"),
}
LEAST = {
    "run.seed": 0,
    "run.steps": 0,
    "run.save_every": 0,
    "run.keep": 1,
    "actor.micro_batch_tokens": 1,
    "actor.logprob_chunk": 1,
    "actor.threads": 1,
    "tracking.completions": 0,
}
OPTIMIZER_RANGES: dict[str, tuple[float, float]] = {  # least and most, both allowed
    "lr": (0, inf),
    "beta1": (0, 0.999999),
    "beta2": (0, 0.999999999),
    "eps": (0, inf),
    "weight_decay": (0, inf),
    "clip_grad": (0, inf),
    "warmup_steps": (0, inf),
    "min_lr_ratio": (0, 1),
}


def check(config: Config, contents: bool = True, notes: dict[str, int] | None = None) -> list[str]:
    """Every violation, a sentence or two each; empty when the run can start.

    ``contents``: look at the tokenizer and the rows of the data too, which takes a few seconds. ``notes`` gets what
    there is to say about the rows.
    """
    found = (packages := machine.package_problems()) + _options(config)
    found += check_rewards(config.rewards) + check_rollout(config.rollout)
    found += (about_data := check_data(config.data)) + check_evaluation(config.evaluation, held_out(config.data))
    found += check_algorithm(config.algorithm, config.rollout) + check_sft(config.sft)
    found += _run_folder(config) + _said(machine.free_port)
    hf_config, problems = _model(config)
    found += problems
    if hf_config is not None:
        found += _fits_model(config, hf_config)
    if contents and hf_config is not None and not packages + problems + about_data:
        violations, counted = _contents(config)
        found += violations
        (notes if notes is not None else {}).update(counted)
    return list(dict.fromkeys(found))


def _options(config: Config) -> list[str]:
    found = []
    for key, allowed in CHOICES.items():
        if (value := _get(config, key)) not in allowed:
            found.append(f"{key} is {value!r}; it must be {', '.join(allowed[:-1])} or {allowed[-1]}.")
    for key, least in LEAST.items():
        if (value := _get(config, key)) < least:
            found.append(f"{key} is {value}; it must be {least} or more.")
    for group in ("actor.optimizer", "sft_optimizer"):
        for key, (low, high) in OPTIMIZER_RANGES.items():
            value = _get(config, f"{group}.{key}")
            if not low <= value <= high or value == inf:
                allowed_range = f"{low} or more" if high == inf else f"between {low} and {high}"
                found.append(f"{group}.{key} is {value}; it must be {allowed_range}.")
    actor = config.actor
    if actor.sequence_parallel and actor.tensor_parallel == 1:
        found.append("actor.sequence_parallel needs actor.tensor_parallel > 1; leave it false.")
    if config.rollout.true_on_policy and machine.gpus():
        found.append(
            "rollout.embedded.true_on_policy=true needs a machine without a GPU, whose layers sum in their own ways: "
            "set it to false."
        )
    longest = config.data.max_prompt_tokens + config.rollout.max_new_tokens
    room = actor.micro_batch_tokens * max(actor.context_parallel, 1)
    if longest > room:
        per_rank = -(-longest // max(actor.context_parallel, 1))
        found.append(
            f"actor.micro_batch_tokens is {actor.micro_batch_tokens}, but a prompt with its completion can have "
            f"{longest} tokens (data.max_prompt_tokens + rollout.max_new_tokens): set it to {per_rank} or more."
        )
    return found


def _run_folder(config: Config) -> list[str]:
    name, path = config.run.name, Path(config.run.folder) / config.run.name
    if not name or name != Path(name).name or name in ("..", "latest") or name.startswith("."):
        return [f"run.name is {name!r}; it must be the name of one folder, not starting with a dot."]
    existing = path
    while not existing.exists() and existing != existing.parent:
        existing = existing.parent
    if not existing.is_dir():
        return [
            f"The run's folder {path} cannot be created: {existing} is a file. Choose another run.folder or run.name."
        ]
    if not os.access(existing, os.W_OK | os.X_OK):
        return [f"The run's folder {path} cannot be written: there is no permission to write in {existing}."]
    return []


def _model(config: Config) -> tuple[dict[str, Any] | None, list[str]]:
    """The content of config.json, if there is one, and what is wrong with the model's folder."""
    path, architecture = config.model.path, config.model.architecture
    if bool(path) == bool(architecture):
        which = "both are" if path else "neither is"
        return None, [f"One of model.path (a Hugging Face folder) and model.architecture must be given; {which}."]
    if path and not Path(path).is_dir():
        return None, [
            f"model.path={path}: there is no such folder. Give a local Hugging Face folder (config.json, *.safetensors "
            "and tokenizer files); `hf download` fetches one."
        ]
    if path and not Path(path, "config.json").is_file():
        return None, [f"model.path={path}: the folder has no config.json, so it is no Hugging Face model."]
    try:
        hf_config = read_config(config.model)
    except ValueError as error:
        return None, [f"{path}/config.json is not valid JSON: {error}."]
    if path and not any(Path(path).glob("*.safetensors")):
        return hf_config, [f"model.path={path}: the folder has no *.safetensors; convert its weights to them."]
    return hf_config, []


def _fits_model(config: Config, hf_config: dict[str, Any]) -> list[str]:
    """What concerns the model's sizes: its family, its sharding, its context, memory and disk."""
    from megatron_rl.resharding.families.architecture import read_architecture

    try:
        architecture = read_architecture(hf_config)
        found = layout_violations(hf_config, config.actor.sizes())
    except InputError as error:
        return [str(error)]
    except KeyError as error:
        where = "model.architecture" if config.model.architecture else f"{config.model.path}/config.json"
        return [f"{where} has no {error.args[0]}, which {hf_config.get('model_type')} needs."]
    if config.rollout.engine == "sglang":
        found += check_sglang_model(config.rollout.sglang, hf_config)
        found += check_sglang_gpus(config.rollout, config.actor.sizes().world)
    if architecture.experts and config.actor.tensor_parallel > 1 and not config.actor.sequence_parallel:
        found.append("A mixture of experts with actor.tensor_parallel > 1 needs actor.sequence_parallel=true.")
    if config.rollout.true_on_policy and architecture.experts:
        found.append("rollout.embedded.true_on_policy=true is for dense models, and this one is a mixture of experts.")
    if config.rollout.sglang.routing_replay and not architecture.experts:
        found.append(
            f"rollout.sglang.routing_replay is for mixtures of experts, and model_type={architecture.family} is none: "
            "leave it false."
        )
    longest = config.data.max_prompt_tokens + config.rollout.max_new_tokens
    if longest > architecture.max_positions:
        found.append(
            f"data.max_prompt_tokens + rollout.max_new_tokens = {longest}, but the model has "
            f"max_position_embeddings={architecture.max_positions}: shorten one of them."
        )
    if not found and config.model.dtype in CHOICES["model.dtype"]:
        found += _fits_machine(config, footprint(config, hf_config))
    return found


def _fits_machine(config: Config, needed: Footprint) -> list[str]:
    found, gpus, world = [], machine.gpus(), len(needed.ranks)
    if gpus and world > len(gpus):
        found.append(
            f"The parallel sizes make {world} ranks (tensor x pipeline x context x data), and this machine has "
            f"{len(gpus)} GPU{'s' if len(gpus) > 1 else ''} to give each rank one: lower a size."
        )
    if config.actor.fp8 != "none" and not gpus:
        found.append(f"actor.fp8={config.actor.fp8} needs an NVIDIA GPU; there is none. Use actor.fp8=none.")
    elif config.actor.fp8 != "none" and not machine.installed("transformer-engine"):
        found.append(f'actor.fp8={config.actor.fp8} needs Transformer Engine: pip install "megatron-rl[te]".')
    if gpus and max(needed.ranks) > min(gpus):
        found.append(
            f"A rank needs at least {readable(max(needed.ranks))} for weights, gradients and optimiser, and a GPU has "
            f"{readable(min(gpus))}: shard further (actor.tensor_parallel, .pipeline_parallel or .data_parallel)."
        )
    memory = needed.engine * config.rollout.engines + (0 if gpus else sum(needed.ranks))
    if memory > (available := psutil.virtual_memory().available):
        found.append(
            f"The run needs at least {readable(memory)} of memory ({needed.parameters / 1e6:.1f} million parameters), "
            f"and {readable(available)} are free: use a smaller model or fewer replicas and engines."
        )
    if needed.shared > (free := shutil.disk_usage("/dev/shm").free):
        found.append(
            f"The ranks offer their weights to the engines in /dev/shm, which needs {readable(needed.shared)} and has "
            f"{readable(free)} free: enlarge it (mount -o remount,size=…; in a container, --shm-size)."
        )
    return found + _fits_disk(config, needed)


def _fits_disk(config: Config, needed: Footprint) -> list[str]:
    kept = config.run.keep + 1 if config.run.save_every else 1  # a new one is complete before an old one goes
    disk = kept * needed.checkpoint + needed.export * (config.run.export + bool(config.model.architecture))
    folder = Path(config.run.folder)
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    if disk <= free:
        return []
    return [
        f"The run writes up to {readable(disk)} to {config.run.folder} ({kept} checkpoints of "
        f"{readable(needed.checkpoint)}), and {readable(free)} are free: lower run.keep, or choose another run.folder."
    ]


def _contents(config: Config) -> tuple[list[str], dict[str, int]]:
    """What is wrong with the tokenizer and the rows of the data, and what there is to say about the rows."""
    done = subprocess.run(
        [sys.executable, "-m", "megatron_rl.settings.check"], input=to_yaml(config), capture_output=True, text=True
    )
    if done.returncode != 0:
        raise RuntimeError(f"looking at the tokenizer and the data failed:\n{done.stderr}")
    found, notes = json.loads(done.stdout.splitlines()[-1])
    return found, notes


def _check_contents(config: Config, scratch: str, notes: dict[str, int]) -> None:
    from megatron_rl.data.files import is_local
    from megatron_rl.data.registry import make_task, require_targets, write_tokenizer
    from megatron_rl.data.tokenizer import check_vocabulary, load_tokenizer

    folder = config.model.path
    if not folder:  # a model with random weights takes the task's own tokenizer
        folder = scratch
        write_tokenizer(config.data, folder)
    tokenizer = load_tokenizer(folder)
    tokenizer.name_or_path = config.model.path or f"of data.task={config.data.task}"  # as messages name it
    check_vocabulary(tokenizer, read_config(config.model))
    if all(is_local(path) for path in (config.data.path, config.data.eval_path) if path):
        task = make_task(config.data, config.run.seed, tokenizer)
        notes |= getattr(task, "notes", {})
        if config.sft.steps:
            require_targets(task)


def main() -> None:
    """Print, as JSON, what is wrong with the tokenizer and the data of the configuration on standard input, and what
    there is to say about the rows."""
    notes: dict[str, int] = {}
    with tempfile.TemporaryDirectory() as scratch:
        file = Path(scratch) / "config.yaml"
        file.write_text(sys.stdin.read())
        print(json.dumps([_said(lambda: _check_contents(from_yaml(file), scratch, notes)), notes]))


def _said(action: Callable[[], Any]) -> list[str]:
    try:
        action()
    except InputError as error:
        return [str(error)]
    return []


def _get(config: Config, key: str) -> Any:
    value: Any = config
    for name in key.split("."):
        value = getattr(value, name)
    return value


if __name__ == "__main__":
    main()
