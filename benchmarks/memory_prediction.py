"""Predicted against measured peak memory of a trainer rank on this machine's CPU: shapes x layouts.

    OMP_NUM_THREADS=1 python -m benchmarks.memory_prediction [--shapes dense,wide,mixture] [--layouts dp2,tp2,pp2]
                                                             [--recompute none] [--dtype float32]

Real ranks, started here, meet over gloo and make two updates with a reference that is scored, on completions of
different lengths that share their prompts. Measured is each rank's largest resident set from the building of the model
on, less what it was before (Python, its libraries, the groups). Predicted is ``settings.foresight.memory`` with the
micro-batches' tokens. The fullest rank is printed.
"""

import argparse
import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

from benchmarks.gpu_shapes import COMMON
from benchmarks.gpu_train import RandomActor, objective
from megatron_rl.config import Config
from megatron_rl.resharding.families.architecture import read_architecture
from megatron_rl.settings.foresight.hardware import on_cpu
from megatron_rl.settings.foresight.memory import rank_memory
from megatron_rl.system import machine

SMALL = {"head_dim": 64, "num_attention_heads": 8, "num_key_value_heads": 2, "tie_word_embeddings": True}
SHAPES: dict[str, dict[str, Any]] = {
    "dense": COMMON
    | SMALL
    | {"hidden_size": 512, "intermediate_size": 1536, "num_hidden_layers": 8, "vocab_size": 8192},
    "wide": COMMON
    | SMALL
    | {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "tie_word_embeddings": False}
    | {"hidden_size": 512, "intermediate_size": 1024, "num_hidden_layers": 4, "vocab_size": 65536},
    "mixture": COMMON
    | SMALL
    | {"model_type": "qwen3_moe", "architectures": ["Qwen3MoeForCausalLM"], "hidden_size": 384, "vocab_size": 8192}
    | {"intermediate_size": 1024, "num_hidden_layers": 6, "num_experts": 16, "num_experts_per_tok": 2}
    | {"moe_intermediate_size": 384, "norm_topk_prob": True, "decoder_sparse_step": 1, "mlp_only_layers": []},
}
LAYOUTS: dict[str, dict[str, Any]] = {
    "one": {},
    "dp2": {"data_parallel": 2},
    "tp2": {"tensor_parallel": 2, "sequence_parallel": True},
    "pp2": {"pipeline_parallel": 2},
    "cp2": {"context_parallel": 2},
    "ep2": {"data_parallel": 2, "expert_parallel": 2},
}
TOKENS, PROMPT, GROUPS, GROUP = 2048, 64, 4, 4


def configured(layout: str, recompute: str, dtype: str) -> Config:
    """What a rank is built by."""
    config = Config()
    config.model.dtype, config.algorithm.kl_coef = dtype, 0.01
    config.data.max_prompt_tokens, config.rollout.max_new_tokens = PROMPT, 512  # twice the mean
    config.actor.recompute, config.actor.micro_batch_tokens = recompute, TOKENS
    for name, value in LAYOUTS[layout].items():
        setattr(config.actor, name, value)
    return config


def completions(vocab: int) -> list[Any]:
    """Groups of completions of one prompt, 128 to 384 tokens long."""
    import numpy as np

    from megatron_rl.actor.rows import TrainingRow

    random = np.random.default_rng(0)
    made: list[TrainingRow] = []
    for _ in range(GROUPS):
        prompt = random.integers(0, vocab, PROMPT)
        for _ in range(GROUP):
            tokens = np.concatenate([prompt, random.integers(0, vocab, random.integers(128, 384))])
            weight = np.zeros(len(tokens), np.float32)
            weight[PROMPT:] = 1e-4
            columns = {
                "weight": weight,
                "old": np.full(len(tokens), -np.log(vocab), np.float32),
                "advantage": np.full(len(tokens), random.normal(), np.float32),
            }
            made.append(TrainingRow(tokens, columns, prompt=PROMPT, sample=len(made)))
    return made


