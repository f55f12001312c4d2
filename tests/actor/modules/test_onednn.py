"""Products through oneDNN: the same numbers as torch's own, in every memory order that autograd makes."""

import subprocess
import sys

import pytest
import torch

from megatron_rl.actor.modules import onednn


@pytest.mark.parametrize(
    "size",
    [(3, 5, 4), (1300, 96, 100), (512, 70, 80), (1312, 96, 100), (70, 3000, 80), (90, 3000, 80), (90, 3008, 80)],
    ids=str,
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_equals_float64(size: tuple[int, int, int], dtype: torch.dtype) -> None:
    m, k, n = size
    a, b = torch.randn(m, k, dtype=dtype), torch.randn(k, n, dtype=dtype)
    expected = a.double() @ b.double()
    tolerance = {torch.float32: 1e-5, torch.float64: 1e-12, torch.bfloat16: 2e-2}[dtype] * k**0.5
    padded = torch.randn(m, 2 * k, dtype=dtype)
    padded[:, :k] = a
    for left in (a, a.t().contiguous().t(), padded[:, :k]):
        for right in (b, b.t().contiguous().t()):
            product = onednn.product(left, right)
            assert product.dtype == dtype and product.is_contiguous()
            assert (product.double() - expected).abs().max() < tolerance


def test_rounded_numbers_are_few_and_near() -> None:
    assert [onednn.rounded(rows) for rows in (0, 511, 512, 513, 1024, 8560, 16384)] == [
        0,
        511,
        512,
        528,
        1024,
        8704,
        16384,
    ]
    found = {onednn.rounded(rows) for rows in range(512, 16385)}
    assert len(found) == 5 * 32 + 1
    assert all(
        rows <= onednn.rounded(rows) <= rows * 33 / 32 and onednn.rounded(rows) in found for rows in range(512, 16385)
    )


def test_an_empty_side() -> None:
    assert onednn.product(torch.zeros(0, 4), torch.zeros(4, 3)).shape == (0, 3)
    assert torch.equal(onednn.product(torch.zeros(2, 0), torch.zeros(0, 3)), torch.zeros(2, 3))


def test_a_process_that_uses_it_has_the_same_gradients() -> None:
    """In a process of its own, for what torch does there is changed for good."""
    code = """
import torch
from megatron_rl.actor.modules import onednn
torch.manual_seed(0)
x, w = torch.randn(9, 64, 96, requires_grad=True), torch.randn(256, 96, requires_grad=True)
def gradients():
    x.grad = w.grad = None
    torch.nn.functional.linear(x, w).square().sum().backward()
    return x.grad, w.grad
before = gradients()
onednn.pays = lambda: True
onednn.use_for_products()
after = gradients()
assert onednn._library is not None
for a, b in zip(before, after, strict=True):
    print((a - b).abs().max().item() / a.abs().max().item())
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert all(float(line) < 1e-5 for line in done.stdout.split())
