"""Log-probs and entropies with their gradients on one GPU: python -m benchmarks.gpu_head [--dry-run] [check] [time]

``check``: the kernels, and torch's operations in their place, against the formula in float32 (without TF32); in float32
and in bfloat16, whose logits are rounded. Largest differences; of gradients relative to their largest number.

``time``: the Qwen3-8B head (4,096 x 151,936, bfloat16, 16,384 tokens). Milliseconds of a forward and backward pass, the
best of five, and the most memory beside its inputs, gradients included: with the kernels, with torch's operations, and
what its products alone take, the four that it has and the three that no head can do without.
"""

import argparse
import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch

from megatron_rl.actor.modules import logprobs
from megatron_rl.actor.modules.logprobs import token_logprobs

ON_GPU = torch.cuda.is_available()
DEVICE = "cuda" if ON_GPU else "cpu"


@contextmanager
def torch_operations() -> Iterator[None]:
    """Inside, the head does without its kernels."""
    kernels = logprobs.logprob_kernels
    logprobs.logprob_kernels = lambda device: None  # type: ignore[assignment]
    try:
        yield
    finally:
        logprobs.logprob_kernels = kernels


def synchronise() -> None:
    if ON_GPU:
        torch.cuda.synchronize()


def best_seconds(work: Callable[[], object], repeats: int = 5) -> float:
    """The best of the repeats, after one that is not counted."""
    taken = []
    for _ in range(repeats + 1):
        synchronise()
        started = time.perf_counter()
        work()
        synchronise()
        taken.append(time.perf_counter() - started)
    return min(taken[1:])


def peak_gib(work: Callable[[], object]) -> float:
    """The most GPU memory that is allocated while it runs, beside what there is before."""
    if not ON_GPU:
        work()
        return 0.0
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    work()
    synchronise()
    return float(torch.cuda.max_memory_allocated() - before) / 2**30


def inputs(tokens: int, width: int, rows: int, dtype: torch.dtype) -> tuple[torch.Tensor, ...]:
    torch.manual_seed(0)
    hidden = torch.randn(tokens, width, device=DEVICE).to(dtype)
    weight = (torch.randn(rows, width, device=DEVICE) * 2 / width**0.5).to(dtype)  # logits of some nats
    return hidden, weight, torch.randint(0, rows, (tokens,), device=DEVICE)


def found(hidden: torch.Tensor, weight: torch.Tensor, up: torch.Tensor, down: torch.Tensor, way: Any) -> list[Any]:
    """Log-probs, entropies and the gradients of hidden states and matrix."""
    leaves = hidden.detach().clone().requires_grad_(), weight.detach().clone().requires_grad_()
    got = way(*leaves)
    return [*(t.detach() for t in got), *torch.autograd.grad((got[0] * up + got[1] * down).sum(), leaves)]


