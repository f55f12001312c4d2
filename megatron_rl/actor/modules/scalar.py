"""A head that gives one number a position: values of states, or rewards of whole sequences."""

from typing import Any

import torch
from megatron.core.tensor_parallel.mappings import gather_from_sequence_parallel_region

from megatron_rl.actor import accelerator


class ScalarHead(torch.nn.Module):
    """hidden -> 1, whole on every tensor-parallel rank, which all compute the same numbers with it.

    Final hidden states are the same on all of these ranks, and so is the gradient of the loss, which each has whole:
    nothing is summed over them. Under sequence parallelism a rank has its own positions only: their numbers are
    exchanged (not the hidden states), and the weight's gradient is a part, which Megatron adds up as that of norms.
    """

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.split = config.sequence_parallel
        zeros = torch.zeros(1, config.hidden_size, dtype=config.params_dtype, device=accelerator.device())
        self.weight = torch.nn.Parameter(zeros)
        self.weight.sequence_parallel = config.sequence_parallel  # type: ignore[attr-defined]

    def forward(self, hidden: torch.Tensor, group: Any) -> torch.Tensor:
        """hidden [t, 1, h], of this rank -> float32 [t], of all positions."""
        found = hidden.squeeze(1).float() @ self.weight.float().squeeze(0)
        if self.split:
            found = gather_from_sequence_parallel_region(found, tensor_parallel_output_grad=False, group=group)
        return found
