"""A stand-in for SGLang's CUDA kernels, on the path of servers on a CPU only: imports work, calls do not."""

from collections.abc import Callable
from typing import Any


def __getattr__(name: str) -> Callable[..., Any]:
    if name.startswith("__"):
        raise AttributeError(name)

    def missing(*_: Any, **__: Any) -> Any:
        raise NotImplementedError(f"sgl_kernel.{name} needs a GPU: this is the stand-in of a server on a CPU")

    return missing
