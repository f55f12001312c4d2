"""Builds real SGLang models, each loaded by SGLang itself, and asserts that their layout is learnt and can be pulled.

argv: folder, tensor-, expert- and pipeline-parallel size. Each folder inside is a model: config.json, model.safetensors
with its tensors, megatron.json with the sizes of the trainer to pull from. Under the environment of torch.distributed.
"""

import json
import math
import os
import sys
import time
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from sglang.srt.configs.device_config import DeviceConfig
from sglang.srt.configs.load_config import LoadConfig
from sglang.srt.configs.model_config import ModelConfig
from sglang.srt.distributed import bootstrap
from sglang.srt.layers.moe import initialize_moe_config
from sglang.srt.model_loader.loader import get_model_loader
from sglang.srt.runtime_context import SpawnRanks, get_device, publish
from sglang.srt.server_args import ServerArgs

from megatron_rl.resharding.execute import pull
from megatron_rl.resharding.families import canonical_tensors
from megatron_rl.resharding.layout import Layout, ParallelSizes, Shard, TensorSpec
from megatron_rl.resharding.layouts.learnt.learn import Learnt, fingerprint, learn
from megatron_rl.resharding.layouts.megatron import megatron_layout
from megatron_rl.resharding.layouts.sglang import EngineSizes, sglang_layout
from megatron_rl.resharding.plan import make_plan
from megatron_rl.resharding.proof import prove
from megatron_rl.system.tcp_store import inherited_listener
from tests.resharding.reference import megatron_shards

if listener := inherited_listener():  # SGLang listens at its port itself
    listener.close()
RANK = int(os.environ["RANK"])
DTYPE = torch.bfloat16


def build(folder: Path, sizes: EngineSizes, first: bool, weights: str = "safetensors") -> torch.nn.Module:
    """One worker's model, its weights read by SGLang from the folder, or "dummy" ones."""
    args = ServerArgs(
        model_path=str(folder),
        device="cpu",
        dtype="bfloat16",
        tp_size=sizes.tensor,
        ep_size=sizes.expert,
        pp_size=sizes.pipeline,
        attention_backend="torch_native",
        disable_shared_experts_fusion=True,
        skip_tokenizer_init=True,
        mem_fraction_static=0.1,
    )
    publish(args, role="scheduler", ranks=SpawnRanks(world_rank=RANK, gpu_id=RANK))
    initialize_moe_config()
    config = ModelConfig.from_server_args(args)
    if first:
        port = int(os.environ["MASTER_PORT"])
        bootstrap.init_parallel_runtime(server_args=args, device=get_device().device, dist_port=port)
    bootstrap.init_layer_runtime(model_config=config)
    loader = get_model_loader(LoadConfig(load_format=weights), config)
    return loader.load_model(model_config=config, device_config=DeviceConfig("cpu", RANK))


def places(shard: Shard, tensors: dict[str, TensorSpec]) -> dict[str, np.ndarray]:
    """Local name -> [elements, 2]: number and flat position of the canonical tensor's element; -1 for padding."""
    numbers = {name: i for i, name in enumerate(tensors)}
    found = {n: np.full((math.prod(shape), 2), -1, dtype=np.int64) for n, shape in shard.locals.items()}
    for s in shard.segments:
        index = tensors[s.tensor].index
        grid = np.indices(s.shape).reshape(len(index), -1)
        at = s.offset + sum(g * step for g, step in zip(grid, s.strides, strict=True))
        assert (found[s.local][at] == -1).all()
        canonical = np.ravel_multi_index([g + b for g, b in zip(grid, s.start, strict=True)], index)
        found[s.local][at] = np.stack([np.full_like(canonical, numbers[s.tensor]), canonical], axis=1)
    return found


def compare(learnt: Learnt, table: Shard, tensors: dict[str, TensorSpec]) -> None:
    """Element by element, what was learnt and what the table of SGLang's parameters says."""
    found, expected = places(learnt.shard, tensors), places(table, tensors)
    derived = {name for name in found if name.endswith((".w_kc", ".w_vc"))}  # latent attention's, no parameters
    assert len(derived) == 2 * sum(name.endswith("kv_b_proj.weight") for name in expected)
    assert found.keys() - derived == expected.keys(), (found.keys() - derived) ^ expected.keys()
    for local, elements in expected.items():
        assert learnt.shard.locals[local] == table.locals[local], local
        assert (found[local] == elements).all(), local


def check(folder: Path, engine: EngineSizes, first: bool) -> str:
    config = json.loads((folder / "config.json").read_text())
    tensors = canonical_tensors(config)
    model = build(folder, engine, first)
    loaded = {name: p.clone() for name, p in model.state_dict().items()}
    address = fingerprint(model)
    began = time.perf_counter()
    learnt = learn(model, model.load_weights, tensors, DTYPE)
    seconds = time.perf_counter() - began
    assert fingerprint(model) == address
    assert all(torch.equal(p, loaded[name]) for name, p in model.state_dict().items())
    compare(learnt, sglang_layout(config, engine).ranks[RANK], tensors)

    trainer = ParallelSizes(**json.loads((folder / "megatron.json").read_text()))
    source = megatron_layout(config, trainer)
    destination = Layout(tensors, (learnt.shard,), learnt.unread)
    plan = make_plan(source, destination)
    prove(plan, source, destination)
    held = megatron_shards(load_file(folder / "model.safetensors"), config, trainer)
    here = {name: p.view(-1) for name, p in learnt.parameters.items()}
    expected = {name: p.clone() for name, p in here.items()}
    for p in here.values():
        p.fill_(torch.nan)
    for x in learnt.shard.padding:
        here[x.local][x.offset : x.offset + x.size] = 0
    pull(plan.copies, {(r, name): t.flatten() for r, rank in enumerate(held) for name, t in rank.items()}, here)
    for name, p in here.items():
        assert torch.equal(p.view(torch.uint8), expected[name].view(torch.uint8)), name
    assert all(torch.equal(p, loaded[name]) for name, p in model.state_dict().items())
    return (
        f"{folder.name}: {trainer} -> {engine}: {len(tensors)} tensors, {len(here)} parameters, "
        f"{len(learnt.shard.segments)} segments, {len(plan.copies)} copies, learnt in {seconds * 1e3:.1f} ms"
    )


if __name__ == "__main__":
    root, (tp, ep, pp) = Path(sys.argv[1]), map(int, sys.argv[2:])
    lines = [
        check(folder, EngineSizes(tensor=tp, expert=ep, pipeline=pp), i == 0)
        for i, folder in enumerate(sorted(root.iterdir()))
    ]
    print("\n".join(lines))
