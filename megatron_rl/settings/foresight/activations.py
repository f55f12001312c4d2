"""What a layer keeps of a token from its forward to its backward pass, in numbers of the model's dtype.

After Korthikanti et al. 2022 (arXiv 2205.05198, section 4), with this actor's layers in place of GPT-3's: grouped
queries, SwiGLU, norms of queries and keys, packed sequences, no dropout, attention that keeps no scores. The terms were
read off what autograd saves (tests/settings/foresight), on a CPU; those of Transformer Engine's layers off their code,
and checked against measured peaks (docs/planning.md).
"""

from collections.abc import Sequence
from dataclasses import dataclass

from megatron_rl.resharding.families.architecture import Architecture
from megatron_rl.resharding.layout import ParallelSizes

RAGGED = 1.12  # completions of different lengths lie side by side in attention, padded to the longest: at most 4/3


@dataclass(frozen=True)
class Kernels:
    """Whose layers they are, and so what they keep."""

    fused: bool  # Transformer Engine's norms, rotary embedding and activation
    repeated: bool  # keys and values are repeated for every query head: torch's attention on a CPU
    copied: bool  # torch's attention takes rows out of the packing, and puts its output back
    reach: float = 1.0  # keys that a row has for each of its queries: more where it goes on from a shared prompt
    attention: bool = False  # Transformer Engine's, which copies values: nothing is a part of the product's result


def kept(
    arch: Architecture,
    sizes: ParallelSizes,
    kernels: Kernels,
    recompute: str,
    sequence: bool,
    modules: Sequence[str] = ("core_attn",),
    fp8: float = 0.0,
) -> float:
    """Numbers that one layer keeps of each token that the rank computes; ``sequence``: sequence parallelism.

    ``modules``: of a layer, which ``selective`` computes anew. ``fp8``: the share of layers whose products keep their
    inputs in FP8, half a number each.
    """
    cut = sizes.tensor if sequence else 1
    if recompute == "full":
        return arch.hidden / cut
    again = modules if recompute == "selective" else ()
    norms = 4 * arch.hidden / cut
    if "layernorm" in again and arch.experts:  # of a dense layer Transformer Engine has the norms inside its products
        norms -= arch.hidden / cut
    mlp, inputs = 0.0, arch.hidden / cut
    if not {"mlp", "moe"} & set(again):
        mlp = _mlp(arch, sizes, cut, "moe_act" in again)
        inputs += _mlp_inputs(arch, sizes, cut)
    if not kernels.attention:  # torch's keeps its output beside what the projection keeps of it (measured)
        inputs -= 2 * arch.heads * arch.head_dim / sizes.tensor
    return norms + _attention(arch, sizes, kernels, "core_attn" in again) + mlp - fp8 * inputs / 2


def _attention(arch: Architecture, sizes: ParallelSizes, kernels: Kernels, again: bool) -> float:
    """From the product that makes queries, keys and values to the output projection's input."""
    queries, keys = arch.heads * arch.head_dim / sizes.tensor, arch.kv_heads * arch.head_dim / sizes.tensor
    count = 0.0
    if arch.qk_norm:
        count += queries  # as the norm got them; keys are parts of the product's result
    if arch.qk_norm or again or not kernels.repeated:
        count += queries + 2 * keys  # the product's result, of which values are a part
    if kernels.attention:  # of the product's result the values alone; computing it again is taken to save nothing
        return count - queries - keys + 2 * queries + keys * sizes.context
    if again:
        return count + queries + keys + queries  # rotated queries and keys, the output
    spread = 2 * queries if kernels.repeated else keys  # of the values the product's result is enough
    spread *= sizes.context  # keys and values are those of all its ranks
    if not kernels.copied:
        return count + 2 * queries + spread  # queries, keys, values, output
    rows = RAGGED * (2 * queries + (2 * (queries if kernels.repeated else keys) * sizes.context) * kernels.reach)
    # A row that needs no copy, a prompt or padding, keeps all that it is a part of.
    return count + queries + spread + rows + queries


def _mlp(arch: Architecture, sizes: ParallelSizes, cut: int, again: bool) -> float:
    if not arch.experts:
        return 3 * arch.mlp_hidden / sizes.tensor
    # In the mean a rank gets as many routed tokens as it has sent, and those of its expert-tensor group.
    routed = arch.experts_per_token * sizes.expert_tensor / cut
    inner = 3 if again else 4  # the activation's result is made anew
    return routed * (arch.hidden + inner * arch.expert_hidden / sizes.expert_tensor) + 3 * arch.experts / cut


def _mlp_inputs(arch: Architecture, sizes: ParallelSizes, cut: int) -> float:
    """Of what an MLP keeps, and the norm before it, the inputs of products."""
    if not arch.experts:
        return arch.hidden / cut + arch.mlp_hidden / sizes.tensor
    return arch.experts_per_token * sizes.expert_tensor / cut * (arch.hidden + arch.expert_hidden / sizes.expert_tensor)


def passing(arch: Architecture, sizes: ParallelSizes, cut: int) -> float:
    """Numbers of a token that exist for a moment in a layer's backward pass: the MLP's gradients."""
    if arch.experts:
        return 2 * arch.experts_per_token * sizes.expert_tensor * arch.hidden / cut + 2 * arch.hidden
    return 5 * arch.mlp_hidden / sizes.tensor + 2 * arch.hidden
