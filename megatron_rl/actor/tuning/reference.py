"""The reference policy: weights that forward passes can take the place of the policy's for a while."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch

from megatron_rl.actor.megatron.quantised import assign, value


class Reference:
    """This rank's parameters as they were, on the host, by local name; those that are never trained are left out.

    One that ``moves`` is float32, whatever the model's dtype: the steps of a slow average are too small for bfloat16.
    """

    def __init__(
        self, parameters: Mapping[str, torch.nn.Parameter], kept: Mapping[str, torch.Tensor], moves: bool
    ) -> None:
        """``kept``: tensors on the host that may hold the same numbers, which are then not copied."""
        self.parameters, self.moves = dict(parameters), moves
        self.held = {name: self._copy(name, kept) for name in parameters}

    def _copy(self, name: str, kept: Mapping[str, torch.Tensor]) -> torch.Tensor:
        live = value(self.parameters[name])
        if self.moves:
            return live.to("cpu", torch.float32, copy=True)
        if name in kept and torch.equal(kept[name], live.cpu()):
            return kept[name]
        return live.to("cpu", copy=True)

    def let_move(self) -> None:
        """From now on it is one that moves."""
        if not self.moves:
            self.moves = True
            self.held = {name: held.to(torch.float32, copy=True) for name, held in self.held.items()}

    def follow(self, decay: float) -> None:
        """Move towards the policy: decay * reference + (1 - decay) * policy. 0 makes it the policy."""
        for name, held in self.held.items():
            held.mul_(decay).add_(value(self.parameters[name]).to("cpu", torch.float32), alpha=1 - decay)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Inside, the model computes with these weights."""
        live = {name: value(p) for name, p in self.parameters.items()}
        for name, p in self.parameters.items():
            assign(p, self.held[name].to(p.device, p.dtype))
        try:
            yield
        finally:
            for name, p in self.parameters.items():
                assign(p, live[name])
