"""How many numbers of a model one rank holds, counted from the sizes alone: in no time for any number of ranks.

The same as the sum over ``resharding.layouts.megatron.megatron_layout``, which draws up every tensor.
"""

from collections import Counter
from dataclasses import dataclass
from functools import cache
from typing import Any

from megatron_rl.actor.config import ActorConfig
from megatron_rl.actor.tuning.names import frozen_tensors
from megatron_rl.resharding.families import canonical_tensors, with_scalar_head
from megatron_rl.resharding.families.architecture import Architecture
from megatron_rl.resharding.layout import ParallelSizes
from megatron_rl.resharding.layouts.megatron import layer_places

_BEFORE, _AFTER = -1, -2  # the layers: the embedding; the final norm and the head


@dataclass(frozen=True)
class Held:
    """Counts of one rank's weights."""

    dense: int  # replicated over data and context ranks
    experts: int  # replicated over the ranks of a stage that hold the same experts

    @property
    def all(self) -> int:
        return self.dense + self.experts


@cache
def stage_layers(layers: int, sizes: ParallelSizes) -> tuple[int, ...]:
    """Decoder layers of each pipeline stage."""
    counts = Counter(stage for stage, _, _ in layer_places(layers, sizes))
    return tuple(counts[stage] for stage in range(sizes.pipeline))


def held(arch: Architecture, sizes: ParallelSizes, stage: int) -> Held:
    """What each rank of a pipeline stage holds."""
    first, last, embedding = stage == 0, stage == sizes.pipeline - 1, matrix(arch, sizes.tensor)
    inside = layered(arch, sizes, stage)
    dense = inside.dense + (embedding if first else 0)
    if last:
        dense += arch.hidden  # the final norm
        dense += arch.hidden if arch.scalar else 0 if arch.tied and first else embedding
    return Held(dense, inside.experts)