def rank(shape: str, layout: str, recompute: str, dtype: str) -> dict[str, Any]:
    """One rank's figures, in MB."""
    from megatron_rl.actor import groups

    config, hf_config = configured(layout, recompute, dtype), SHAPES[shape]
    groups.initialize(config.actor, 0)
    from megatron.core import parallel_state

    warm(hf_config, config)
    before = _status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the largest resident set is now the present one
    actor = RandomActor(hf_config, config.actor, dtype, "")
    actor.new_optimizer(config.actor.optimizer)
    actor.freeze_reference()
    batches = actor.pack(completions(hf_config["vocab_size"]))
    for _ in range(2):
        with actor.reference():
            actor.score(batches, "ref")
        actor.update(batches, objective, lr=1e-6)
    peak = _status("VmHWM") - before
    tokens = max(batch.inputs.shape[1] for batch in batches)
    stage = parallel_state.get_pipeline_model_parallel_rank()
    found = rank_memory(config, read_architecture(hf_config), on_cpu(1.0), stage, tokens)
    groups.barrier()
    groups.shutdown()
    parts = {name: round(size / 1e6, 1) for name, size in found.parts().items() if size}
    return {"measured": peak / 1e6, "predicted": found.peak / 1e6, "tokens": tokens, "parts": parts}


def warm(hf_config: dict[str, Any], config: Config) -> None:
    """Import what an actor imports, and have the libraries allocate what is theirs."""
    tiny = hf_config | {"hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 2, "vocab_size": 512}
    tiny |= {"moe_intermediate_size": 64} if "num_experts" in tiny else {}
    actor = RandomActor(tiny, config.actor, config.model.dtype, "")
    actor.new_optimizer(config.actor.optimizer)
    actor.update(actor.pack(completions(512)[:8]), objective, lr=1e-6)


def _status(name: str) -> int:
    """Bytes of a line of /proc/self/status."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(name)).split()[1]) * 1024


def measure(shape: str, layout: str, recompute: str, dtype: str) -> dict[str, Any]:
    """Start the ranks; the fullest one's figures."""
    world = configured(layout, recompute, dtype).actor.sizes().world
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    env = os.environ | {"WORLD_SIZE": str(world), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    env |= {"TORCHDYNAMO_DISABLE": "1"} | {name: str(size) for name, size in machine.KEPT.items()}
    command = [sys.executable, "-W", "ignore", "-m", "benchmarks.memory_prediction", "--rank"]
    command += ["--shapes", shape, "--layouts", layout, "--recompute", recompute, "--dtype", dtype]
    ranks = [
        subprocess.Popen(
            command, env=env | {"RANK": str(i), "LOCAL_RANK": str(i)}, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        for i in range(world)
    ]
    said = [process.communicate() for process in ranks]
    for process, (_, error) in zip(ranks, said, strict=True):
        if process.returncode:
            raise SystemExit(error.decode()[-3000:])
    found: list[dict[str, Any]] = [json.loads(out.splitlines()[-1]) for out, _ in said]
    return max(found, key=lambda each: float(each["measured"]))


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", default="dense,wide,mixture")
    parser.add_argument("--layouts", default="dp2,tp2,pp2")
    parser.add_argument("--recompute", default="none")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--parts", action="store_true", help="print the predicted parts, too")
    parser.add_argument("--rank", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.rank:
        print(json.dumps(rank(options.shapes, options.layouts, options.recompute, options.dtype)), flush=True)
        return
    print("| shape | layout | recompute | dtype | measured MB | predicted MB | off by |\n|---|---|---|---|---|---|---|")
    for shape in options.shapes.split(","):
        for layout in options.layouts.split(","):
            for recompute in options.recompute.split(","):
                found = measure(shape, layout, recompute, options.dtype)
                off = 100 * (found["predicted"] / found["measured"] - 1)
                row = [shape, layout, recompute, options.dtype, f"{found['measured']:,.0f}"]
                print(f"| {' | '.join(row)} | {found['predicted']:,.0f} | {off:+.1f} % |", flush=True)
                if options.parts:
                    print(found["tokens"], found["parts"], flush=True)


if __name__ == "__main__":
    main()
