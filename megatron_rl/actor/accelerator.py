"""Runs Megatron-Core on a machine without a GPU: the one place that adapts it to CPU and gloo.

Megatron-Core (0.16 and 0.19) names CUDA in about sixty places: devices of small tensors, streams and events, the
random state, type names. None of them is numerics. ``adapt()`` gives each its CPU meaning, in this process
only and only when there is no GPU; on CUDA it binds one name that Megatron leaves out. Call it before Megatron
modules are used, and again after importing further ones.
"""

import contextlib
import gc
import os
import sys
from types import ModuleType
from typing import Any

# Megatron compiles small fusions at import; without a GPU that costs minutes and gains nothing.
if not os.environ.get("CUDA_VISIBLE_DEVICES") and not os.path.exists("/dev/nvidiactl"):
    os.environ.setdefault("TORCHDYNAMO_DISABLE", "1")

import torch

from megatron_rl.actor.modules import onednn


def on_gpu() -> bool:
    """True when this process computes on CUDA."""
    return torch.cuda.is_available()


def device() -> torch.device:
    """Where this rank's tensors live."""
    return torch.device("cuda", torch.cuda.current_device()) if on_gpu() else torch.device("cpu")


def synchronize() -> None:
    """Wait for everything that this process has begun on its GPU."""
    if on_gpu():
        torch.cuda.synchronize()


def settle() -> None:
    """Wait until what this thread's stream has begun is done, by an event: other streams of the GPU go on."""
    if on_gpu():
        done = torch.cuda.Event()
        done.record()
        done.synchronize()


def give_back_memory() -> None:
    """Return what torch keeps of this process's GPU without using it: an engine that shares the GPU needs it."""
    if on_gpu():
        gc.collect()
        torch.cuda.empty_cache()


def backend() -> str:
    """The torch.distributed backend for this device."""
    return "nccl" if on_gpu() else "gloo"


class _NullStream(contextlib.nullcontext):
    """Stands for CUDA streams and events: everything on a CPU is already in order."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__()

    def _nothing(self, *args: Any, **kwargs: Any) -> None:
        return None

    wait_stream = wait_event = synchronize = record = wait = _nothing

    def record_event(self, *args: Any) -> "_NullStream":
        return self

    def elapsed_time(self, *args: Any) -> float:
        return 0.0


class _TorchFacade(ModuleType):
    """``torch`` as Megatron's modules see it: factories map device="cuda" to the CPU.

    Only those modules get it. A global TorchFunctionMode would slow every operation of the process.
    """

    def __getattr__(self, name: str) -> Any:
        return getattr(torch, name)


def _on_cpu(factory: Any) -> Any:
    def make(*args: Any, **kwargs: Any) -> Any:
        if "cuda" in str(kwargs.get("device", "")):
            kwargs["device"] = "cpu"
        kwargs.pop("pin_memory", None)
        return factory(*args, **kwargs)

    return make


def _facade() -> _TorchFacade:
    facade = _TorchFacade("torch")
    for name in ("tensor", "zeros", "ones", "empty", "full", "arange"):
        setattr(facade, name, _on_cpu(getattr(torch, name)))
    return facade


_FACADE = _facade()


def _adapt_torch() -> None:
    cuda: Any = torch.cuda
    cuda.current_device = lambda: torch.device("cpu")
    for name in ("synchronize", "set_device", "empty_cache"):
        setattr(cuda, name, lambda *args, **kwargs: None)
    for name in ("current_stream", "default_stream", "stream"):
        setattr(cuda, name, _NullStream)
    cuda.Stream = cuda.Event = _NullStream  # classes: annotations name them
    cuda.is_current_stream_capturing = lambda: False
    cuda.manual_seed = torch.manual_seed
    cuda.get_rng_state = lambda device=None: torch.get_rng_state()
    cuda.set_rng_state = lambda state, device=None: torch.set_rng_state(state)

    tensor: Any = torch.Tensor
    tensor.cuda = lambda self, *args, **kwargs: self
    type_of = tensor.type

    def cuda_type_name(self: torch.Tensor, dtype: Any = None, **kwargs: Any) -> Any:
        # Megatron's optimiser compares type names with "torch.cuda.…" to tell precisions apart
        return type_of(self).replace("torch.", "torch.cuda.", 1) if dtype is None else type_of(self, dtype, **kwargs)

    tensor.type = cuda_type_name


def adapt() -> None:
    """Give Megatron's CUDA call sites their CPU meaning; idempotent, and on CUDA next to nothing."""
    from megatron.core.transformer.moe import moe_utils

    if not on_gpu() or not hasattr(moe_utils, "te_general_gemm"):
        moe: Any = moe_utils
        moe.te_general_gemm = None  # left unbound where Transformer Engine is missing; every router asks for it
    if on_gpu():
        return
    import megatron.core.optimizer
    import megatron.core.pipeline_parallel.schedules  # noqa: F401 (so that the loop below finds it)
    from megatron.core.tensor_parallel import mappings
    from megatron.core.tensor_parallel import random as megatron_random
    from megatron.core.transformer.moe import token_dispatcher

    if torch.cuda.Stream is not _NullStream:
        onednn.use_for_products()
        _adapt_torch()
        rng: Any = megatron_random
        rng._get_cuda_rng_state = lambda *args, **kwargs: torch.get_rng_state()
        rng._set_cuda_rng_state = lambda state, *args, **kwargs: torch.set_rng_state(state)
        dispatcher: Any = token_dispatcher
        dispatcher.maybe_move_tensor_to_cpu = _to_numpy
        _let_parts_differ(mappings)
    for name, module in list(sys.modules.items()):
        if name.startswith("megatron.core") and getattr(module, "torch", None) is torch:
            module.torch = _FACADE  # type: ignore[attr-defined]


def _to_numpy(tensor: Any, as_numpy: bool = False, record_stream: bool = False) -> Any:
    return tensor.numpy() if torch.is_tensor(tensor) and as_numpy else tensor


def _let_parts_differ(mappings: Any) -> None:
    """Gather and reduce-scatter parts of different lengths, which experts' tokens are: gloo takes equal ones only."""
    gather, reduce_scatter = mappings._gather_along_first_dim, mappings._reduce_scatter_along_first_dim

    def gather_any(x: torch.Tensor, group: Any, sizes: Any = None, use_global_buffer: bool = False) -> Any:
        if sizes is None or group.size() == 1:
            return gather(x, group, use_global_buffer=use_global_buffer)
        parts = gather(_padded(x, max(sizes)), group).reshape(len(sizes), max(sizes), *x.shape[1:])
        return torch.cat([part[:size] for part, size in zip(parts, sizes, strict=True)])

    def reduce_scatter_any(x: torch.Tensor, group: Any, sizes: Any = None, use_global_buffer: bool = False) -> Any:
        if sizes is None or group.size() == 1:
            return reduce_scatter(x, group, use_global_buffer=use_global_buffer)
        parts = torch.cat([_padded(part, max(sizes)) for part in x.split(list(sizes))])
        return reduce_scatter(parts, group)[: sizes[group.rank()]]

    mappings._gather_along_first_dim, mappings._reduce_scatter_along_first_dim = gather_any, reduce_scatter_any


def _padded(x: torch.Tensor, size: int) -> torch.Tensor:
    """``x`` [n, ...] with zeros behind it, [size, ...]."""
    return torch.cat([x, x.new_zeros(size - len(x), *x.shape[1:])])
