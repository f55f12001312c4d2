"""Chunked log-probs and entropy against torch's own softmax, values and gradients."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from megatron_rl.actor.modules.logprobs import token_logprobs
from tests.conftest import ROOT


def plain(hidden, weight, targets, vocab_size, temperature):
    log_p = ((hidden @ weight[:vocab_size].t()) / temperature).log_softmax(-1)
    return log_p.gather(1, targets[:, None]).squeeze(1), -(log_p.exp() * log_p).sum(-1)


@pytest.mark.parametrize("chunk", [1, 5, 64])
@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_equals_log_softmax(chunk: int, temperature: float) -> None:
    torch.manual_seed(0)
    hidden = torch.randn(17, 12, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(32, 12, dtype=torch.float64, requires_grad=True)  # 29 real rows, 3 of padding
    targets = torch.randint(0, 29, (17,))
    up, down = torch.randn(17, dtype=torch.float64), torch.randn(17, dtype=torch.float64)

    expected = plain(hidden, weight, targets, 29, temperature)
    wanted = torch.autograd.grad((expected[0] * up + expected[1] * down).sum(), (hidden, weight))
    got = token_logprobs(hidden, weight, targets, vocab_size=29, temperature=temperature, chunk=chunk)
    grads = torch.autograd.grad((got[0] * up + got[1] * down).sum(), (hidden, weight))
    for a, b in zip((*got, *grads), (*expected, *wanted), strict=True):
        assert (a - b).abs().max() < 2e-6 * (1 + b.abs().max())  # the reduction is fp32
    assert grads[1][29:].abs().max() == 0.0


def test_extreme_logits_stay_finite() -> None:
    hidden = torch.tensor([[300.0], [-300.0]], requires_grad=True)
    weight = torch.tensor([[1.0], [-1.0], [0.5]])
    logprobs, entropy = token_logprobs(hidden, weight, torch.tensor([0, 0]), vocab_size=3)
    assert logprobs.tolist() == [0.0, -600.0]
    assert entropy.tolist() == [0.0, 0.0]
    (logprobs.sum() + entropy.sum()).backward()
    assert torch.isfinite(hidden.grad).all()


def test_memory_is_bounded_by_the_chunk(monkeypatch: pytest.MonkeyPatch) -> None:
    """No tensor of tokens x vocabulary is ever made."""
    from torch.utils._python_dispatch import TorchDispatchMode

    largest = 0

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            nonlocal largest
            out = func(*args, **(kwargs or {}))
            for t in out if isinstance(out, tuple) else (out,):
                if isinstance(t, torch.Tensor):
                    largest = max(largest, t.numel())
            return out

    hidden, weight = torch.randn(512, 8, requires_grad=True), torch.randn(1000, 8, requires_grad=True)
    with Watch():
        logprobs, _ = token_logprobs(hidden, weight, torch.zeros(512, dtype=torch.int64), vocab_size=1000, chunk=16)
        logprobs.sum().backward()
    assert largest == 16 * 1000


def test_kernels_do_what_torch_does() -> None:
    """On one rank, and on two that share the vocabulary or the tokens."""
    pytest.importorskip("triton")
    done = subprocess.run(
        [sys.executable, "-W", "ignore", str(Path(__file__).with_name("logprob_checks.py"))],
        env=os.environ | {"TRITON_INTERPRET": "1", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
