"""Builds real SGLang models, each loaded by SGLang itself, and asserts that their layout is learnt and can be pulled.

argv: folder, tensor-parallel size, expert-parallel size. Each folder inside is a model: config.json, model.safetensors
with its tensors, megatron.json with the sizes of the trainer to pull from. Under the environment of torch.distributed.
"""

import json
import os
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

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
from megatron_rl.resharding.layout import Layout, ParallelSizes, Shard
from megatron_rl.resharding.megatron import megatron_layout
from megatron_rl.resharding.plan import make_plan
from megatron_rl.resharding.proof import prove
from megatron_rl.resharding.sglang import EngineSizes, sglang_layout
from megatron_rl.resharding.traced import Learnt, fingerprint, learn
from tests.resharding.reference import megatron_shards

RANK = int(os.environ["RANK"])
DTYPE = torch.bfloat16


def build(folder: Path, tensor: int, expert: int, first: bool) -> torch.nn.Module:
    """One worker's model, its weights read by SGLang from the folder."""
    args = ServerArgs(
        model_path=str(folder),
        device="cpu",
        dtype="bfloat16",
        tp_size=tensor,
        ep_size=expert,
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
    load = LoadConfig(load_format="safetensors")
    loader = get_model_loader(load, config)
    return loader.load_model(model_config=config, device_config=DeviceConfig("cpu", RANK))


def places(shard: Shard, local: str, numbers: dict[str, int], config_tensors: dict[str, Any]) -> np.ndarray:
    """For every element of a local tensor: tensor number and flat position in the tensor, -1 for padding."""
    size = int(np.prod(shard.locals[local]))
    found = np.full((size, 2), -1, dtype=np.int64)
    for s in shard.segments:
        if s.local != local:
            continue
        index = config_tensors[s.tensor].index
        grid = np.indices(s.shape).reshape(len(index), -1)
        at = s.offset + sum(g * step for g, step in zip(grid, s.strides, strict=True))
        canonical = np.ravel_multi_index([g + b for g, b in zip(grid, s.start, strict=True)], index)
        assert (found[at, 0] == -1).all()
        found[at, 0], found[at, 1] = numbers[s.tensor], canonical
    return found


def compare(learnt: Learnt, static: Shard, tensors: dict[str, Any], config: dict[str, Any]) -> None:
    """Element by element, what was learnt and what the table says."""
    numbers = {name: i for i, name in enumerate(tensors)}
    derived = {name for name in learnt.shard.locals if name.endswith((".w_kc", ".w_vc"))}
    assert learnt.shard.locals.keys() - derived == static.locals.keys()
    for local, shape in static.locals.items():
        assert learnt.shard.locals[local] == shape, (local, shape, learnt.shard.locals[local])
        a, b = (places(shard, local, numbers, tensors) for shard in (learnt.shard, static))
        assert (a == b).all(), local


def check(folder: Path, tensor: int, expert: int, first: bool) -> str:
    config = json.loads((folder / "config.json").read_text())
    model = build(folder, tensor, expert, first)
    tensors = canonical_tensors(config)
    before = {name: p.detach().clone() for name, p in model.state_dict().items()}
    address = fingerprint(model)
    began = time.perf_counter()
    learnt = learn(model, model.load_weights, tensors, DTYPE)
    seconds = time.perf_counter() - began
    assert fingerprint(model) == address
    assert all(torch.equal(p, before[name]) for name, p in model.state_dict().items())

    static = sglang_layout(config, EngineSizes(tensor=tensor, expert=expert))
    compare(learnt, static.ranks[RANK], tensors, config)

    sizes = ParallelSizes(**json.loads((folder / "megatron.json").read_text()))
    source = megatron_layout(config, sizes)
    ranks = megatron_shards(load_file(folder / "model.safetensors"), config, sizes)
    unused = learnt.unread
    plan_source = replace(source, unused=frozenset())
    destination = Layout(dict(tensors), (learnt.shard,), unused)
    plan = make_plan(plan_source, destination)
    prove(plan, plan_source, destination)
    snapshot = {name: p.clone() for name, p in learnt.parameters.items()}
    for name, parameter in learnt.parameters.items():
        p = parameter.view(-1)
        padding = [(x.offset, x.size) for x in learnt.shard.padding if x.local == name]
        kept = [p[a : a + n].clone() for a, n in padding]
        p.fill_(torch.nan)
        for (a, n), values in zip(padding, kept, strict=True):
            p[a : a + n] = values
    flat = {(r, name): t.flatten() for r, held in enumerate(ranks) for name, t in held.items()}
    pull(plan.copies, flat, {name: p.view(-1) for name, p in learnt.parameters.items()})
    for name, p in learnt.parameters.items():
        assert torch.equal(p.view(torch.uint8), snapshot[name].view(torch.uint8)), name
    assert all(torch.equal(p, before[name]) for name, p in model.state_dict().items())
    return (
        f"{folder.name} tp{tensor} ep{expert}: {len(tensors)} tensors, {len(learnt.shard.locals)} parameters, "
        f"{len(learnt.shard.segments)} segments, {len(unused)} unread, {len(plan.copies)} copies, "
        f"learnt in {seconds * 1e3:.1f} ms"
    )


if __name__ == "__main__":
    root, tensor, expert = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    lines = [check(folder, tensor, expert, i == 0) for i, folder in enumerate(sorted(root.iterdir()))]
    print("\n".join(lines))
