"""Update steps of the actor at a real shape on one GPU: tokens a second, model FLOPs and peak memory.

    python -m benchmarks.gpu_train [--shape qwen3-4b] [--layers N] [--length 4096] [--tokens 16384] [--micro-batches 2]
                                   [--steps 3] [--compare-head] [--dry-run] [key=value of actor ...]

Random weights; every row is one sequence of --length tokens, of which all but the first are trained (log-probs, entropy
and the clipped objective), packed to --tokens a micro-batch. Figures are of the fastest and the median step after one
that is not counted. MFU is model FLOPs (Megatron's count: products and causal attention, three times for forward and
backward, nothing for what is computed again) over the GPU's dense bfloat16 peak, 989 TFLOP/s on an H100 or H200,
whatever the precision. The head's share is its forward and backward pass measured alone, and what of it is not its
three products (logits and both gradients); --compare-head measures it with torch's operations instead of its kernels
too, and whole steps with these. A dry run takes a tiny shape.
"""

import argparse
import json
import os
import statistics
import time
from typing import Any

import numpy as np
import torch
from omegaconf import OmegaConf

from benchmarks.gpu_head import best_seconds, products, torch_operations
from benchmarks.gpu_shapes import SHAPES
from megatron_rl.actor import accelerator, groups
from megatron_rl.actor.config import ActorConfig
from megatron_rl.actor.micro_batch import MicroBatch
from megatron_rl.actor.modules.logprobs import token_logprobs
from megatron_rl.actor.rows import TrainingRow
from megatron_rl.actor.trainer import Actor
from megatron_rl.training.throughput import peak_flops, update_flops


class RandomActor(Actor):
    """Weights stay as they are drawn here: no folder is read."""

    def load(self, folder: str) -> None:
        held = self.parameters()
        with torch.no_grad():
            for parameter in held.values():
                parameter.normal_(0, 0.02) if parameter.dim() > 1 else parameter.fill_(1.0)
        self.quantised.write(held)


