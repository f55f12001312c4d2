"""What is wrong between options of different rooms. A room's own check sees that room's options only."""

from megatron_rl.algorithms.published import PUBLISHED
from megatron_rl.config import Config
from megatron_rl.data.registry import held_out, trains_on_files
from megatron_rl.evaluation.check import check_evaluation
from megatron_rl.system import machine


def check_across(config: Config) -> list[str]:
    """Every violation, a sentence or two each; empty when there is none."""
    return (
        _actor(config)
        + _prompts(config)
        + _reward_model(config)
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


def _reward_model(config: Config) -> list[str]:
    if not config.reward_model.steps:
        return []
    found = []
    others = {"sft": config.sft.steps, "preference": config.preference.steps, "run": config.run.steps}
    if said := " and ".join(f"{name}.steps={steps}" for name, steps in others.items() if steps):
        found.append(
            f"reward_model.steps={config.reward_model.steps} gives the run's model a scalar head, with which it is no "
            f"language model any more, and there is {said}: set that to 0, and start another run from what it trains."
        )
    if not config.reward_model.data.path:
        found.append(
            "reward_model.data.path is empty; set it to a file of pairs (prompt, chosen, rejected; .parquet .jsonl "
            ".json .csv) or a hub id."
        )
    return found


def _prompts(config: Config) -> list[str]:
    algorithm, rollout, found = config.algorithm, config.rollout, []
    if not config.data.path and trains_on_files(config.data) and (config.run.steps or config.sft.steps):
        found.append("data.path is empty; set it to a training file (.parquet .jsonl .json .csv) or a hub id.")
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
