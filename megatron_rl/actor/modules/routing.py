"""Routing replay: the experts that the rollout engine chose for every token, taken by the actor's routers too.

A router near a tie may choose other experts in the actor than in the engine, whose kernels round differently; the
log-probs then differ by far more than rounding. With replay the actor's routers take the engine's choice and compute
their own probabilities for it, which gradients flow through (R3, Ma et al. 2025, arXiv:2510.11370).

The choice travels with the packing parameters, which Megatron hands to every layer, also when it computes a layer
again for the backward pass: so each layer always sees the routing of the micro-batch that it works on, however a
pipeline interleaves them. Megatron's own RouterReplay fills the same place in a router, but keeps one choice per
router and a queue whose mode must be switched between forward and backward, and has none for padding.
"""

from typing import Any

import torch

from megatron_rl.actor.micro_batch import PackedSequences

OWN_CHOICE = -1  # in place of an expert's number: the router decides


class ReplayedChoice:
    """What a router asks for its top-k, as Megatron's RouterReplay: the given experts where there are any."""

    def __init__(self) -> None:
        self.experts: torch.Tensor | None = None  # int64 [tokens, top_k], set before every forward pass of the layer

    def get_replay_topk(
        self, scores: torch.Tensor, topk: int, num_groups: Any = None, group_topk: Any = None, compute_topk: Any = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """``scores`` [tokens, experts] -> the chosen ones' scores and numbers, [tokens, top_k] each."""
        own: tuple[torch.Tensor, torch.Tensor] = compute_topk(scores, topk, num_groups, group_topk)
        if self.experts is None:
            return own
        chosen = torch.where(self.experts == OWN_CHOICE, own[1], self.experts)
        return scores.gather(1, chosen), chosen


def replay_routing(chunk: Any) -> None:
    """Let the routers of a model chunk follow ``PackedSequences.experts``; without it they choose for themselves."""
    for layer in chunk.decoder.layers:
        layer.mlp.router.router_replay = ReplayedChoice()
        layer.register_forward_pre_hook(_give, with_kwargs=True)


def _give(layer: Any, args: Any, kwargs: dict[str, Any]) -> None:
    """Hand a layer's router its part of the micro-batch's routing: its own columns, its rank's rows."""
    router, packed = layer.mlp.router, kwargs["packed_seq_params"]
    assert isinstance(packed, PackedSequences)
    experts = packed.experts
    if experts is not None:
        experts = experts[:, (layer.layer_number - 1) * router.topk : layer.layer_number * router.topk]
        if layer.config.sequence_parallel:
            experts = experts.chunk(router.tp_group.size())[router.tp_group.rank()]
        experts = experts.to(router.weight.device, torch.int64)
    router.router_replay.experts = experts
