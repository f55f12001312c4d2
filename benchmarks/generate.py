"""New tokens per CPU-second: the embedded engine's decoding loop against transformers' ``generate``, same weights.

    python -m benchmarks.generate [--groups 8] [--group-size 8] [--prompt 64] [--new 128] [--rounds 5]

A random Qwen3 of 0.85 M parameters (hidden 128, 4 layers), fp32, one thread, every completion of full length.
The two alternate; the medians over the rounds are compared.
"""

import argparse
import os
import statistics
import time
from collections.abc import Callable
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"

import torch
import transformers
from transformers import AutoModelForCausalLM, PreTrainedModel, Qwen3Config

from megatron_rl.rollout.embedded.generate import generate
from megatron_rl.rollout.protocol import Request, Sampling


def build() -> PreTrainedModel:
    config = Qwen3Config(
        vocab_size=500,
        hidden_size=128,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        intermediate_size=384,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=None,
    )
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config).eval()


def cpu_seconds(work: Callable[[], object]) -> float:
    started = time.process_time()
    work()
    return time.process_time() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--groups", type=int, default=8, help="prompts")
    parser.add_argument("--group-size", type=int, default=8, help="completions per prompt")
    parser.add_argument("--prompt", type=int, default=64, help="tokens per prompt")
    parser.add_argument("--new", type=int, default=128, help="new tokens per completion")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(1)
    ours = build()
    theirs: Any = build()
    prompts = torch.randint(0, ours.config.vocab_size, (options.groups, options.prompt))
    rows = prompts.repeat_interleave(options.group_size, 0)
    requests = [
        Request(tokens, range(first, first + options.group_size))
        for tokens, first in zip(prompts.tolist(), range(0, len(rows), options.group_size), strict=True)
    ]

    def embedded() -> None:
        generate(ours, requests, Sampling(options.new), max_running=len(rows))

    def reference() -> None:
        mask = torch.ones_like(rows)
        theirs.generate(rows, attention_mask=mask, max_new_tokens=options.new, do_sample=True, top_k=0, pad_token_id=0)

    embedded()
    reference()
    pairs = [(cpu_seconds(embedded), cpu_seconds(reference)) for _ in range(options.rounds)]
    tokens = len(rows) * options.new
    parameters = sum(parameter.numel() for parameter in ours.parameters())
    print(f"{parameters / 1e6:.2f} M parameters, {len(rows)} rows x {options.new} new tokens, 1 thread, fp32")
    print(f"torch {torch.__version__}, transformers {transformers.__version__}")
    print(f"embedded engine  {tokens / statistics.median(a for a, _ in pairs):8.0f} new tokens per CPU-second")
    print(f"HF generate      {tokens / statistics.median(b for _, b in pairs):8.0f} new tokens per CPU-second")
    print(f"ratio            {statistics.median(b / a for a, b in pairs):8.2f}")


if __name__ == "__main__":
    main()
