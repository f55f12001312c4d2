"""mbridge's side of benchmarks/convert.py: python mbridge_convert.py MODEL FOLDER, with mbridge importable.

One rank on the CPU. mbridge loads the Hugging Face folder into a Megatron model, which megatron-core saves as a
torch_dist checkpoint; megatron-core loads that again, and mbridge writes a Hugging Face folder. The last line of the
output has the seconds of both ways, without imports and building the model.
"""

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from megatron.core import dist_checkpointing, parallel_state

from megatron_rl.actor import accelerator, groups
from megatron_rl.actor.config import ActorConfig
from megatron_rl.actor.model import build_model
from megatron_rl.resharding.families.architecture import read_architecture
from megatron_rl.resharding.folders.hf import read_hf_config

# mbridge knows Transformer Engine's names of the norms; without it Megatron has these.
NORMS = {"input_layernorm.weight": "input_layernorm", "pre_mlp_layernorm.weight": "post_attention_layernorm"}


def open_bridge(model: Path) -> Any:
    """mbridge for a model whose layers are Megatron's own. The parallel state must be there."""
    from mbridge import AutoBridge

    bridge = AutoBridge.from_pretrained(str(model))
    known = bridge._weight_name_mapping_mcore_to_hf

    def names(name: str) -> list[str]:
        for ours, theirs in NORMS.items():
            if name.endswith("." + ours):
                return [f"model.layers.{name.split('.')[2]}.{theirs}.weight"]
        return known(name)  # type: ignore[no-any-return]

    bridge._weight_name_mapping_mcore_to_hf = names
    return bridge


def main(model: Path, folder: Path) -> None:
    os.environ |= {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}
    accelerator.adapt()
    actor = ActorConfig(threads=len(os.sched_getaffinity(0)))
    groups.initialize(actor, seed=0)
    bridge = open_bridge(model)
    chunks = build_model(read_architecture(read_hf_config(model)), actor, torch.bfloat16)
    group = {"dp_cp_group": parallel_state.get_data_parallel_group(with_context_parallel=True)}
    checkpoint, back = folder / "peer_megatron", folder / "peer_back"
    checkpoint.mkdir()
    seconds = {}
    started = time.perf_counter()
    bridge.load_weights(chunks, str(model))
    dist_checkpointing.save({"model": chunks[0].sharded_state_dict(metadata=group)}, str(checkpoint))
    seconds["hf-to-megatron"] = time.perf_counter() - started
    started = time.perf_counter()
    loaded = dist_checkpointing.load({"model": chunks[0].sharded_state_dict(metadata=group)}, str(checkpoint))
    chunks[0].load_state_dict(loaded["model"])
    bridge.save_weights(chunks, str(back))
    seconds["megatron-to-hf"] = time.perf_counter() - started
    print(json.dumps(seconds))
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
