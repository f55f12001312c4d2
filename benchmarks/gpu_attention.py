"""Attention over packed sequences on one GPU, forward and backward: python -m benchmarks.gpu_attention [--dry-run]

Shapes of Qwen3-8B's attention on one rank (32 heads of 128, 8 of keys), 16,384 tokens in sequences of one length, in
bfloat16. TFLOP/s of causal attention, 2 products forward and 5 backward of which a causal mask leaves half, by each
of Transformer Engine's and torch's kernels; the best of five. ``torch`` alone is torch's own choice; a kernel that
does not run has its error.
"""

import argparse
import json
import os
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from benchmarks.gpu_head import DEVICE, ON_GPU, best_seconds
from megatron_rl.actor.model import transformer_engine

Attention = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]
HEADS, GROUPS, WIDTH = 32, 8, 128
KERNELS = {
    "torch": None,
    "torch cuDNN": SDPBackend.CUDNN_ATTENTION,
    "torch flash": SDPBackend.FLASH_ATTENTION,
    "torch efficient": SDPBackend.EFFICIENT_ATTENTION,
}


def by_torch(kernel: SDPBackend | None, length: int) -> Attention:
    def attend(*parts: torch.Tensor) -> torch.Tensor:
        q, k, v = (x.unflatten(0, (-1, length)).transpose(1, 2) for x in parts)
        if kernel is None:
            return F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        with sdpa_kernel(kernel):
            return F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)

    return attend


def by_transformer_engine(length: int, tokens: int) -> Attention:
    import transformer_engine.pytorch as te

    os.environ.setdefault("NVTE_UNFUSED_ATTN", "0")  # which keeps the scores of all pairs
    layer: Any = te.DotProductAttention(HEADS, WIDTH, num_gqa_groups=GROUPS, attention_dropout=0.0, qkv_format="thd")
    ends = torch.arange(0, tokens + 1, length, device=DEVICE, dtype=torch.int32)
    given = {"cu_seqlens_q": ends, "cu_seqlens_kv": ends, "max_seqlen_q": length, "max_seqlen_kv": length}
    return lambda q, k, v: layer(q, k, v, attn_mask_type="padding_causal", **given)  # type: ignore[no-any-return]


def rate(attend: Attention, length: int, tokens: int) -> float:
    """TFLOP/s of a forward and a backward pass."""
    parts = [
        torch.randn(tokens, heads, WIDTH, device=DEVICE, dtype=torch.bfloat16, requires_grad=True)
        for heads in (HEADS, GROUPS, GROUPS)
    ]
    up = torch.randn_like(attend(*parts))

    def passes() -> None:
        torch.autograd.grad(attend(*parts), parts, up)

    return 7 * tokens * length * HEADS * WIDTH / best_seconds(passes) / 1e12


def main() -> None:
    """Print a line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dry-run", action="store_true", help="a few tokens")
    tokens = 256 if parser.parse_args().dry_run else 16384
    table: dict[str, dict[str, Any]] = {}
    for length in (tokens // 8, tokens // 4, tokens):
        row = table[str(length)] = {}
        ways: dict[str, Callable[[int], Attention]] = {
            name: lambda length, kernel=kernel: by_torch(kernel, length)  # type: ignore[misc]
            for name, kernel in KERNELS.items()
        }
        if transformer_engine(torch.bfloat16):
            ways["Transformer Engine"] = lambda length: by_transformer_engine(length, tokens)
        for name, way in ways.items():
            try:
                row[name] = float(f"{rate(way(length), length, tokens):.3g}")
            except (RuntimeError, ValueError) as error:
                row[name] = " ".join(str(error).split())[:120]
    device = torch.cuda.get_device_name() if ON_GPU else "CPU"
    print(json.dumps({"benchmark": "gpu_attention", "device": device, "tokens": tokens, "tflops": table}), flush=True)


if __name__ == "__main__":
    main()
