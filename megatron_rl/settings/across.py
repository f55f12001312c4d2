"""What is wrong between options of different rooms. A room's own check sees that room's options only."""

from collections.abc import Mapping
from typing import Any

from megatron_rl.actor.config import CriticConfig
from megatron_rl.actor.megatron.check import check_megatron, check_memory
from megatron_rl.algorithms.pairs.check import without_pairs
from megatron_rl.algorithms.published import PUBLISHED
from megatron_rl.algorithms.registry import asked_of
from megatron_rl.config import Config
from megatron_rl.data.order.mixture import parts, problems
from megatron_rl.data.registry import held_out, trains_on_files
from megatron_rl.data.sets.check import CONVERSATIONS, check_set
from megatron_rl.evaluation.check import check_evaluation, check_suites
from megatron_rl.resharding.families import canonical_tensors
from megatron_rl.resharding.families.architecture import read_architecture
from megatron_rl.resharding.layouts.megatron import layout_violations
from megatron_rl.settings.model import check_frozen
from megatron_rl.system import machine


def check_across(config: Config, policy: Mapping[str, Any] | None) -> list[str]:
    """Every violation, a sentence or two each; empty when there is none.

    ``policy``: the config.json of the model that is trained; None where it is not known.
    """
    evaluation = check_evaluation(config.evaluation, held_out(config.data)) if config.evaluation.prompts else []
    evaluation += check_suites(config.evaluation, config.reward_model.steps > 0)
    found = _actor(config) + _prompts(config) + _sampling(config) + _sets(config, policy) + _reward_model(config)
    return found + evaluation


