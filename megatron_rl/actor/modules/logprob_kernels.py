"""What log-probs and entropies cost beside the output matrix's products, in Triton: two passes over the logits.

``statistics`` reads a chunk's logits once and leaves five numbers of each token; ``gradient`` reads them once more and
writes their gradient in their place. Sums are float32, over the vocabulary in tiles with a running maximum (Milakov and
Gimelshein, "Online normalizer calculation for softmax", arXiv 1805.02867), the entropy's sum beside the softmax's.
"""

import torch
import triton
import triton.language as tl

TILE = 4096  # columns that one program has in its registers
WARPS = 8
_PADDING = tl.constexpr(-1e30)  # finite: exp gives exactly 0, and 0 x _PADDING is no NaN


@triton.jit
def _statistics(logits, targets, found, stride, tokens, real, temperature, scaled: tl.constexpr, tile: tl.constexpr):
    token = tl.program_id(0)
    row = logits + token.to(tl.int64) * stride
    peak, mass, mean = -1e30, 0.0, 0.0
    for begin in range(0, real, tile):
        at = begin + tl.arange(0, tile)
        x = tl.load(row + at, mask=at < real, other=0.0).to(tl.float32)
        if scaled:
            x = tl.math.div_rn(x, temperature)
        x = tl.where(at < real, x, _PADDING)
        higher = tl.maximum(peak, tl.max(x, 0))
        kept = tl.exp(peak - higher)
        part = tl.exp(x - higher)
        mean = (mean + mass * (peak - higher)) * kept + tl.sum(part * (x - higher), 0)
        mass = mass * kept + tl.sum(part, 0)
        peak = higher
    target = tl.load(targets + token)
    mine = (target >= 0) & (target < real)
    chosen = tl.load(row + target, mask=mine, other=0.0).to(tl.float32)
    if scaled:
        chosen = tl.math.div_rn(chosen, temperature)
    tl.store(found + token, peak)
    tl.store(found + tokens + token, mass)
    tl.store(found + 2 * tokens + token, mean)
    tl.store(found + 3 * tokens + token, chosen)


@triton.jit
def _gradient(
    logits, targets, log_z, entropy, up, down, stride, columns, real, temperature,
    scaled: tl.constexpr, tile: tl.constexpr,
):  # fmt: skip
    token = tl.program_id(0)
    row = logits + token.to(tl.int64) * stride
    at = tl.program_id(1) * tile + tl.arange(0, tile)
    x = tl.load(row + at, mask=at < real, other=0.0).to(tl.float32)
    if scaled:
        x = tl.math.div_rn(x, temperature)
    log_p = x - tl.load(log_z + token)
    of_logprob = tl.load(up + token)
    grad = -tl.exp(log_p) * (of_logprob + tl.load(down + token) * (log_p + tl.load(entropy + token)))
    grad = tl.where(at == tl.load(targets + token), grad + of_logprob, grad)
    if scaled:
        grad = tl.math.div_rn(grad, temperature)
    grad = tl.where(at < real, grad, 0.0)
    tl.store(row + at, grad.to(logits.dtype.element_ty), mask=at < columns)


def statistics(logits: torch.Tensor, targets: torch.Tensor, real: int, temperature: float) -> torch.Tensor:
    """As ``logprobs.statistics``, float32 [4, n], of logits [n, rows] (contiguous, float32 or shorter) as they came out
    of the product: not yet divided by the temperature, and anything at all behind column ``real``."""
    found = torch.empty(4, len(logits), dtype=torch.float32, device=logits.device)
    _statistics[(len(logits),)](
        *(logits, targets, found, logits.stride(0), len(logits), real, temperature),
        scaled=temperature != 1.0,
        tile=TILE,
        num_warps=WARPS,
    )
    return found


def gradient(
    logits: torch.Tensor,
    targets: torch.Tensor,
    real: int,
    temperature: float,
    log_z: torch.Tensor,
    entropy: torch.Tensor,
    grad_logprobs: torch.Tensor,
    grad_entropy: torch.Tensor,
) -> torch.Tensor:
    """As ``logprobs.gradient``, of logits as for ``statistics``, which it overwrites."""
    tokens, columns = logits.shape
    _gradient[tokens, triton.cdiv(columns, TILE)](
        *(logits, targets, log_z, entropy, grad_logprobs, grad_entropy, logits.stride(0), columns, real, temperature),
        scaled=temperature != 1.0,
        tile=TILE,
        num_warps=WARPS,
    )
    return logits