def layered(arch: Architecture, sizes: ParallelSizes, stage: int) -> Held:
    """What of it is in the layers."""
    layers, experts = stage_layers(arch.layers, sizes)[stage], 0
    if arch.experts:
        each = 3 * arch.hidden * arch.expert_hidden // sizes.expert_tensor
        experts = layers * max(arch.experts // sizes.expert, 1) * each
    return Held(layers * _layer(arch, sizes.tensor), experts)


def changed(actor: ActorConfig, arch: Architecture, stage: int) -> Held:
    """Of what each rank of a pipeline stage holds, what is trained: all, what is not frozen, or adapters, roughly."""
    rank, sizes = actor.lora.rank, actor.sizes()
    own = held(arch, sizes, stage)
    if not rank:
        return unfrozen(arch, sizes, stage, tuple(actor.freeze)) if actor.freeze else own
    queries, keys = arch.heads * arch.head_dim, arch.kv_heads * arch.head_dim
    shapes = [(arch.hidden, queries + 2 * keys), (queries, arch.hidden)]
    if not arch.experts:
        shapes += [(arch.hidden, 2 * arch.mlp_hidden), (arch.mlp_hidden, arch.hidden)]
    adapters = arch.layers * sum(rank * (a + b) for a, b in shapes)
    share = adapters / whole(arch)
    return Held(int(own.dense * share), int(own.experts * share))


def changed_share(actor: ActorConfig, arch: Architecture) -> float:
    """The same over what is held, of all stages."""
    stages = range(actor.pipeline_parallel)
    return sum(changed(actor, arch, i).all for i in stages) / sum(held(arch, actor.sizes(), i).all for i in stages)


def unfrozen(arch: Architecture, sizes: ParallelSizes, stage: int, freeze: tuple[str, ...]) -> Held:
    """Of what each rank of a pipeline stage holds, what these patterns of ``actor.freeze`` leave to train.

    A share of the rank's numbers: norms, which every tensor-parallel rank holds, count as if they were split as well.
    """
    own, counts = held(arch, sizes, stage), _counts(arch, freeze)
    places = [i for i, (at, _, _) in enumerate(layer_places(arch.layers, sizes)) if at == stage]
    places += [_BEFORE] * (stage == 0) + [_AFTER] * (stage == sizes.pipeline - 1)
    found = [sum(counts[place][i] for place in places) for i in range(4)]
    dense, dense_left, experts, experts_left = found
    return Held(own.dense * dense_left // dense, own.experts * experts_left // max(experts, 1))


@cache
def _counts(arch: Architecture, freeze: tuple[str, ...]) -> dict[int, tuple[int, int, int, int]]:
    """Of each layer, and of what stands before and after them: numbers, those of them that are trained, and the same
    of experts."""
    found = {place: [0, 0, 0, 0] for place in (_BEFORE, *range(arch.layers), _AFTER)}
    config = _config_json(arch)
    frozen = frozen_tensors(config, freeze)
    for name, spec in canonical_tensors(config).items():
        words = name.split(".")
        layered = words[:2] == ["model", "layers"]
        place = int(words[2]) if layered else _BEFORE if words[1] == "embed_tokens" else _AFTER
        at = 2 if "experts" in words else 0
        found[place][at] += spec.elements
        found[place][at + 1] += 0 if name in frozen else spec.elements
    return {place: (a, b, c, d) for place, (a, b, c, d) in found.items()}


def _config_json(arch: Architecture) -> dict[str, Any]:
    """A config.json of these sizes, of which the tensors' names and shapes follow."""
    sizes: dict[str, Any] = {
        "model_type": arch.family,
        "hidden_size": arch.hidden,
        "intermediate_size": arch.mlp_hidden,
        "num_hidden_layers": arch.layers,
        "num_attention_heads": arch.heads,
        "num_key_value_heads": arch.kv_heads,
        "head_dim": arch.head_dim,
        "vocab_size": arch.vocab,
        "tie_word_embeddings": arch.tied,
    }
    if arch.experts:
        sizes |= {"num_experts": arch.experts, "moe_intermediate_size": arch.expert_hidden}
    return with_scalar_head(sizes) if arch.scalar else sizes


def check_buckets(config: ActorConfig, arch: Architecture) -> list[str]:
    """Whether gradients that are to be summed while layers compute are all in one bucket, whose sum waits for them."""
    size, sizes = config.megatron.get("bucket_size"), config.sizes()
    if not (isinstance(size, int) and config.megatron.get("overlap_grad_reduce")) or config.lora.rank:
        return []
    most = max(held(arch, sizes, stage).dense for stage in range(sizes.pipeline))
    if size < most:
        return []
    return [
        f"actor.megatron.bucket_size={size:,} is not less than the {most:,} weights of a rank, so that all "
        "gradients are in one bucket and overlap_grad_reduce overlaps nothing: lower it, or leave it out."
    ]


def whole(arch: Architecture) -> int:
    """Weights of the model."""
    return held(arch, ParallelSizes(), 0).all


def active(arch: Architecture) -> int:
    """Weights that one token meets in the layers, and the output matrix."""
    experts = arch.layers * 3 * arch.hidden * arch.expert_hidden * arch.experts_per_token
    return arch.layers * _layer(arch, 1) + experts + arch.hidden * (1 if arch.scalar else arch.vocab)


def matrix(arch: Architecture, tensor: int) -> int:
    """A tensor-parallel rank's rows of the embedding or of the output matrix."""
    return arch.padded_vocab(tensor) // tensor * arch.hidden


def _layer(arch: Architecture, tensor: int) -> int:
    """All of a layer but its experts."""
    features = (arch.heads + 2 * arch.kv_heads) * arch.head_dim
    count = arch.hidden * features // tensor + arch.heads * arch.head_dim * arch.hidden // tensor
    count += 2 * arch.hidden + (2 * arch.head_dim if arch.qk_norm else 0)
    count += features // tensor if arch.qkv_bias else 0
    return count + (arch.experts * arch.hidden if arch.experts else 3 * arch.hidden * arch.mlp_hidden // tensor)
