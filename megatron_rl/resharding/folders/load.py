"""Reading Hugging Face folders: safetensors mapped into memory, and loaded into a sharded model through a plan."""

import mmap
import warnings
from collections.abc import Mapping
from math import prod
from pathlib import Path
from typing import Any

import torch

from megatron_rl.resharding.execute import flat, pull
from megatron_rl.resharding.families.table import SCORE, scalar_head
from megatron_rl.resharding.folders.hf import FLOATS, model_config, open_stored, refuse_quantised
from megatron_rl.resharding.folders.stored import TORCH_DTYPES, Stored
from megatron_rl.resharding.layout import Layout, Padding, ParallelSizes, Shard
from megatron_rl.resharding.layouts.megatron import megatron_layout
from megatron_rl.resharding.layouts.transformers import files_layout
from megatron_rl.resharding.plan import make_plan
from megatron_rl.resharding.proof import check_parameters, prove

DTYPES: dict[str, torch.dtype] = {name: getattr(torch, TORCH_DTYPES[name]) for name in FLOATS}  # safetensors' names


def open_hf_folder(path: str | Path, hf_config: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    """Every canonical tensor of a folder of safetensors files, flat and memory-mapped: pages are read when touched.

    Raises InputError naming file and tensor for a folder that does not hold the model (``hf.open_stored``), and for one
    whose weights are quantised.
    """
    return _mapped(_open(path, hf_config))


def _open(path: str | Path, hf_config: Mapping[str, Any]) -> Stored:
    refuse_quantised(Path(path), hf_config)
    return open_stored(Path(path), hf_config)


def _mapped(stored: Stored) -> dict[str, torch.Tensor]:
    memories: dict[Path, mmap.mmap] = {}
    tensors = {}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given buffer is not writable")
        for name, spec in stored.layout.tensors.items():
            place = stored.places[name]
            if place.path not in memories:
                with place.path.open("rb") as file:
                    memories[place.path] = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            memory, dtype = memories[place.path], DTYPES[place.dtype]
            tensors[name] = torch.frombuffer(memory, dtype=dtype, count=spec.elements, offset=place.offset)
    return tensors


def load_hf(
    path: str | Path,
    hf_config: Mapping[str, Any],
    sizes: ParallelSizes,
    rank: int,
    parameters: Mapping[str, torch.Tensor],
    *,
    fused_norms: bool = False,
    grouped_experts: bool = False,
) -> None:
    """Fill one Megatron rank's parameters (contiguous, by local name) from a Hugging Face folder.

    The rank reads its own segments only, through a proved plan; vocabulary padding becomes zero. Dtypes are cast to
    the parameters'. A model with a scalar head also takes the decoder of a language model; its head is then zero.
    Raises InputError for a folder that does not hold the model (``open_hf_folder``), ProofError for parameters that are
    not those of the layout.
    """
    headless = scalar_head(hf_config) and not scalar_head(own := model_config(path))
    opened = _open(path, own if headless else hf_config)
    stored = _mapped(opened)
    if not headless:
        hf_config = opened.hf_config
    shard = megatron_layout(hf_config, sizes, fused_norms=fused_norms, grouped_experts=grouped_experts).ranks[rank]
    check_parameters(shard, {name: tuple(p.shape) for name, p in parameters.items()}, f"rank {rank}")
    if headless:
        shard = _without_score(shard)
    files = files_layout(opened.hf_config)
    needed = {segment.tensor for segment in shard.segments}
    tensors = {name: spec for name, spec in files.tensors.items() if name in needed}
    segments = tuple(s for s in files.ranks[0].segments if s.tensor in needed)
    source = Layout(tensors, (Shard({name: spec.shape for name, spec in tensors.items()}, segments),))
    destination = Layout(tensors, (shard,))
    plan = make_plan(source, destination)
    prove(plan, source, destination)
    local = {name: flat(p) for name, p in parameters.items()}
    pull(plan.copies, {(0, name): stored[name] for name in tensors}, local)
    for pad in shard.padding:
        local[pad.local][pad.offset : pad.offset + pad.size] = 0


def _without_score(shard: Shard) -> Shard:
    """The shard with padding, which is zeroed, where the scalar head lies."""
    score = [s for s in shard.segments if s.tensor == SCORE]
    pads = tuple(Padding(s.local, s.offset, prod(s.shape)) for s in score)
    rest = tuple(s for s in shard.segments if s.tensor != SCORE)
    return Shard(shard.locals, rest, (*shard.padding, *pads))