def join(config: ActorConfig) -> None:
    """A job of this process alone."""
    os.environ |= {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1"}
    os.environ.setdefault("MASTER_PORT", "29555")
    groups.initialize(config, 0)


def objective(logprobs: torch.Tensor, entropy: torch.Tensor, batch: MicroBatch) -> Any:
    old, advantage, weight = (batch.columns[name] for name in ("old", "advantage", "weight"))
    ratio = (logprobs - old).exp()
    gain = torch.minimum(ratio * advantage, ratio.clamp(0.8, 1.28) * advantage)
    loss = -(gain * weight).sum()
    return loss, {"loss": loss.detach(), "entropy": (entropy.detach() * weight).sum()}


def head_seconds(actor: Actor, tokens: int) -> float:
    """The output layer, log-probs and entropies of so many tokens, forward and backward."""
    weight = actor.chunks[0].output_matrix().detach().requires_grad_()
    hidden = torch.randn(tokens, weight.shape[1], device=weight.device, dtype=weight.dtype).requires_grad_()
    targets = torch.randint(0, actor.arch.vocab, (tokens,), device=weight.device)
    best = float("inf")
    for _ in range(3):
        accelerator.synchronize()
        started = time.perf_counter()
        logprobs, entropy = token_logprobs(
            hidden, weight, targets, vocab_size=actor.arch.vocab, chunk=actor.config.logprob_chunk
        )
        (logprobs.sum() + 0.01 * entropy.sum()).backward()
        accelerator.synchronize()
        best = min(best, time.perf_counter() - started)
    return best


def products_seconds(actor: Actor, tokens: int) -> float:
    """The output layer's three products alone, that no head can do without: what is model FLOPs of it."""
    weight = actor.chunks[0].output_matrix().detach()
    hidden = torch.randn(tokens, weight.shape[1], device=weight.device, dtype=weight.dtype)
    return best_seconds(lambda: products(hidden, weight, actor.config.logprob_chunk, again=False), 3)


def step_seconds(actor: Actor, batch: list[TrainingRow], steps: int) -> tuple[list[float], dict[str, float]]:
    """Of so many update steps, and what the last one says."""
    times: list[float] = []
    metrics: dict[str, float] = {}
    for _ in range(steps):
        accelerator.synchronize()
        started = time.perf_counter()
        metrics = actor.update(actor.pack(batch), objective, lr=1e-6)
        accelerator.synchronize()
        times.append(time.perf_counter() - started)
    return times, metrics


def rows(count: int, length: int, vocab: int) -> list[TrainingRow]:
    random = np.random.default_rng(0)
    made = []
    for i in range(count):
        columns = {
            "weight": np.full(length, 1.0 / (count * length), np.float32),
            "old": np.full(length, -np.log(vocab), np.float32),
            "advantage": np.full(length, random.normal(), np.float32),
        }
        made.append(TrainingRow(random.integers(0, vocab, length), columns, prompt=1, sample=i))
    return made


def _leave_out(config: ActorConfig) -> list[str]:
    """Set back what needs Transformer Engine and a GPU; the names of what was set."""
    plain = {"fp8": "none", "fp8_weights": False, "bf16_layers": 0, "moments": "float32", "optimizer_on_host": 0.0}
    found = [name for name, value in plain.items() if getattr(config, name) != value]
    for name, value in plain.items():
        setattr(config, name, value)
    return found


def main() -> None:
    """Print one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=list(SHAPES), default="qwen3-4b")
    parser.add_argument("--layers", type=int, help="instead of the shape's")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--length", type=int, default=4096)
    parser.add_argument("--tokens", type=int, default=16384)
    parser.add_argument("--micro-batches", type=int, default=2)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--compare-head", action="store_true", help="with torch's operations in the head too")
    parser.add_argument("--dry-run", action="store_true", help="a tiny shape")
    parser.add_argument("overrides", nargs="*", help="key=value of actor")
    options = parser.parse_args()
    if options.dry_run:
        options.shape, options.layers, options.length, options.tokens = "tiny", 1, 64, 256
    shape = SHAPES[options.shape] | ({"num_hidden_layers": options.layers} if options.layers else {})
    chosen = OmegaConf.merge(OmegaConf.structured(ActorConfig), OmegaConf.from_dotlist(options.overrides))
    config: Any = OmegaConf.to_object(chosen)
    config.micro_batch_tokens = options.tokens
    without = _leave_out(config) if options.dry_run and not accelerator.on_gpu() else []
    join(config)
    actor = RandomActor(shape, config, options.dtype, "")
    actor.new_optimizer(config.optimizer)
    count = options.tokens * options.micro_batches // options.length
    batch = rows(count, options.length, shape["vocab_size"])
    times, metrics = step_seconds(actor, batch, options.steps + 1)
    peak = torch.cuda.max_memory_allocated() / 2**30 if accelerator.on_gpu() else 0.0
    actor.sleep()  # with asleep=true
    resting = torch.cuda.memory_allocated() / 2**30 if accelerator.on_gpu() else 0.0
    actor.wake()
    head = head_seconds(actor, options.tokens) * options.micro_batches
    least = products_seconds(actor, options.tokens) * options.micro_batches
    trained, flops = count * (options.length - 1), update_flops(actor.arch, batch)
    best, middle = min(times[1:]), statistics.median(times[1:])
    found = {
        "benchmark": "gpu_train",
        "device": torch.cuda.get_device_name() if accelerator.on_gpu() else "CPU",
        "shape": options.shape,
        "layers": shape["num_hidden_layers"],
        "dtype": options.dtype,
        "length": options.length,
        "tokens": options.tokens,
        "micro_batches": options.micro_batches,
        "options": options.overrides,
        "transformer_engine": actor.fused,
        "tokens_per_second": round(trained / middle),
        "tokens_per_second_best": round(trained / best),
        "mfu": round(flops / middle / peak_flops(actor.dtype), 4),
        "gflop_per_token": round(flops / trained / 1e9, 2),
        "step_seconds": [round(t, 4) for t in times],
        "peak_gib": round(peak, 2),
        "resting_gib": round(resting, 2),
        "head_share": round(head / middle, 4),
        "head_share_beside_its_products": round((head - least) / middle, 4),
        "loss": metrics["loss"],
        "grad_norm": metrics["grad_norm"],
    }
    if without:
        found["left_out"] = without
    if options.compare_head:
        with torch_operations():
            slower = statistics.median(step_seconds(actor, batch, options.steps)[0])
            head = head_seconds(actor, options.tokens) * options.micro_batches
        found |= {"torch_head_tokens_per_second": round(trained / slower), "torch_head_share": round(head / slower, 4)}
    print(json.dumps(found), flush=True)
    groups.shutdown()


if __name__ == "__main__":
    main()
