"""What is wrong between options of different rooms. A room's own check sees that room's options only."""

from megatron_rl.algorithms.published import PUBLISHED
from megatron_rl.config import Config
from megatron_rl.data.order.mixture import parts, problems
from megatron_rl.data.registry import held_out, trains_on_files
from megatron_rl.evaluation.check import check_evaluation
from megatron_rl.system import machine


def check_across(config: Config) -> list[str]:
    """Every violation, a sentence or two each; empty when there is none."""
    return (
        _actor(config)
        + _prompts(config)
        + _sampling(config)
        + check_evaluation(config.evaluation, held_out(config.data))
    )


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
    if longest > room:
        per_rank = -(-longest // max(actor.context_parallel, 1))
        found.append(
            f"actor.micro_batch_tokens is {actor.micro_batch_tokens}, but a prompt with its completion can have "
            f"{longest} tokens (data.max_prompt_tokens + rollout.max_new_tokens): set it to {per_rank} or more."
        )
    return found


def _sampling(config: Config) -> list[str]:
    """What is learned of what is sampled."""
    algorithm, rollout, found = config.algorithm, config.rollout, []
    if config.rewards.overlong_buffer > rollout.max_new_tokens:
        found.append(
            f"rewards.overlong_buffer is {config.rewards.overlong_buffer}, more than rollout.max_new_tokens "
            f"({rollout.max_new_tokens}): it is the last part of that; lower it."
        )
    published = PUBLISHED.get(algorithm.name)
    if rollout.dynamic.filter and published and not published.grouped:
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


def _prompts(config: Config) -> list[str]:
    algorithm, rollout, found = config.algorithm, config.rollout, []
    tasks = {} if problems(config.data) else parts(config.data)
    for name, data in tasks.items():
        if not data.path and trains_on_files(data) and (config.run.steps or config.sft.steps):
            key = f"data.mixture.{name}.path" if name else "data.path"
            found.append(f"{key} is empty; set it to a training file (.parquet .jsonl .json .csv) or a hub id.")
    published = PUBLISHED.get(algorithm.name)
    if published and published.grouped and rollout.group_size == 1:
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
