"""The actor's log-probs on a GPU in every precision against transformers' in float32, beside transformers' bfloat16.

    python -m benchmarks.gpu_numerics [--layers 8] [--hidden 1024] [--fp8 delayed tensorwise blockwise]

One random Qwen3 in one folder; six sequences of 33 to 700 tokens, packed for the actor and one by one for transformers.
Prints one line of JSON: mean and largest absolute difference of the tokens' log-probs, in nats, and the relative error
of a gradient (of a query-key-value matrix) against float32's, where the actor computes it.
"""

import argparse
import json
import sys
import tempfile
import traceback
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForCausalLM, Qwen3Config, Qwen3ForCausalLM

from benchmarks.gpu_train import join
from megatron_rl.actor import accelerator, groups
from megatron_rl.actor.config import ActorConfig
from megatron_rl.actor.rows import TrainingRow
from megatron_rl.actor.trainer import Actor


def sequences(vocabulary: int) -> list[np.ndarray]:
    random = np.random.default_rng(1)
    return [random.integers(0, vocabulary, n) for n in (33, 120, 257, 500, 640, 700)]


def write(folder: Path, hidden: int, layers: int, vocabulary: int) -> None:
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=vocabulary,
        hidden_size=hidden,
        intermediate_size=3 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=hidden // 64,
        num_key_value_heads=max(1, hidden // 128),
        head_dim=64,
        tie_word_embeddings=True,
        max_position_embeddings=4096,
    )
    Qwen3ForCausalLM(config).float().save_pretrained(folder)


def of_transformers(folder: Path, dtype: torch.dtype, rows: list[np.ndarray]) -> torch.Tensor:
    device = accelerator.device()
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, attn_implementation="sdpa")
    model = model.to(device).eval()
    found = []
    with torch.no_grad():
        for row in rows:
            tokens = torch.from_numpy(row)[None].to(device)
            logits = model(tokens[:, :-1]).logits[0].float()
            found.append(logits.log_softmax(-1).gather(1, tokens[0, 1:, None]).squeeze(1))
    return torch.cat(found).cpu()


def of_actor(folder: Path, dtype: str, rows: list[np.ndarray], **options: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probs in the rows' order, and the gradient of the first layer's qkv matrix."""
    config = ActorConfig(micro_batch_tokens=4096, **options)
    actor = Actor(json.loads((folder / "config.json").read_text()), config, dtype, str(folder))
    config.optimizer.clip_grad = 1e9
    actor.new_optimizer(config.optimizer)
    starts = np.cumsum([0] + [len(row) for row in rows])
    training = [
        TrainingRow(
            row,
            {"weight": np.full(len(row), 1 / 1000, np.float32), "id": np.arange(len(row), dtype=np.float32) + start},
            prompt=1,
            sample=i,
        )
        for i, (row, start) in enumerate(zip(rows, starts, strict=False))
    ]
    batches, found = actor.pack(training), torch.full((int(starts[-1]),), torch.nan)
    for _ in range(2 if options.get("fp8") == "delayed" else 1):  # a delayed scale needs a history
        actor.score(batches, "logprobs")
    for batch in batches:
        found[batch.columns["id"].long().cpu()] = batch.columns["logprobs"].float().cpu()
    kept: dict[str, torch.Tensor] = {}

    def objective(logprobs: torch.Tensor, entropy: torch.Tensor, batch: Any) -> Any:
        loss = -(batch.columns["weight"] * logprobs).sum()
        return loss, {"loss": loss.detach()}

    name = next(
        n for n, _ in actor.chunks[0].named_parameters() if n.endswith("layers.0.self_attention.linear_qkv.weight")
    )
    parameter = dict(actor.chunks[0].named_parameters())[name]
    prepare = actor.optimizer.prepare_grads

    def keep() -> Any:
        kept["gradient"] = parameter.main_grad.detach().float().cpu().clone()
        return prepare()

    actor.optimizer.prepare_grads = keep
    actor.update(batches, objective, lr=0.0)
    return found[~found.isnan()], kept["gradient"]


def main() -> None:
    """Print one line of JSON; a precision that fails has its error there and makes the exit status 1."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--hidden", type=int, default=1024)
    parser.add_argument("--vocabulary", type=int, default=32768)
    parser.add_argument("--fp8", nargs="*", default=["delayed", "tensorwise", "blockwise"])
    parser.add_argument(
        "--attention", default="transformer_engine", help="actor.attention (default transformer_engine)"
    )
    options = parser.parse_args()
    torch.backends.cuda.matmul.allow_tf32 = False
    join(ActorConfig())
    rows, failed = sequences(options.vocabulary), False
    table: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        write(folder, options.hidden, options.layers, options.vocabulary)
        truth = of_transformers(folder, torch.float32, rows)

        def compare(name: str, found: torch.Tensor) -> None:
            gap = (found - truth).abs()
            table[name] = {"mean": float(f"{gap.mean():.3e}"), "max": float(f"{gap.max():.3e}")}

        compare("transformers bfloat16", of_transformers(folder, torch.bfloat16, rows))
        exact: torch.Tensor | None = None
        cases: list[tuple[str, str, dict[str, Any]]] = [("float32", "float32", {}), ("bfloat16", "bfloat16", {})]
        cases += [(f"fp8 {recipe}", "bfloat16", {"fp8": recipe}) for recipe in options.fp8]
        for name, dtype, how in cases:
            try:
                found, gradient = of_actor(folder, dtype, rows, attention=options.attention, **how)
                compare(f"actor {name}", found)
                if exact is None:
                    exact = gradient
                error = ((gradient - exact).norm() / exact.norm()).item()
                table[f"actor {name}"]["gradient"] = float(f"{error:.3e}")
            except Exception as error:
                failed = True
                table[f"actor {name}"] = {"error": f"{type(error).__name__}: {error}"[:300]}
                traceback.print_exc(limit=-6)
    device = torch.cuda.get_device_name() if accelerator.on_gpu() else "CPU"
    print(json.dumps({"benchmark": "gpu_numerics", "device": device, "tokens": len(truth), "table": table}), flush=True)
    groups.shutdown()
    sys.exit(failed)


if __name__ == "__main__":
    main()
