"""Log-probabilities and entropy of tokens from vocabulary-parallel hidden states, chunk by chunk.

The logits of all tokens never exist at once: ``chunk`` tokens at a time are projected, reduced to three numbers
per token and thrown away; the backward pass projects them again. Tensor-parallel ranks exchange the three numbers,
never logits.
"""

from typing import Any

import torch
import torch.distributed as dist

PADDING_LOGIT = -1e30  # finite: exp gives exactly 0, and 0 x PADDING_LOGIT is no NaN


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
        log_z = torch.empty(len(hidden), dtype=torch.float32, device=hidden.device)
        logprobs, entropy = torch.empty_like(log_z), torch.empty_like(log_z)
        shard = _Shard(weight, temperature, first, vocab_size)
        for part in _chunks(len(hidden), chunk):
            logits = shard.logits(hidden[part], wide)
            peak = logits.amax(-1)
            if group is not None:
                dist.all_reduce(peak, dist.ReduceOp.MAX, group=group)
            mass = (logits - peak[:, None]).exp_()
            index, mine = shard.local(targets[part])
            sums = torch.stack(
                [mass.sum(-1), (mass * logits).sum(-1), logits.gather(1, index[:, None]).squeeze(1) * mine]
            )
            if group is not None:
                dist.all_reduce(sums, group=group)
            log_mass = sums[0].log()
            log_z[part] = peak + log_mass
            logprobs[part] = (sums[2] - peak) - log_mass  # closer than with log_z, which has lost bits to the peak
            entropy[part] = log_z[part] - sums[1] / sums[0]
        ctx.save_for_backward(hidden, weight, targets, log_z, entropy)
        ctx.constants = (temperature, first, vocab_size, chunk)
        return logprobs, entropy

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        grad_logprobs, grad_entropy = grads
        hidden, weight, targets, log_z, entropy = ctx.saved_tensors
        temperature, first, vocab_size, chunk = ctx.constants
        shard = _Shard(weight, temperature, first, vocab_size)
        grad_hidden = torch.empty_like(hidden)
        grad_weight = torch.zeros_like(weight, dtype=torch.float32)
        for part in _chunks(len(hidden), chunk):
            log_p = shard.logits(hidden[part]).sub_(log_z[part, None])
            p = log_p.exp()
            index, mine = shard.local(targets[part])
            # d log p(target) / d logit = [target] - p;  d entropy / d logit = -p (log p + entropy)
            grad = -p * (grad_logprobs[part, None] + grad_entropy[part, None] * (log_p + entropy[part, None]))
            grad.scatter_add_(1, index[:, None], (grad_logprobs[part] * mine)[:, None])
            grad = grad.div_(temperature).to(hidden.dtype)
            torch.matmul(grad, weight, out=grad_hidden[part])
            grad_weight += (grad.t() @ hidden[part]).float()
        return grad_hidden, grad_weight.to(weight.dtype), None, None, None, None, None, None, None


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

    def local(self, targets: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Row of each target (clamped) and whether it is on this rank."""
        index = targets - self.first
        mine = (index >= 0) & (index < self.real)
        return index.clamp(0, self.weight.shape[0] - 1), mine.float()


def _chunks(length: int, chunk: int) -> list[slice]:
    return [slice(i, min(i + chunk, length)) for i in range(0, length, chunk)]


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
    for part in _chunks(len(targets), chunk):
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
