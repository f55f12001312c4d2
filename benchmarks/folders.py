"""Reading what folders of a mixture with 12,288 experts hold: python -m benchmarks.folders [--shards N]

48 layers of 256 experts with matrices of a few numbers, so that what is timed is names, shapes and places: the check of
a Hugging Face folder's headers (37,299 tensors in 100 files), its conversion to torch_dist, and the reading of that
folder's metadata and chunks. On one core.
"""

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from benchmarks.plan import timed
from megatron_rl.cli import main as megatron_rl
from megatron_rl.resharding.families import canonical_tensors
from megatron_rl.resharding.folders.check import folder_problems
from megatron_rl.resharding.folders.contents import file_name
from megatron_rl.resharding.folders.hf import INDEX
from megatron_rl.resharding.folders.torch_dist.reader import open_torch_dist

CONFIG: dict[str, Any] = {
    "model_type": "qwen3_moe",
    "architectures": ["Qwen3MoeForCausalLM"],
    "vocab_size": 64,
    "hidden_size": 8,
    "intermediate_size": 16,
    "moe_intermediate_size": 4,
    "num_hidden_layers": 48,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 4,
    "num_experts": 256,
    "num_experts_per_tok": 8,
    "norm_topk_prob": True,
    "max_position_embeddings": 128,
    "tie_word_embeddings": False,
    "dtype": "float32",
}


def write(folder: Path, shards: int) -> None:
    """The model in so many files, every tensor zero."""
    names = list(canonical_tensors(CONFIG).items())
    size = -(-len(names) // shards)
    where: dict[str, str] = {}
    for number in range(shards):
        file = file_name(number + 1, shards)
        part = dict(names[number * size : (number + 1) * size])
        save_file({name: np.zeros(spec.shape, np.float32) for name, spec in part.items()}, folder / file)
        where |= dict.fromkeys(part, file)
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": where}), encoding="utf-8")
    (folder / "config.json").write_text(json.dumps(CONFIG), encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--shards", type=int, default=100)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        hf, megatron = Path(scratch) / "hf", Path(scratch) / "megatron"
        hf.mkdir()
        write(hf, options.shards)
        (_, problems) = timed("check of the headers", lambda: folder_problems(hf))
        assert not problems, problems
        timed("hf-to-megatron", lambda: megatron_rl(["convert", "hf-to-megatron", str(hf), str(megatron)]))
        stored = timed("reading of torch_dist", lambda: open_torch_dist(megatron, CONFIG))
        assert len(stored.layout.tensors) == len(canonical_tensors(CONFIG))
        timed("verify", lambda: megatron_rl(["convert", "verify", str(hf), str(megatron)]))


if __name__ == "__main__":
    main()
