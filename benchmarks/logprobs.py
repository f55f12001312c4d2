"""What log-probs and entropies cost beside the model's forward and backward pass: python -m benchmarks.logprobs

A random model of Qwen3's shape with a vocabulary of 32,768, on one packed sequence, in float32. Three ways from its
hidden states to a loss of log-probs and entropies, each with its backward pass, in turn in one run on one thread; the
least CPU time of the repeats:

    product   the output matrix's product alone, of which the plain sum is taken: what nothing can be cheaper than
    chunked   megatron_rl.actor.modules.logprobs, which never has the logits of more than --chunk tokens
    naive     torch: all logits, log_softmax, gather, entropy

Memory is measured for the output layer alone: the most that is allocated beside its inputs, by the resident set of a
process of its own for each way.
"""

import argparse
import multiprocessing
import threading
import time
from collections.abc import Callable

import psutil
import torch
from transformers import Qwen3Config, Qwen3Model

from megatron_rl.actor.modules.logprobs import token_logprobs

VOCABULARY = 32_768


def product(hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor, chunk: int) -> torch.Tensor:
    """The sum of all logits."""
    return (hidden @ weight.t()).sum()


def chunked(hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor, chunk: int) -> torch.Tensor:
    """As the actor computes it."""
    logprobs, entropy = token_logprobs(hidden, weight, targets, vocab_size=VOCABULARY, chunk=chunk)
    return -(logprobs + 0.01 * entropy).mean()


def naive(hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor, chunk: int) -> torch.Tensor:
    """As the formula is written."""
    log_p = (hidden @ weight.t()).log_softmax(-1)
    logprobs, entropy = log_p.gather(1, targets[:, None]).squeeze(1), -(log_p.exp() * log_p).sum(-1)
    return -(logprobs + 0.01 * entropy).mean()


WAYS: dict[str, Callable[..., torch.Tensor]] = {"product": product, "chunked": chunked, "naive": naive}


def seconds(options: argparse.Namespace) -> dict[str, float]:
    """The least CPU time of a forward and backward pass, by way."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    config = Qwen3Config(
        hidden_size=options.hidden,
        intermediate_size=3 * options.hidden,
        num_hidden_layers=options.layers,
        num_attention_heads=options.hidden // 64,
        num_key_value_heads=options.hidden // 128,
        head_dim=64,
        vocab_size=VOCABULARY,
    )
    model = Qwen3Model(config).float()
    weight = model.embed_tokens.weight
    tokens = torch.randint(0, VOCABULARY, (1, options.tokens))
    targets = torch.randint(0, VOCABULARY, (options.tokens,))
    best = dict.fromkeys(WAYS, float("inf"))
    for _ in range(options.repeats):
        for name, way in WAYS.items():
            model.zero_grad()
            began = time.process_time()
            way(model(tokens).last_hidden_state[0], weight, targets, options.chunk).backward()
            best[name] = min(best[name], time.process_time() - began)
    return best


def peak(name: str, options: argparse.Namespace) -> None:
    """Print the most memory beside the inputs, MB, of the output layer forward and backward."""
    hidden = torch.randn(options.tokens_memory, options.hidden, requires_grad=True)
    weight = torch.randn(VOCABULARY, options.hidden, requires_grad=True)
    targets = torch.randint(0, VOCABULARY, (len(hidden),))
    over, process = threading.Event(), psutil.Process()
    before = highest = process.memory_info().rss

    def watch() -> None:
        nonlocal highest
        while not over.wait(0.002):
            highest = max(highest, process.memory_info().rss)

    watcher = threading.Thread(target=watch)
    watcher.start()
    WAYS[name](hidden, weight, targets, options.chunk).backward()
    over.set()
    watcher.join()
    print(f"{name:<8} peak of {options.tokens_memory} tokens {(highest - before) / 1e6:7.0f} MB", flush=True)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hidden", type=int, default=1024)
    parser.add_argument("--layers", type=int, default=28, help="as Qwen3-0.6B has")
    parser.add_argument("--tokens", type=int, default=512)
    parser.add_argument("--tokens-memory", type=int, default=4096, help="of the output layer alone, for its memory")
    parser.add_argument("--chunk", type=int, default=512, help="actor.logprob_chunk")
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    best = seconds(options)
    for name, taken in best.items():
        print(f"{name:<8} forward + backward {taken:6.2f} CPU-s, {taken / best['product']:.3f} x product", flush=True)
    for name in WAYS:
        process = multiprocessing.get_context("spawn").Process(target=peak, args=(name, options))
        process.start()
        process.join()


if __name__ == "__main__":
    main()
