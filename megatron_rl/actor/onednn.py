"""Matrix products on CPUs where MKL is slow.

torch multiplies fp32 matrices with MKL, which leaves AVX-512 unused on processors that are not Intel's; oneDNN, which
torch brings along for its compiler, uses it and is about twice as fast there (benchmarks/products.py).
"""

from pathlib import Path

import torch

LEAST = 1 << 21  # multiplications that make up for the detour through Python
SLICE = 1024  # rows of a gradient and of an input that are multiplied at once

_library: torch.library.Library | None = None


def pays() -> bool:
    """Whether this processor has AVX-512, is not Intel's, and torch has oneDNN."""
    information = Path("/proc/cpuinfo")
    return (
        torch.backends.mkldnn.is_available()
        and information.exists()
        and "GenuineIntel" not in (text := information.read_text())
        and "avx512f" in text
    )


def use_for_products() -> None:
    """From now on, this process's ``torch.mm`` (linear layers without bias, their gradients) uses oneDNN if it pays."""
    global _library
    if _library is None and pays():
        _library = torch.library.Library("aten", "IMPL")
        _library.impl("mm", product, "CPU")


def product(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """[m, k] x [k, n] -> [m, n]; by oneDNN when the matrices are fp32, dense and large enough."""
    m, k = a.shape
    if not (a.dtype == b.dtype == torch.float32 and m * k * b.shape[1] >= LEAST and _dense(a) and _dense(b)):
        return torch.addmm(a.new_zeros(()), a, b, beta=0)
    multiply = torch.ops.mkldnn._linear_pointwise
    step = k if a.is_contiguous() else SLICE  # of a transposed matrix oneDNN makes a copy: let it fit the cache
    out: torch.Tensor = multiply(a[:, :step], b[:step].t(), None, "none", [], "")
    for i in range(step, k, step):
        out += multiply(a[:, i : i + step], b[i : i + step].t(), None, "none", [], "")
    return out


def _dense(matrix: torch.Tensor) -> bool:
    return matrix.is_contiguous() or matrix.t().is_contiguous()