def check(tokens: int, width: int, rows: int, real: int) -> dict[str, Any]:
    torch.backends.cuda.matmul.allow_tf32 = False
    hidden, weight, targets = inputs(tokens, width, rows, torch.bfloat16)
    targets = targets % real
    up, down = torch.randn(tokens, device=DEVICE), 0.1 * torch.randn(tokens, device=DEVICE)

    def ours(hidden: torch.Tensor, weight: torch.Tensor) -> Any:
        return token_logprobs(hidden, weight, targets, vocab_size=real, temperature=0.7, chunk=max(1, tokens // 4))

    def formula(hidden: torch.Tensor, weight: torch.Tensor) -> Any:
        log_p = ((hidden @ weight[:real].t()) / 0.7).log_softmax(-1)
        return log_p.gather(1, targets[:, None]).squeeze(1), -(log_p.exp() * log_p).sum(-1)

    truth = found(hidden.float(), weight.float(), up, down, formula)
    table: dict[str, Any] = {"kernels": logprobs.logprob_kernels(torch.device(DEVICE)) is not None}
    for name, dtype in (("float32", torch.float32), ("bfloat16", torch.bfloat16)):
        fused = found(hidden.to(dtype), weight.to(dtype), up, down, ours)
        with torch_operations():
            plain = found(hidden.to(dtype), weight.to(dtype), up, down, ours)
        for what, one, other in (
            ("kernels from float32 formula", fused, truth),
            ("torch from float32 formula", plain, truth),
            ("kernels from torch", fused, plain),
        ):
            gaps = [(a.float() - b.float()).abs().max().item() for a, b in zip(one, other, strict=True)]
            scales = [1.0, 1.0, *(b.float().abs().max().item() for b in other[2:])]
            table[f"{name}: {what}"] = dict(
                zip(
                    ("logprobs", "entropy", "of_hidden", "of_matrix"),
                    (float(f"{gap / scale:.3e}") for gap, scale in zip(gaps, scales, strict=True)),
                    strict=True,
                )
            )
    return table


@torch.no_grad()
def products(hidden: torch.Tensor, weight: torch.Tensor, chunk: int, again: bool) -> None:
    """The head's products alone: the logits once or ``again`` for their gradient, and the gradients of both."""
    of_weight, pieces = torch.empty_like(weight), max(1, len(hidden) // chunk)
    for part, slab in zip(hidden.chunk(pieces), weight.chunk(pieces), strict=True):
        logits = part @ weight.t()
        if again:
            del logits
            logits = hidden @ slab.t()
            (logits @ slab, torch.mm(logits.t(), hidden, out=of_weight[: len(slab)]))
        else:
            (logits @ weight, torch.mm(logits.t(), part, out=of_weight))


def timing(tokens: int, width: int, rows: int, chunk: int) -> dict[str, Any]:
    hidden, weight, targets = inputs(tokens, width, rows, torch.bfloat16)
    hidden.requires_grad_()
    weight.requires_grad_()

    def forward(chunk: int) -> Any:
        with torch.no_grad():
            return token_logprobs(hidden, weight, targets, vocab_size=rows, chunk=chunk)

    def both(chunk: int) -> None:
        hidden.grad = weight.grad = None
        got, entropy = token_logprobs(hidden, weight, targets, vocab_size=rows, chunk=chunk)
        (got.sum() + 0.01 * entropy.sum()).backward()

    def measure(chunk: int) -> dict[str, float]:
        found = {"forward_ms": 1e3 * best_seconds(partial(forward, chunk))}
        found["both_ms"] = 1e3 * best_seconds(partial(both, chunk))
        hidden.grad = weight.grad = None
        found["peak_gib"] = peak_gib(partial(both, chunk))
        return {name: round(value, 3) for name, value in found.items()}

    line: dict[str, Any] = {"tokens": tokens, "hidden": width, "vocabulary": rows, "chunk": chunk}
    line["kernels"] = measure(chunk)
    line["kernels_in_one_piece"] = measure(tokens)  # whose logits stay for the gradient
    with torch_operations():
        line["torch"] = measure(chunk)
    hidden.grad = weight.grad = None
    for again, name in ((True, "four"), (False, "three")):
        line[f"{name}_products_ms"] = round(1e3 * best_seconds(partial(products, hidden, weight, chunk, again)), 2)
    return line


def main() -> None:
    """Print a line of JSON for each part."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", default=["check", "time"], help="check, time")
    parser.add_argument("--tokens", type=int, default=16384)
    parser.add_argument("--chunk", type=int, default=2048)
    parser.add_argument("--dry-run", action="store_true", help="a tiny shape")
    options = parser.parse_args()
    width, rows, real = (64, 512, 500) if options.dry_run else (4096, 151_936, 151_669)
    device = torch.cuda.get_device_name() if ON_GPU else "CPU"
    tokens, chunk = (256, 64) if options.dry_run else (options.tokens, options.chunk)
    for part in options.parts:
        if part == "check":
            line = check(32 if options.dry_run else 1024, width, rows, real)
        else:
            line = timing(tokens, width, rows, chunk)
        print(json.dumps({"benchmark": f"gpu_head {part}", "device": device} | line), flush=True)


if __name__ == "__main__":
    main()
