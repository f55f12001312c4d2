"""Log-probabilities and entropy of tokens from vocabulary-parallel hidden states, piece by piece.

The logits of all tokens never exist at once. The forward pass projects ``chunk`` tokens at a time, reduces them to four
numbers per token and throws them away. The backward pass projects again, now all tokens on as many rows of the output
matrix as make no more logits than that: so each row's gradient is one product, which no sum of the size of the matrix
has to follow. That second projection makes four products out of three, but where ``chunk`` tokens are all; computing
gradients in the forward pass instead (as can be done for a loss that is known there) would need as many, for the
policy's loss weighs each token by its log-prob, and the matrix's gradient sums over tokens. Tensor-parallel ranks
exchange the numbers, never logits.

What is not a product is two passes over the logits by Triton's kernels on a GPU, and torch's operations elsewhere.
"""

from functools import cache
from types import ModuleType
from typing import Any

import torch
import torch.distributed as dist

from megatron_rl.system import machine

PADDING_LOGIT = -1e30  # finite: exp gives exactly 0, and 0 x PADDING_LOGIT is no NaN
_EVEN = 128  # rows of the output matrix that a piece is a multiple of where it can: products like that
_TOGETHER = 8192  # tokens whose gradients are multiplied together


class _TokenLogProbs(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: torch.Tensor,
        weight: torch.Tensor,
        targets: torch.Tensor,
        temperature: float,
        first: int,
        vocab_size: int,
        group: dist.ProcessGroup | None,
        chunk: int,
        wide: torch.dtype | None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        shard = _Shard(weight, temperature, first, vocab_size)
        # Where one piece is all, and the kernels leave it as it was, its logits stay for the gradient.
        keep = wide is None and len(hidden) <= chunk and logprob_kernels(hidden.device) is not None
        ctx.logits = hidden @ weight.t() if keep else None
        pieces = [
            shard.statistics(hidden[part], targets[part], wide, ctx.logits) for part in _pieces(len(hidden), chunk)
        ]
        peak, mass, mean, chosen = torch.cat(pieces, 1) if pieces else hidden.new_zeros(4, 0, dtype=torch.float32)
        if group is not None:
            own, peak = peak, peak.clone()
            dist.all_reduce(peak, dist.ReduceOp.MAX, group=group)
            kept = (own - peak).exp()
            sums = torch.stack([mass * kept, (mean + mass * (own - peak)) * kept, chosen])
            dist.all_reduce(sums, group=group)
            mass, mean, chosen = sums
        log_mass = mass.log()
        log_z, entropy = (peak + log_mass).float(), (log_mass - mean / mass).float()
        logprobs = ((chosen - peak) - log_mass).float()  # closer than with log_z, which has lost bits to the peak
        ctx.save_for_backward(hidden, weight, targets, log_z, entropy)
        ctx.constants = (temperature, first, vocab_size, chunk)
        return logprobs, entropy

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        hidden, weight, targets, log_z, entropy = ctx.saved_tensors
        temperature, first, vocab_size, chunk = ctx.constants
        logits, ctx.logits = ctx.logits, None  # overwritten: a second backward pass makes them anew
        known = log_z, entropy, *(grad.contiguous() for grad in grads)
        grad_weight = torch.empty_like(weight) if ctx.needs_input_grad[1] else None
        rows = _rows(len(hidden), len(weight), chunk)
        # summed over the pieces, if there are several
        total = hidden.new_zeros(
            hidden.shape if rows < len(weight) else 0, dtype=torch.promote_types(hidden.dtype, torch.float32)
        )
        for part in _pieces(len(weight), rows):
            shard = _Shard(weight[part], temperature, first + part.start, vocab_size)
            grad = shard.gradient(hidden, targets, logits, *known)
            if rows < len(weight):
                _add_product(total, grad, weight[part])
            else:
                total = grad @ weight
            if grad_weight is not None:
                torch.matmul(grad.t(), hidden, out=grad_weight[part])
            del grad  # before the next one is made
        return total.to(hidden.dtype), grad_weight, None, None, None, None, None, None, None


class _Shard:
    """One rank's rows of the output matrix: vocabulary ids [first, first + rows), real below ``vocab_size``."""

    def __init__(self, weight: torch.Tensor, temperature: float, first: int, vocab_size: int) -> None:
        self.weight, self.temperature, self.first = weight, temperature, first
        self.real = max(0, min(weight.shape[0], vocab_size - first))

    def logits(self, hidden: torch.Tensor, wide: torch.dtype | None = None) -> torch.Tensor:
        """[n, rows], scaled; padding rows can't be drawn. float32, or computed in ``wide``."""
        weight = self.weight.t()
        logits = (hidden @ weight).float() if wide is None else hidden.to(wide) @ weight.to(wide)
        if self.temperature != 1.0:
            logits = logits.div_(self.temperature)
        logits[:, self.real :] = PADDING_LOGIT
        return logits

    def statistics(
        self, hidden: torch.Tensor, targets: torch.Tensor, wide: torch.dtype | None, logits: torch.Tensor | None
    ) -> torch.Tensor:
        """``statistics`` of the logits of hidden [n, h], [4, n] in float32 or ``wide``; ``logits``: the product, where
        it has been made."""
        if wide is None and (kernels := logprob_kernels(hidden.device)):
            logits = hidden @ self.weight.t() if logits is None else logits
            found: torch.Tensor = kernels.statistics(logits, targets - self.first, self.real, self.temperature)
            return found
        return statistics(self.logits(hidden, wide), *self.local(targets))

    def gradient(
        self, hidden: torch.Tensor, targets: torch.Tensor, logits: torch.Tensor | None, *known: torch.Tensor
    ) -> torch.Tensor:
        """``gradient`` of the logits of hidden [n, h], [n, rows] in its dtype; ``logits``: as for ``statistics``."""
        if kernels := logprob_kernels(hidden.device):
            logits = hidden @ self.weight.t() if logits is None else logits
            found: torch.Tensor = kernels.gradient(logits, targets - self.first, self.real, self.temperature, *known)
            return found
        grad = gradient(self.logits(hidden), *self.local(targets), *known)
        return grad.div_(self.temperature).to(hidden.dtype)

    def local(self, targets: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Row of each target (clamped) and whether it is on this rank."""
        index = targets - self.first
        mine = (index >= 0) & (index < self.real)
        return index.clamp(0, self.weight.shape[0] - 1), mine.float()


def statistics(logits: torch.Tensor, index: torch.Tensor, mine: torch.Tensor) -> torch.Tensor:
    """Of each token's logits [n, rows], scaled, what its log-prob and entropy are made of; overwrites them.

    [4, n]: their maximum m, the sum of exp(z - m), the sum of exp(z - m) (z - m), and the target's (0 where it is not
    ``mine``), which is that in column ``index``.
    """
    peak = logits.amax(-1)
    chosen = logits.gather(1, index[:, None]).squeeze(1) * mine
    below = logits.sub_(peak[:, None])
    mass = below.exp()
    return torch.stack([peak, mass.sum(-1), mass.mul_(below).sum(-1), chosen])


def gradient(
    logits: torch.Tensor,
    index: torch.Tensor,
    mine: torch.Tensor,
    log_z: torch.Tensor,
    entropy: torch.Tensor,
    grad_logprobs: torch.Tensor,
    grad_entropy: torch.Tensor,
) -> torch.Tensor:
    """The gradient of scaled logits [n, rows], which are overwritten, from those of log-probs and entropies [n].

    d log p(target) / d logit = [target] - p;  d entropy / d logit = -p (log p + entropy).
    """
    log_p = logits.sub_(log_z[:, None])
    p = log_p.exp()
    grad = -p * (grad_logprobs[:, None] + grad_entropy[:, None] * (log_p + entropy[:, None]))
    return grad.scatter_add_(1, index[:, None], (grad_logprobs * mine)[:, None])


@cache
def logprob_kernels(device: torch.device) -> ModuleType | None:
    """The kernels for a GPU, where Triton is there (CUDA builds of torch bring it); None: torch does the work."""
    if device.type != "cuda" or machine.installed("triton") is None:
        return None
    from megatron_rl.actor.modules import logprob_kernels as kernels

    return kernels


def _add_product(total: torch.Tensor, grad: torch.Tensor, weight: torch.Tensor) -> None:
    """total += grad @ weight in ``total``'s dtype, float32 at least, without another tensor of its size."""
    for part in _pieces(len(grad), _TOGETHER):
        if grad.is_cuda and grad.dtype in (torch.bfloat16, torch.float16):
            total[part] += torch.mm(grad[part], weight, torch.float32)
        else:
            total[part] += grad[part].to(total.dtype) @ weight.to(total.dtype)


def _rows(tokens: int, rows: int, chunk: int) -> int:
    """Rows of the output matrix that all tokens are projected on at a time."""
    fitting = chunk * rows // max(tokens, 1)
    return rows if fitting >= rows else max(fitting // _EVEN * _EVEN or fitting, 1)


def _pieces(length: int, size: int) -> list[slice]:
    return [slice(i, min(i + size, length)) for i in range(0, length, size)]


def token_logprobs(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    targets: torch.Tensor,
    *,
    vocab_size: int,
    temperature: float = 1.0,
    rank: int = 0,
    group: dist.ProcessGroup | None = None,
    chunk: int = 2048,
    wide: torch.dtype | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probability of each target and entropy of its distribution.

    hidden [n, h] final hidden states (equal on all tensor-parallel ranks; their gradient is this rank's share, to
    be summed over ``group``); weight [rows, h] this rank's rows of the padded output matrix; targets int64 [n].
    ``temperature`` scales the logits. ``wide``: what the forward pass is computed in; None: float32.
    Returns two float32 [n], natural log / nats, equal on all ranks.
    """
    first = rank * weight.shape[0]
    return _TokenLogProbs.apply(hidden, weight, targets, temperature, first, vocab_size, group, chunk, wide)  # type: ignore[no-any-return]


@torch.no_grad()
def contrast_probs(
    positive: tuple[torch.Tensor, torch.Tensor],
    negative: tuple[torch.Tensor, torch.Tensor],
    targets: torch.Tensor,
    *,
    alpha: float,
    vocab_size: int,
    rank: int = 0,
    group: dist.ProcessGroup | None = None,
    chunk: int = 2048,
) -> torch.Tensor:
    """softmax((1 + alpha) z_positive - alpha z_negative)[target], float32 [n] (arXiv 2411.19943, eq. 3).

    Both models give their final hidden states [n, h], which may lie on the host, and their rows of the output matrix,
    as ``token_logprobs`` takes them.
    """
    found = torch.empty(len(targets), dtype=torch.float32, device=targets.device)
    first = rank * positive[1].shape[0]
    shards = [_Shard(weight, 1.0, first, vocab_size) for _, weight in (positive, negative)]
    for part in _pieces(len(targets), chunk):
        z_positive, z_negative = (
            shard.logits(hidden[part].to(targets.device))
            for shard, (hidden, _) in zip(shards, (positive, negative), strict=True)
        )
        logits = z_positive.mul_(1 + alpha).sub_(z_negative, alpha=alpha)
        logits[:, shards[0].real :] = PADDING_LOGIT
        peak = logits.amax(-1)
        if group is not None:
            dist.all_reduce(peak, dist.ReduceOp.MAX, group=group)
        mass = logits.sub_(peak[:, None]).exp_()
        index, mine = shards[0].local(targets[part])
        sums = torch.stack([mass.sum(-1), mass.gather(1, index[:, None]).squeeze(1) * mine])
        if group is not None:
            dist.all_reduce(sums, group=group)
        found[part] = sums[1] / sums[0]
    return found
