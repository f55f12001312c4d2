"""A rank of ``check --numerics`` on which compositions are broken: of each folder another one, as BROKEN lists them."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch.distributed as dist

from megatron_rl.actor import accelerator
from megatron_rl.launch.numerics import rank
from megatron_rl.system import processes
from megatron_rl.tracking.run_folder import RunFolder


@contextmanager
def replaced(owner: Any, name: str, make: Callable[[Any], Any]) -> Iterator[None]:
    before = getattr(owner, name)
    setattr(owner, name, make(before))
    try:
        yield
    finally:
        setattr(owner, name, before)


def unsummed_norms(original: Any) -> Any:
    """Sequence parallelism: gradients of norms, of which each tensor-parallel rank has a part, stay parts."""
    return lambda *arguments, **named: None


def unsummed_replica(original: Any) -> Any:
    """Data parallelism: rank 1's share of the gradients is its own."""

    def alone(self: Any, *arguments: Any, **named: Any) -> None:
        own = [bucket.grad_data.clone() for bucket in self.buckets]
        original(self, *arguments, **named)
        for bucket, before in zip(self.buckets, own, strict=True):
            if dist.get_rank() == 1:
                bucket.grad_data.copy_(before)

    return alone


def another_weight(original: Any) -> Any:
    """Rank 1 starts with another value in one tensor."""

    def hold(self: Any, folder: Any) -> None:
        original(self, folder)
        if dist.get_rank() == 1:
            dict(self.policy.chunks[0].named_parameters())["decoder.layers.0.mlp.linear_fc2.weight"].data[0, 0] += 1.0

    return hold


def main() -> None:
    accelerator.adapt()
    import megatron.core.distributed.finalize_model_grads  # noqa: F401 (the package has a function of that name)
    from megatron.core.distributed import param_and_grad_buffer

    finalize = sys.modules["megatron.core.distributed.finalize_model_grads"]
    broken = [
        (finalize, "_allreduce_non_tensor_model_parallel_grads", unsummed_norms),
        (param_and_grad_buffer._ParamAndGradBucketGroup, "finish_grad_sync", unsummed_replica),
        (rank.Models, "hold", another_weight),
    ]
    for path, how in zip(sys.argv[1:], broken, strict=True):
        with replaced(*how):
            rank.measure(RunFolder(path), RunFolder(path).config())
    dist.destroy_process_group()


if __name__ == "__main__":
    processes.run(main)
