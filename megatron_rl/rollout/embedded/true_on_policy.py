"""The engine's half of ``rollout.embedded.true_on_policy``: transformers' layers with sums in float64, rounded once.

They round where the actor's do (``megatron_rl.actor.modules.true_on_policy`` says why): what a linear layer, a norm and
the activation return. Rotated queries and keys, the cache, what attention returns and the logits stay float64.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from transformers import PreTrainedModel

from megatron_rl.errors import InputError


def _product(layer: torch.nn.Linear, x: torch.Tensor) -> torch.Tensor:
    product = x.double() @ layer.weight.double().t()
    return product if layer.bias is None else product + layer.bias


def _linear(layer: torch.nn.Linear, x: torch.Tensor) -> torch.Tensor:
    return _product(layer, x).to(layer.weight.dtype)


def _norm(layer: Any, x: torch.Tensor) -> torch.Tensor:
    wide = x.double()
    scale = (wide.square().mean(-1, keepdim=True) + layer.variance_epsilon).rsqrt_()
    return layer.weight * (wide * scale).to(x.dtype)


def _angles(layer: Any, x: torch.Tensor, position_ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """float64 cosines and sines [batch, tokens, head_dim] of angles that are float32, as they always are."""
    half = position_ids[:, :, None].float() * layer.inv_freq.float()
    angles = torch.cat([half, half], -1).double()
    return angles.cos() * layer.attention_scaling, angles.sin() * layer.attention_scaling


def _silu(layer: torch.nn.Module, x: torch.Tensor) -> torch.Tensor:
    return F.silu(x.double()).to(x.dtype)


_KINDS: dict[str, Callable[..., Any]] = {
    "Linear": _linear,
    "RMSNorm": _norm,
    "RotaryEmbedding": _angles,
    "SiLUActivation": _silu,
}


def replace_layers(model: PreTrainedModel) -> None:
    """Have this model's layers compute so. Raises InputError for a layer of a kind that is not known here."""
    for name, layer in model.named_modules():
        kind = next((k for k in _KINDS if type(layer).__name__.endswith(k)), None)
        if kind is not None:
            layer.forward = partial(_KINDS[kind], layer)
        elif next(layer.children(), None) is None and not isinstance(layer, torch.nn.Embedding):
            raise InputError(
                f"rollout.embedded.true_on_policy=true cannot compute layer {name}, a {type(layer).__name__}."
            )
    head = model.get_output_embeddings()
    head.forward = partial(_product, head)
