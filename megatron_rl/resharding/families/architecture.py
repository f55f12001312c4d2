"""What a Hugging Face config.json says, in one typed object. Imports no torch but for what it computes."""

import dataclasses
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from megatron_rl.errors import InputError

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
    rope_theta: float
    rope_scaling: dict[str, Any]
    experts: int = 0
    experts_per_token: int = 0
    expert_hidden: int = 0
    norm_topk: bool = True

    def padded_vocab(self, tensor_parallel: int) -> int:
        """Rows of the embedding: the smallest multiple of the tensor-parallel size."""
        return -(-self.vocab // tensor_parallel) * tensor_parallel

    def inverse_frequencies(self) -> "torch.Tensor":
        """float32 [head_dim / 2] rotary frequencies, equal to transformers' (and so to an engine's) in every bit.

        Their last bit turns a query at position 10,000 by up to 0.0006 rad, hence torch: numpy's powers differ.
        Llama 3.1's scaling: modeling_rope_utils of transformers.
        """
        import torch

        exponent = torch.arange(0, self.head_dim, 2, dtype=torch.int64).float() / self.head_dim
        frequencies = 1.0 / self.rope_theta**exponent
        if self.rope_scaling.get("rope_type", "default") != "llama3":
            return frequencies
        factor, low, high = (float(self.rope_scaling[k]) for k in ("factor", "low_freq_factor", "high_freq_factor"))
        length = self.rope_scaling["original_max_position_embeddings"]
        wavelength = 2 * math.pi / frequencies
        scaled = torch.where(wavelength > length / low, frequencies / factor, frequencies)
        smooth = (length / wavelength - low) / (high - low)
        blended = (1 - smooth) * scaled / factor + smooth * scaled
        return torch.where((wavelength >= length / high) & (wavelength <= length / low), blended, scaled)


def read_architecture(config: dict[str, Any]) -> Architecture:
    """From the content of config.json, in transformers 4's or 5's spelling.

    Raises InputError for a family or an option that the actor does not compute.
    """
    from megatron_rl.resharding.families import FAMILIES, family
    from megatron_rl.resharding.families.table import dimensions, value

    name = config.get("model_type")
    if not isinstance(name, str) or name not in TRAINED:
        known = f" {name} is known to megatron-rl plan and convert only." if str(name) in FAMILIES else ""
        raise InputError(
            f"config.json has model_type={name!r}, which the actor does not train; it trains "
            f"{', '.join(sorted(TRAINED))}.{known}"
        )
    dimensions(family(config), config)  # an option or a size that the family's table cannot have is an error
    rope = dict(config.get("rope_parameters") or config.get("rope_scaling") or {})
    theta = rope.pop("rope_theta", None) or config.get("rope_theta", 10000.0)
    rope["rope_type"] = rope.pop("type", None) or rope.get("rope_type", "default")
    if rope["rope_type"] not in ("default", "llama3"):
        raise InputError(f"config.json asks for rope_type={rope['rope_type']!r}; default and llama3 are supported.")
    for key, only in (("hidden_act", "silu"), ("use_sliding_window", False), ("mlp_bias", False)):
        if config.get(key, only) != only:
            raise InputError(f"config.json has {key}={config[key]!r}; only {only!r} is supported.")
    if config.get("attention_bias", name in QKV_BIAS) != (name in QKV_BIAS):
        raise InputError(
            f"config.json has attention_bias={config['attention_bias']!r}, which {name} is not built with."
        )
    if config.get("mlp_only_layers") or config.get("decoder_sparse_step", 1) != 1:
        raise InputError(
            "config.json mixes dense and expert layers (mlp_only_layers, decoder_sparse_step): unsupported."
        )
    heads = config["num_attention_heads"]
    moe: dict[str, Any] = {}
    if experts := config.get("num_experts") or config.get("num_local_experts"):  # transformers 4's name, 5's name
        moe = dict(
            experts=experts,
            experts_per_token=config["num_experts_per_tok"],
            expert_hidden=config["moe_intermediate_size"],
            norm_topk=config.get("norm_topk_prob", False),
        )
    return Architecture(
        family=name,
        layers=config["num_hidden_layers"],
        hidden=config["hidden_size"],
        mlp_hidden=config["intermediate_size"],
        heads=heads,
        kv_heads=config.get("num_key_value_heads") or heads,
        head_dim=config.get("head_dim") or config["hidden_size"] // heads,
        vocab=config["vocab_size"],
        max_positions=value(config, "max_position_embeddings", default=2048),
        norm_eps=config.get("rms_norm_eps", 1e-6),
        tied=config.get("tie_word_embeddings", False),
        qk_norm=name in QK_NORM,
        qkv_bias=name in QKV_BIAS,
        rope_theta=float(theta),
        rope_scaling=rope,
        **moe,
    )


def differences(ours: dict[str, Any], theirs: dict[str, Any]) -> str:
    """In what two config.json compute differently, as "hidden 64, not 128"; empty when in nothing.

    How long a text may be is left out. Raises InputError for a config that the actor does not compute.
    """
    one, other = read_architecture(ours), read_architecture(theirs)
    fields = [f.name for f in dataclasses.fields(one) if f.name not in ("max_positions", "rope_theta", "rope_scaling")]
    found = [
        f"{name} {getattr(other, name)}, not {getattr(one, name)}"
        for name in fields
        if getattr(one, name) != getattr(other, name)
    ]
    if one.head_dim == other.head_dim and bool((one.inverse_frequencies() != other.inverse_frequencies()).any()):
        found.append("another rotary embedding")
    return ", ".join(found)
