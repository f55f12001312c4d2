"""What a Hugging Face config.json says, in one typed object. Imports no torch but for what it computes."""

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from megatron_rl.errors import InputError
from megatron_rl.resharding.families import FAMILIES, family
from megatron_rl.resharding.families.rope import Rope, read_rope
from megatron_rl.resharding.families.table import completed, dimensions, scalar_head, tied, value

if TYPE_CHECKING:
    import torch

TRAINED = {"llama", "qwen2", "qwen3", "qwen3_moe"}  # resharding knows more families than the actor computes
QK_NORM = {"qwen3", "qwen3_moe"}
QKV_BIAS = {"qwen2"}


@dataclass(frozen=True)
class Architecture:
    """Sizes of a decoder of the Qwen2/2.5, Qwen3, Qwen3-MoE or Llama 3.x family."""

    family: str
    layers: int
    hidden: int
    mlp_hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab: int
    max_positions: int
    norm_eps: float
    tied: bool
    qk_norm: bool
    qkv_bias: bool
    rope: Rope
    scalar: bool = False  # one number a token instead of the vocabulary's logits
    experts: int = 0
    experts_per_token: int = 0
    expert_hidden: int = 0
    norm_topk: bool = True

    def padded_vocab(self, tensor_parallel: int) -> int:
        """Rows of the embedding."""
        return padded_vocabulary(self.vocab, tensor_parallel)

    def inverse_frequencies(self) -> "torch.Tensor":
        """float32 [head_dim / 2] rotary frequencies, equal to transformers' (and so to an engine's) in every bit."""
        return self.rope.inverse_frequencies(self.head_dim)


def padded_vocabulary(size: int, tensor_parallel: int) -> int:
    """Rows of Megatron's embedding: the smallest multiple of the tensor-parallel size that holds ``size``."""
    return -(-size // tensor_parallel) * tensor_parallel


def read_architecture(config: Mapping[str, Any]) -> Architecture:
    """From the content of config.json, in transformers 4's or 5's spelling, read as transformers reads it.

    Raises InputError for a family or an option that the actor does not compute.
    """
    name = config.get("model_type")
    if not isinstance(name, str) or name not in TRAINED:
        known = f" {name} is known to megatron-rl plan and convert only." if str(name) in FAMILIES else ""
        raise InputError(
            f"config.json has model_type={name!r}, which the actor does not train; it trains "
            f"{', '.join(sorted(TRAINED))}.{known}"
        )
    found = family(config)
    sizes = dimensions(found, config)
    config = completed(found, config)
    _check_computed(name, config, sizes["layers"])
    moe: dict[str, Any] = {}
    if found.experts:
        moe = dict(
            experts=sizes["experts"],
            experts_per_token=value(config, "num_experts_per_tok"),
            expert_hidden=sizes["expert_mlp"],
            norm_topk=config["norm_topk_prob"],
        )
    return Architecture(
        family=name,
        layers=sizes["layers"],
        hidden=sizes["hidden"],
        mlp_hidden=value(config, "intermediate_size"),
        heads=sizes["heads"],
        kv_heads=sizes["groups"],
        head_dim=sizes["head_dim"],
        vocab=sizes["vocabulary"],
        max_positions=value(config, "max_position_embeddings"),
        norm_eps=config["rms_norm_eps"],
        tied=tied(config),
        qk_norm=name in QK_NORM,
        qkv_bias=name in QKV_BIAS,
        rope=read_rope(config),
        scalar=scalar_head(config),
        **moe,
    )


def _check_computed(name: str, config: Mapping[str, Any], layers: int) -> None:
    """Raises InputError for an option, of a completed config.json, that the actor does not compute."""
    for key, only in (("hidden_act", "silu"), ("use_sliding_window", False), ("mlp_bias", False)):
        if config.get(key, only) != only:
            raise InputError(f"config.json has {key}={config[key]!r}; only {only!r} is supported.")
    if not isinstance(config["rms_norm_eps"], float) or not 0 < config["rms_norm_eps"] < math.inf:
        raise InputError(f"config.json has rms_norm_eps={config['rms_norm_eps']!r}; a number such as 1e-06 is needed.")
    if config.get("attention_bias", name in QKV_BIAS) != (name in QKV_BIAS):
        raise InputError(
            f"config.json has attention_bias={config['attention_bias']!r}, which {name} is not built with."
        )
    if config.get("mlp_only_layers") or config.get("decoder_sparse_step", 1) != 1:
        raise InputError(
            "config.json mixes dense and expert layers (mlp_only_layers, decoder_sparse_step): unsupported."
        )
    kinds = config.get("layer_types")
    if kinds is not None and kinds != ["full_attention"] * layers:
        raise InputError(f"config.json has layer_types={kinds!r}; only full_attention, {layers} times, is supported.")


def differences(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> str:
    """In what two config.json compute differently, as "hidden 64, not 128"; empty when in nothing.

    How long a text may be is left out. Raises InputError for a config that the actor does not compute.
    """
    one, other = read_architecture(ours), read_architecture(theirs)
    fields = [f.name for f in dataclasses.fields(one) if f.name not in ("max_positions", "rope")]
    found = [
        f"{name} {getattr(other, name)}, not {getattr(one, name)}"
        for name in fields
        if getattr(one, name) != getattr(other, name)
    ]
    if one.head_dim == other.head_dim and bool((one.inverse_frequencies() != other.inverse_frequencies()).any()):
        found.append("another rotary embedding")
    return ", ".join(found)
