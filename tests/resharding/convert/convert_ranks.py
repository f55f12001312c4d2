"""One rank of the conversion tests; its argument is a JSON list of cases.

"load": build the actor of a case, load a converted checkpoint with megatron-core, and write down which parameters are
not, bit by bit, what the Hugging Face folder gives this rank. "save": write a training checkpoint of the case's model.
"""

import json
import sys
from pathlib import Path

import torch
import torch.distributed as dist

from megatron_rl.actor import accelerator, checkpoint, groups
from megatron_rl.actor.config import ActorConfig, OptimizerConfig
from megatron_rl.actor.model import build_model
from megatron_rl.actor.trainer import Actor
from megatron_rl.resharding.families.architecture import read_architecture
from megatron_rl.resharding.folders.hf import read_hf_config
from megatron_rl.resharding.folders.load import load_hf


def load(case: dict, config: ActorConfig) -> None:
    from megatron.core import dist_checkpointing, parallel_state

    hf_config = read_hf_config(case["model"])
    chunks = build_model(read_architecture(hf_config), config, torch.float32)
    expected = {f"{i}/{n}": torch.empty_like(p) for i, c in enumerate(chunks) for n, p in c.named_parameters()}
    load_hf(case["model"], hf_config, config.sizes(), dist.get_rank(), expected)
    with torch.no_grad():
        for chunk in chunks:
            for p in chunk.parameters():
                p.fill_(7)
    metadata = {"dp_cp_group": parallel_state.get_data_parallel_group(with_context_parallel=True)}
    content = {f"model{i}": chunk.sharded_state_dict(metadata=metadata) for i, chunk in enumerate(chunks)}
    loaded = dist_checkpointing.load(content, case["checkpoint"])
    differ, count = [], 0
    for i, chunk in enumerate(chunks):
        chunk.load_state_dict(loaded[f"model{i}"])
        for name, p in chunk.named_parameters():
            mine, wanted = p, expected[f"{i}/{name}"]
            if "word_embeddings" in name or "output_layer" in name:  # padding is what the checkpoint's writer padded
                rows = min(hf_config["vocab_size"] - parallel_state.get_tensor_model_parallel_rank() * len(p), len(p))
                mine, wanted = p[:rows], wanted[:rows]
            differ += [] if torch.equal(mine, wanted) else [name]
            count += 1
    report = Path(f"{case['checkpoint']}-{dist.get_rank()}.json")
    report.write_text(json.dumps({"differ": differ, "count": count}))


def save(case: dict, config: ActorConfig) -> None:
    actor = Actor(read_hf_config(case["model"]), config, "float32", case["model"])
    actor.new_optimizer(OptimizerConfig(lr=0.0))
    checkpoint.save(actor, Path(case["checkpoint"]), "1", {"step": 1}, keep=1)


if __name__ == "__main__":
    accelerator.adapt()
    from megatron.core import parallel_state

    for case in json.loads(Path(sys.argv[1]).read_text()):
        config = ActorConfig(**case["actor"])
        groups.initialize(config, seed=0)
        (load if case["what"] == "load" else save)(case, config)
        parallel_state.destroy_model_parallel()
        dist.barrier()
    dist.destroy_process_group()
