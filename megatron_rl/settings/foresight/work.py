"""What a step of RL has to compute: its tokens, micro-batches and model FLOPs. Imports no torch."""

from dataclasses import dataclass
from math import ceil

from megatron_rl.actor.config import ActorConfig
from megatron_rl.algorithms.published import PUBLISHED, settled
from megatron_rl.config import Config
from megatron_rl.resharding.families.architecture import Architecture


def layer_flops(arch: Architecture) -> float:
    """Model FLOPs of one token's forward pass through all matrices of the layers; of experts those that it goes to.

    Megatron's count: two for each element of a matrix.
    """
    queries, keys = arch.heads * arch.head_dim, arch.kv_heads * arch.head_dim
    mlp = 3 * arch.hidden * arch.mlp_hidden
    if arch.experts:
        mlp = 3 * arch.hidden * arch.expert_hidden * arch.experts_per_token + arch.hidden * arch.experts
    return 2.0 * arch.layers * (arch.hidden * (2 * queries + 2 * keys) + mlp)


def attention_flops(arch: Architecture, positions: float) -> float:
    """The same of attention, for one token of a sequence of so many: scores and values, half of them masked."""
    return 2.0 * arch.layers * arch.heads * arch.head_dim * positions


def head_flops(arch: Architecture) -> float:
    """The same of the output matrix, for a token that is learned from."""
    return 2.0 * arch.hidden * (1 if arch.scalar else arch.vocab)


def again(actor: ActorConfig, arch: Architecture) -> tuple[float, float]:
    """The share of the layers' forward FLOPs that a backward pass computes anew, and of attention's."""
    if actor.recompute == "none":
        return 0.0, 0.0
    if actor.recompute == "full":
        chunks = actor.pipeline_parallel * actor.virtual_pipeline
        share = min(actor.recompute_layers * chunks / arch.layers, 1.0) if actor.recompute_method == "block" else 1.0
        return share, share
    mlps = {"mlp", "moe"} & set(actor.recompute_modules)
    queries, keys = arch.heads * arch.head_dim, arch.kv_heads * arch.head_dim
    around = 2.0 * arch.layers * arch.hidden * (2 * queries + 2 * keys)
    return (1 - around / layer_flops(arch) if mlps else 0.0), float("core_attn" in actor.recompute_modules)


def row_flops(arch: Architecture, positions: int, trained: int) -> float:
    """Model FLOPs of one sequence's forward and backward pass.

    The backward pass counts twice the forward one, what is computed again nothing; the output matrix only for the
    ``trained`` positions.
    """
    layers = layer_flops(arch) + attention_flops(arch, positions)
    return 3.0 * (positions * layers + trained * head_flops(arch))


@dataclass(frozen=True)
class Workload:
    """A step's completions, in the mean."""

    rows: int  # completions
    group: int  # of one prompt
    prompt: float  # tokens
    completion: float  # tokens
    longest: int  # tokens of the longest completion
    room: int  # tokens of the longest prompt with the longest completion
    updates: int  # optimiser steps
    passes: int  # over all rows

    @property
    def length(self) -> float:
        """Tokens of a row."""
        return self.prompt + self.completion


def workload(config: Config, tokens: float | None = None, prompt: float = 0.0) -> Workload:
    """Of a configuration whose completions have ``tokens`` tokens in the mean, and prompts ``prompt``; None, or 0: half
    of the longest."""
    rollout, algorithm = config.rollout, config.algorithm
    longest = rollout.max_new_tokens
    given = longest if rollout.ignore_eos else longest / 2
    return Workload(
        rows=rollout.prompts_per_step * rollout.group_size,
        group=rollout.group_size,
        prompt=prompt or config.data.max_prompt_tokens / 2,
        completion=min(float(tokens), longest) if tokens else given,
        longest=longest,
        room=longest + config.data.max_prompt_tokens,
        updates=algorithm.minibatches * algorithm.epochs,
        passes=algorithm.epochs,
    )


def scored(config: Config) -> list[str]:
    """The roles that a step of RL has scored beside its updates; of a user's algorithm those that options tell."""
    algorithm, found = settled(config.algorithm), []
    needs = PUBLISHED[algorithm.name].needs if algorithm.name in PUBLISHED else frozenset()
    early = algorithm.minibatches > 1 or algorithm.kl_in == "reward" or "teacher" in needs
    if early and not algorithm.bypass:
        found.append("policy")
    if algorithm.uses_reference:
        found.append("reference")
    return found + [role for need, role in (("teacher", "teacher"), ("value", "critic")) if need in needs]


def scores(config: Config) -> bool:
    """Whether anything is scored without gradients in any stage: in one of pairs the reference's log-probs are."""
    return config.preference.steps > 0 or (config.run.steps > 0 and bool(scored(config)))


def most_tokens(config: Config) -> int:
    """Tokens of the largest micro-batch on a rank that any stage can come to, with everything as long as it may get."""
    actor = config.actor
    spread = actor.data_parallel * actor.context_parallel
    rollout, room = config.rollout, config.data.max_prompt_tokens + config.rollout.max_new_tokens
    stages = []  # (rows of a mini-batch, tokens of the longest, rows that go together)
    if config.run.steps:
        stages.append((rollout.prompts_per_step * rollout.group_size // config.algorithm.minibatches, room, 1))
    if config.sft.steps:
        stages.append((config.sft.batch_size, config.sft.data.max_tokens if config.sft.data.path else room, 1))
    for options in (config.preference, config.reward_model):
        if options.steps:
            stages.append((2 * options.batch_size, options.data.max_tokens, 2))
    most = 1
    for rows, longest, together in stages:
        one = -(-together * longest // actor.context_parallel)
        share = max(-(-rows * longest // spread), one)
        most = max(most, min(share, actor.micro_batch_tokens) if actor.packing else one)
    return most


def micro_batches(actor: ActorConfig, load: Workload, length: float) -> tuple[int, float]:
    """How many a rank has in one pass over all rows of so many tokens each, and the tokens of each on a rank."""
    share = load.rows * length / (actor.data_parallel * actor.context_parallel)
    passes = max(load.updates // load.passes, 1)  # mini-batches, which share no micro-batch
    size = min(actor.micro_batch_tokens, share / passes) if actor.packing else length / actor.context_parallel
    count = passes * max(ceil(share / passes / size - 1e-9), 1)
    if actor.virtual_pipeline > 1:
        count = -(-count // actor.pipeline_parallel) * actor.pipeline_parallel
    return count, share / count
