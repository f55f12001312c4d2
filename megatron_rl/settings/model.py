"""The model's folder, and whether its sizes can be trained and served as configured. Imports no torch."""

from pathlib import Path
from typing import Any

from megatron_rl.actor.config import ModelConfig
from megatron_rl.actor.megatron.shapes import check_shapes
from megatron_rl.actor.tuning.names import problems
from megatron_rl.config import Config
from megatron_rl.errors import InputError
from megatron_rl.resharding.families import with_scalar_head
from megatron_rl.resharding.families.architecture import read_architecture
from megatron_rl.resharding.families.table import scalar_head
from megatron_rl.resharding.folders.check import config_problems, folder_problems
from megatron_rl.resharding.folders.hf import CONFIG, read_hf_config
from megatron_rl.resharding.layouts.megatron import layout_violations
from megatron_rl.rollout.sglang.check import check_sglang_gpus, check_sglang_model
from megatron_rl.settings.foresight.held import check_buckets
from megatron_rl.system import machine

_GIVEN = "model.architecture"
MOST_RANKS = 1 << 16  # of a layout that is drawn up in no time


def check_model(config: Config, known: dict[str, Any] | None = None) -> tuple[dict[str, Any] | None, list[str]]:
    """``check_model_folder`` of the model that a run starts from, or of one ``known`` by its config.json alone."""
    rewards = config.reward_model.steps > 0
    if known is not None:
        return check_model_folder(ModelConfig(architecture=known), rewards)
    if machine.elsewhere() and config.model.path and not config.model.architecture:  # its weights may be there only
        try:
            return check_model_folder(ModelConfig(architecture=read_hf_config(config.model.path)), rewards)
        except InputError as error:
            return None, [f"{error} For a model that is elsewhere give its config.json: --model FILE."]
    return check_model_folder(config.model, rewards)


def has_tokenizer(folder: str) -> bool:
    """Whether there is a tokenizer to look at: one in a model's folder, or the task's own where there is none."""
    names = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.json")
    return not folder or any((Path(folder) / name).exists() for name in names)


def check_model_folder(model: ModelConfig, rewards: bool = False) -> tuple[dict[str, Any] | None, list[str]]:
    """The content of config.json, if there is one, and what is wrong with the model's folder.

    ``rewards``: the run trains a reward model, which has a scalar head, whatever the folder has.
    """
    path, architecture = model.path, model.architecture
    if bool(path) == bool(architecture):
        which = "both are" if path else "neither is"
        return None, [f"One of model.path (a Hugging Face folder) and model.architecture must be given; {which}."]
    hf_config, found = folder_problems(path) if path else (architecture, config_problems(architecture, _GIVEN))
    if found or hf_config is None:
        return hf_config, found
    if rewards and not scalar_head(hf_config):
        hf_config = with_scalar_head(hf_config)
    elif not rewards and scalar_head(hf_config):
        where = path or "model.architecture"
        found = [
            f"{where} is a model with a scalar head (architectures={hf_config['architectures']}), and the policy needs "
            "a language model: set model.path to one."
        ]
    return hf_config, found


def check_beside(key: str, folder: str) -> tuple[dict[str, Any] | None, list[str]]:
    """The content of config.json of a model beside the policy, named by option ``key``, and what is wrong with it.

    Of one that is elsewhere, as its weights may be, config.json is enough.
    """
    if not machine.elsewhere():
        hf_config, found = folder_problems(folder)
        return hf_config, [f"{key}: {said}" for said in found]
    try:
        hf_config = read_hf_config(folder)
    except InputError as error:
        return None, [f"{key}: {error} Of a model that is elsewhere a folder with its config.json will do."]
    return hf_config, [f"{key}: {said}" for said in config_problems(hf_config, str(Path(folder) / CONFIG))]


def check_frozen(key: str, folder: str) -> tuple[dict[str, Any] | None, list[str]]:
    """``check_beside`` of one that must be a language model."""
    hf_config, found = check_beside(key, folder)
    if hf_config and not found and scalar_head(hf_config):
        found = [
            f"{key}: {folder} is a model with a scalar head (architectures={hf_config['architectures']}): name a "
            "language model."
        ]
    return hf_config, found


def check_critic(config: Config, hf_config: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """The content of config.json of the critic beside a policy of ``hf_config``, and what is wrong with it."""
    path, alone, steps = config.critic.path, config.critic.warmup_steps, config.run.steps
    if steps and alone >= steps:
        return hf_config, [
            f"critic.warmup_steps is {alone}, and run.steps {steps}: the policy would never learn; lower the first."
        ]
    if not path:
        return with_scalar_head(hf_config), []
    own, found = check_beside("critic.path", path)
    if own is None or found:
        return hf_config, found
    critic, policy = read_architecture(own), read_architecture(hf_config)
    if critic.vocab != policy.vocab:
        found.append(
            f"critic.path: {path} has vocab_size={critic.vocab}, and the policy {policy.vocab}: both read the same "
            "tokens, so name a model with the policy's tokenizer."
        )
    longest = config.data.max_prompt_tokens + config.rollout.max_new_tokens
    if longest > critic.max_positions:
        found.append(
            f"critic.path: {path} has max_position_embeddings={critic.max_positions}, and data.max_prompt_tokens + "
            f"rollout.max_new_tokens = {longest}: shorten one of them."
        )
    found += [f"critic.path: {said}" for said in layout_violations(own, config.actor.sizes())]
    return own if scalar_head(own) else with_scalar_head(own), found


def check_sizes(config: Config, hf_config: dict[str, Any]) -> list[str]:
    """Why the model cannot be sharded, served or filled as configured: its family, its sharding, its context."""
    if (world := config.actor.sizes().world) > MOST_RANKS:
        return [f"The parallel sizes make {world} ranks (tensor x pipeline x context x data): lower one."]
    try:
        architecture = read_architecture(hf_config)
        found = layout_violations(hf_config, config.actor.sizes())
    except InputError as error:
        return [str(error)]
    found = found or problems(config.actor, hf_config) + check_shapes(config.actor, architecture)
    found = found or check_buckets(config.actor, architecture)
    if config.rollout.engine == "sglang" and config.generates():
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
    if longest > architecture.max_positions and config.asks():
        found.append(
            f"data.max_prompt_tokens + rollout.max_new_tokens = {longest}, but the model has "
            f"max_position_embeddings={architecture.max_positions}: shorten one of them."
        )
    return found
