"""Matrix products on CPUs where MKL is slow.

torch multiplies fp32 matrices with MKL, which leaves AVX-512 unused on processors that are not Intel's; oneDNN, which
torch brings along for its compiler, uses it and is about twice as fast there (benchmarks/products.py).
"""

import torch

from megatron_rl.system.machine import mkl_is_slow

BLOCKS = (2048, 512)  # rows multiplied at once: oneDNN compiles and keeps a kernel for every shape it meets
LEAST = 1 << 12  # elements of the other matrix that make up for the detour through Python

_library: torch.library.Library | None = None


def pays() -> bool:
    """Whether MKL is slow on this processor, and torch has oneDNN."""
    return torch.backends.mkldnn.is_available() and mkl_is_slow()


def use_for_products() -> None:
    """From now on, this process's ``torch.mm`` (linear layers without bias, their gradients) uses oneDNN if it pays."""
    global _library
    if _library is None and pays():
        _library = torch.library.Library("aten", "IMPL")
        _library.impl("mm", product, "CPU")


def product(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """[m, k] x [k, n] -> [m, n]; by oneDNN when the matrices are fp32, dense and large enough.

    A product of activations is made in blocks of their rows, that of a weight's gradient (``a`` is transposed) as a
    sum over such blocks; a ``rounded`` number of rows is one block.
    """
    (m, k), n = a.shape, b.shape[1]
    if a.dtype == b.dtype == torch.float32 and _dense(b):
        if a.is_contiguous() and m >= BLOCKS[-1] and k * n >= LEAST:
            return _by_rows(a, b)
        if a.t().is_contiguous() and k >= BLOCKS[-1] and m * n >= LEAST:
            return _by_terms(a, b)
    return _plain(a, b)


def in_use() -> bool:
    """Whether this process's ``torch.mm`` uses oneDNN."""
    return _library is not None


def rounded(rows: int) -> int:
    """The next number of rows that is multiplied in one piece: there are few such numbers, at most 1/32 apart.

    In blocks, every block's product is copied to its place, and what is left over goes to MKL.
    """
    if rows < BLOCKS[-1]:
        return rows
    unit = 1 << (rows.bit_length() - 6)
    return -(-rows // unit) * unit


def _blocks(rows: int) -> tuple[list[slice], int]:
    """Slices of the sizes in BLOCKS, and where they end."""
    if rounded(rows) == rows >= BLOCKS[-1]:
        return [slice(0, rows)], rows
    found, start = [], 0
    for size in BLOCKS:
        while start + size <= rows:
            found.append(slice(start, start + size))
            start += size
    return found, start


def _by_rows(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    blocks, end = _blocks(len(a))
    if blocks[0].stop == len(a):
        return _onednn(a, b)
    out = a.new_empty(len(a), b.shape[1])
    for block in blocks:
        out[block] = _onednn(a[block], b)
    if end < len(a):
        torch.addmm(out.new_zeros(()), a[end:], b, beta=0, out=out[end:])
    return out


def _by_terms(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    if len(a) > b.shape[1]:  # oneDNN copies what comes first; let that be the smaller
        return _by_terms(b.t(), a.t()).t().contiguous()
    blocks, end = _blocks(len(b))
    terms = [_onednn(a[:, block], b[block]) for block in blocks]
    if end < len(b):
        terms.append(_plain(a[:, end:], b[end:]))
    out = terms[0]
    for term in terms[1:]:
        out += term
    return out


def _onednn(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return torch.ops.mkldnn._linear_pointwise(a, b.t(), None, "none", [], "")  # type: ignore[no-any-return]


def _plain(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return torch.addmm(a.new_zeros(()), a, b, beta=0)


def _dense(matrix: torch.Tensor) -> bool:
    return matrix.is_contiguous() or matrix.t().is_contiguous()
