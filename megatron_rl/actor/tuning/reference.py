"""The reference policy: weights that forward passes can take the place of the policy's for a while."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch

from megatron_rl.actor.megatron.asleep import room_for
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
        known = {} if moves else kept
        same = {n for n, p in parameters.items() if n in known and torch.equal(known[n], value(p).cpu())}
        copies = _copied({n: p for n, p in parameters.items() if n not in same}, torch.float32 if moves else None)
        self.held = {name: known[name] if name in same else copies[name] for name in parameters}

    def let_move(self) -> None:
        """From now on it is one that moves."""
        if not self.moves:
            self.moves = True
            self.held = _copied(self.held, torch.float32)

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


def _copied(tensors: Mapping[str, torch.Tensor], dtype: torch.dtype | None) -> dict[str, torch.Tensor]:
    """On the host, in ``dtype`` (None: their own), where a GPU reads them by itself."""
    places = room_for(list(tensors.values()), dtype)
    return {name: room.copy_(value(t)) for (name, t), room in zip(tensors.items(), places, strict=True)}