def _actor(config: Config) -> list[str]:
    actor, found = config.actor, []
    if actor.sequence_parallel and actor.tensor_parallel == 1:
        found.append("actor.sequence_parallel needs actor.tensor_parallel > 1; leave it false.")
    if config.rollout.true_on_policy and machine.gpus():
        found.append(
            "rollout.embedded.true_on_policy=true needs a machine without a GPU, whose layers sum in their own ways: "
            "set it to false."
        )
    longest = config.data.max_prompt_tokens + config.rollout.max_new_tokens
    room = actor.micro_batch_tokens * max(actor.context_parallel, 1)
    if longest > room and config.asks():
        per_rank = -(-longest // max(actor.context_parallel, 1))
        found.append(
            f"actor.micro_batch_tokens is {actor.micro_batch_tokens}, but a prompt with its completion can have "
            f"{longest} tokens (data.max_prompt_tokens + rollout.max_new_tokens): set it to {per_rank} or more."
        )
    served = config.rollout.engine == "sglang" and config.generates()
    if served and config.rollout.sglang.fp8 and config.model.dtype == "float32":
        found.append(
            "rollout.sglang.fp8=true is for weights in bfloat16, and model.dtype is float32: SGLang multiplies no "
            "float32 by FP8; set one of them back."
        )
    shared = served and config.rollout.sglang.colocated
    if actor.asleep and not shared:
        found.append(
            "actor.asleep=true makes room for engines on the trainer's own GPUs, and there are none: set "
            "rollout.sglang.colocated=true, or leave actor.asleep false."
        )
    if served and config.rollout.sglang.routing_replay and actor.megatron.get("moe_router_fusion"):
        found.append(
            "actor.megatron.moe_router_fusion chooses experts in a kernel, to which rollout.sglang.routing_replay "
            "cannot give the engine's choice: set one of them back."
        )
    return found + check_megatron(actor, config.model.dtype) + check_memory(actor, config.model.dtype)


def _reward_model(config: Config) -> list[str]:
    if not config.reward_model.steps:
        return []
    if config.actor.lora.rank:
        return ["reward_model.steps trains the model whole, its scalar head too: set actor.lora.rank=0."]
    others = {"sft": config.sft.steps, "preference": config.preference.steps, "run": config.run.steps}
    said = " and ".join(f"{name}.steps={steps}" for name, steps in others.items() if steps)
    if not said:
        return []
    return [
        f"reward_model.steps={config.reward_model.steps} gives the run's model a scalar head, with which it is no "
        f"language model any more, and there is {said}: train a reward model in a run of its own."
    ]


def _sets(config: Config, policy: Mapping[str, Any] | None) -> list[str]:
    """The rows that stages have of their own."""
    found = check_set(config.sft.data, "sft.data", CONVERSATIONS) if config.sft.steps else []
    room = config.actor.micro_batch_tokens * max(config.actor.context_parallel, 1)
    sets = [("sft.data", bool(config.sft.steps and config.sft.data.path), config.sft.data, 1, "a row")]
    sets += [("preference.data", config.preference.steps > 0, config.preference.data, 2, "a pair of rows")]
    sets += [("reward_model.data", config.reward_model.steps > 0, config.reward_model.data, 2, "a pair of rows")]
    for key, used, options, rows, what in sets:
        if used and rows * options.max_tokens > room:
            found.append(
                f"actor.micro_batch_tokens is {config.actor.micro_batch_tokens}, but {what} can have "
                f"{rows * options.max_tokens} tokens ({rows} x {key}.max_tokens): set it to "
                f"{-(-rows * options.max_tokens // max(config.actor.context_parallel, 1))} or more, or lower that."
            )
    tasks = {} if problems(config.data) else parts(config.data)
    if config.preference.steps and any(map(trains_on_files, tasks.values())):  # whose rows are no pairs
        found += without_pairs(config.preference.data, "preference")
    return found + _frozen(config, policy) + _teacher(config, policy) + _critic(config)


def _critic(config: Config) -> list[str]:
    """A critic that nobody asks."""
    if not config.run.steps or "value" in asked_of(config.algorithm).needs:
        return []
    default = CriticConfig()
    given = [name for name, value in vars(default).items() if getattr(config.critic, name) != value]
    return [
        f"critic.{name} is set, but algorithm.name={config.algorithm.name} has no critic: use ppo, or leave it at its "
        "default."
        for name in given
    ]


def _frozen(config: Config, policy: Mapping[str, Any] | None) -> list[str]:
    """The folders of frozen models that the pairs are measured by, which are shards like the policy's."""
    options, found = config.preference, []
    for key in ("reference", "positive", "negative") if options.steps else ():
        if not (folder := getattr(options, key)):
            continue
        hf_config, wrong = check_frozen(f"preference.{key}", folder)
        found += wrong
        if hf_config and policy and not wrong and canonical_tensors(hf_config) != canonical_tensors(policy):
            found.append(
                f"preference.{key}={folder} has other weights than the model that is trained "
                f"({hf_config['model_type']} and {policy['model_type']}, or other sizes): give one like it."
            )
    return found


def _teacher(config: Config, policy: Mapping[str, Any] | None) -> list[str]:
    """The teacher's folder: it is sharded as the policy is, and names tokens as the policy does."""
    if not (folder := config.algorithm.teacher) or not config.run.steps:
        return []
    hf_config, found = check_frozen("algorithm.teacher", folder)
    if hf_config is None or found:
        return found
    theirs = read_architecture(hf_config).vocab
    if policy and theirs != (ours := read_architecture(policy).vocab):
        return [
            f"algorithm.teacher={folder} has vocab_size={theirs}, and the model that is trained has {ours}: a teacher "
            "must have the same vocabulary."
        ]
    return [f"algorithm.teacher: {said}" for said in layout_violations(hf_config, config.actor.sizes())]


def _sampling(config: Config) -> list[str]:
    """What is learned of what is sampled."""
    algorithm, rollout, found = config.algorithm, config.rollout, []
    if config.rewards.overlong_buffer > rollout.max_new_tokens:
        found.append(
            f"rewards.overlong_buffer is {config.rewards.overlong_buffer}, more than rollout.max_new_tokens "
            f"({rollout.max_new_tokens}): it is the last part of that; lower it."
        )
    if algorithm.hint_coef and rollout.strategy != "hinted":
        found.append(
            f"algorithm.hint_coef={algorithm.hint_coef} is for the tokens of hints, and there are none: set "
            "rollout.strategy=hinted, or leave it at 0."
        )
    if rollout.dynamic.filter and algorithm.name in PUBLISHED and not asked_of(algorithm).grouped:
        found.append(
            "rollout.dynamic.filter=true leaves out groups whose rewards are all equal, of which "
            f"algorithm.name={algorithm.name} learns as well: set it to false."
        )
    if rollout.dynamic.by_parts != (algorithm.reward_normalization == "each") and (
        rollout.dynamic.by_parts or rollout.dynamic.filter or rollout.dynamic.min_informative
    ):
        wanted = "true" if algorithm.reward_normalization == "each" else "false"
        found.append(
            f"rollout.dynamic.by_parts must be {wanted} with algorithm.reward_normalization="
            f"{algorithm.reward_normalization}: it says whether a group teaches something where its rewards differ one "
            "by one, but not in their sum."
        )
    return found


def missing_data(config: Config) -> list[str]:
    """Which file of questions is needed and not named."""
    found = []
    targets = config.sft.steps and not config.sft.data.path
    tasks = {} if problems(config.data) else parts(config.data)
    for name, data in tasks.items():
        if not data.path and trains_on_files(data) and (config.run.steps or targets):
            key = f"data.mixture.{name}.path" if name else "data.path"
            other = "" if config.run.steps else ", or sft.data.path to one with completions to imitate"
            found.append(f"{key} is empty; set it to a training file (.parquet .jsonl .json .csv) or a hub id{other}.")
    return found


def _prompts(config: Config) -> list[str]:
    algorithm, rollout, found = config.algorithm, config.rollout, missing_data(config)
    if rollout.group_size == 1 and asked_of(algorithm).grouped:
        ungrouped = " or ".join(name for name, other in PUBLISHED.items() if not other.grouped)
        found.append(
            f"rollout.group_size is 1; algorithm.name={algorithm.name} compares the completions of one prompt and "
            f"needs at least 2 ({ungrouped} does not)."
        )
    if min(algorithm.minibatches, rollout.prompts_per_step) >= 1 and rollout.prompts_per_step % algorithm.minibatches:
        divisors = [n for n in range(1, rollout.prompts_per_step + 1) if rollout.prompts_per_step % n == 0]
        found.append(
            f"algorithm.minibatches is {algorithm.minibatches}, which does not divide rollout.prompts_per_step "
            f"({rollout.prompts_per_step}); it can be {', '.join(map(str, divisors))}."
        )
    return found
