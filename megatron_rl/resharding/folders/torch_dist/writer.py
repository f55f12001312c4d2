"""Laying out a torch_dist folder: files, chunks and metadata of a model, before a byte of weights is there. No torch.

One pair of files holds what one rank of the target sharding owns, as megatron-core's own writer would have it; the
format itself knows no sharding, so the checkpoint loads at any. A tensor that Megatron calls by two names, one
with Transformer Engine's layers and one without, is stored once and listed under both.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from math import gcd, prod
from pathlib import Path
from typing import Any

from megatron_rl.errors import InputError
from megatron_rl.resharding.families import canonical_tensors, family
from megatron_rl.resharding.families.table import EMBEDDING, Kind, dimensions
from megatron_rl.resharding.folders.stored import ITEMSIZES, PAGE, TORCH_DTYPES, NewFile, Place, Stored
from megatron_rl.resharding.folders.torch_dist.archive import object_archive, tensor_archive
from megatron_rl.resharding.folders.torch_dist.keys import (
    Position,
    global_shape,
    place_chunk,
    positions,
    rectangles,
    stacked_layers,
)
from megatron_rl.resharding.folders.torch_dist.pickles import Call, Global, Made, write_pickle
from megatron_rl.resharding.folders.torch_dist.reader import METADATA
from megatron_rl.resharding.layout import Layout, Padding, ParallelSizes, Segment, Shard, row_major
from megatron_rl.resharding.layouts.megatron import layer_places

BUCKETS = 2  # files per rank: the kernel lets one thread at a time write to a file
_FORMAT = {"sharded_backend": "torch_dist", "sharded_backend_version": 1, "common_backend": "torch"}
_METADATA = "torch.distributed.checkpoint.metadata"
_STORAGE = Global("torch.distributed.checkpoint.filesystem", "_StorageInfo")
Ints = tuple[int, ...]


def target_sizes(
    tensor: int, pipeline: int, expert: int, expert_tensor: int, first_stage: int = 0, last_stage: int = 0
) -> ParallelSizes:
    """These sizes on as few ranks as they need."""
    experts = max(expert * expert_tensor, 1)
    return ParallelSizes(
        tensor=tensor,
        pipeline=pipeline,
        expert=expert,
        expert_tensor=expert_tensor,
        data=experts // gcd(experts, max(tensor, 1)),
        first_stage=first_stage,
        last_stage=last_stage,
    )


@dataclass
class _Item:
    """An entry of the metadata's storage: a chunk of a tensor, or an object (no box)."""

    key: str
    start: Ints | None
    shape: Ints
    file: str
    offset: int
    length: int


class TorchDistWriter:
    """The files of a checkpoint of ``hf_config`` for ranks of these sizes, whose tensors have these dtypes.

    ``stored.places`` are relative to the folder. ``sources`` says where the canonical tensors are to be copied from, as
    far as they are copied as they are: then their bytes lie at positions between which the kernel copies fastest.
    Raises InputError naming two tensors that share one of Megatron's and differ in dtype.
    """

    def __init__(
        self,
        hf_config: Mapping[str, Any],
        sizes: ParallelSizes,
        dtypes: Mapping[str, str],
        sources: Mapping[str, Place] | None = None,
    ) -> None:
        self.hf_config, self.sizes, self._sources = hf_config, sizes, sources or {}
        self._buckets: dict[tuple[int, int], list[NewFile]] = {}
        self.items: list[_Item] = []
        self.tensors: dict[str, tuple[str, Ints]] = {}  # key -> dtype, global shape
        self.tensor_specs = canonical_tensors(hf_config)
        self._made_of: dict[str, str] = {}  # key -> one of its canonical tensors
        self._layers = layer_places(dimensions(family(hf_config), hf_config)["layers"], sizes)
        shapes: dict[str, Ints] = {}
        segments: list[Segment] = []
        padding: list[Padding] = []
        places: dict[str, Place] = {}
        found = positions(hf_config, stacked_layers(hf_config))
        for position in found:
            dtype = self._dtype(position, dtypes)
            ways = sizes.expert_tensor if position.instance.row.per_expert else sizes.tensor
            whole = (*position.stack, *global_shape(position.kind, position.parts, ways))
            self.tensors |= {key: (dtype, whole) for key in position.keys}
            for rank, chunk in rectangles(position.kind, position.parts, ways):
                start = (*position.index, *chunk.start)
                local = f"{position.keys[0]}@{','.join(map(str, start))}"
                inside, pads = place_chunk(position, chunk, local, 0)
                shapes[local] = (*(1,) * len(position.stack), *chunk.shape)
                place = self._add(position.keys, start, shapes[local], self._file(position, rank), dtype, inside)
                places[local] = place
                segments += inside
                padding += pads
        self._add_objects(found)
        order = {name: i for i, name in enumerate(self.tensor_specs)}
        segments.sort(key=lambda s: order[s.tensor])
        layout = Layout(self.tensor_specs, (Shard(shapes, tuple(segments), tuple(padding)),))
        self.stored = Stored(Path(), hf_config, layout, places)

    def _dtype(self, position: Position, dtypes: Mapping[str, str]) -> str:
        for name in position.instance.parts:
            other = self._made_of.setdefault(position.keys[0], name)
            if dtypes[other] != dtypes[name]:
                raise InputError(
                    f"Tensor {other} has dtype {dtypes[other]} and {name} {dtypes[name]}, and Megatron keeps both in "
                    f"{position.keys[0]}, which has one dtype: choose it (--dtype)."
                )
        return dtypes[self._made_of[position.keys[0]]]

    def _file(self, position: Position, rank: int) -> NewFile:
        """The file of the rank that owns a chunk: the emptier one of its buckets."""
        layer, instance = position.instance.layer, position.instance
        stage = self.sizes.pipeline - 1
        if 0 <= layer < len(self._layers):
            stage = self._layers[layer][0]
        elif EMBEDDING in instance.parts:
            stage = 0
        if instance.row.per_expert:
            experts = position.stack[-1] // self.sizes.expert
            rank += instance.expert // experts * self.sizes.expert_tensor
        number = stage * self.sizes.stage + rank
        buckets = self._buckets.setdefault(
            (stage, rank), [NewFile(f"__{number}_{bucket}.distcp") for bucket in range(BUCKETS)]
        )
        return min(buckets, key=lambda file: file.size)

    def _add(
        self, keys: tuple[str, ...], start: Ints, shape: Ints, file: NewFile, dtype: str, inside: list[Segment]
    ) -> Place:
        """Append a chunk to a file."""
        begin = file.size
        before, after = tensor_archive(dtype, shape, begin, self._residue(inside, dtype))
        data = begin + len(before)
        end = data + prod(shape) * ITEMSIZES[dtype]
        file.frames += [(begin, before), (end, after)]
        file.size = end + len(after)
        for key in keys:
            self.items.append(_Item(key, start, shape, file.path, begin, file.size - begin))
        return Place(Path(file.path), data, dtype)

    def _residue(self, inside: list[Segment], dtype: str) -> int:
        """Where in a page a chunk should begin, so that most of it begins where it does in its source."""
        if not inside:
            return 0
        largest = max(inside, key=lambda segment: prod(segment.shape))
        source = self._sources.get(largest.tensor)
        if source is None or source.dtype != dtype:
            return 0
        steps = row_major(self.tensor_specs[largest.tensor].index)
        first = sum(i * step for i, step in zip(largest.start, steps, strict=True))
        return (source.offset + (first - largest.offset) * ITEMSIZES[dtype]) % PAGE

    def _add_objects(self, found: list[Position]) -> None:
        """The empty extra state of every module that may ask for one: Megatron refuses to load without."""
        file = next(iter(self._buckets.values()))[0]
        content, begin = object_archive([None]), file.size
        file.frames.append((begin, content))
        file.size += len(content)
        keys: dict[str, None] = {}
        for position in found:
            if position.kind is Kind.VOCABULARY:
                continue
            where = f"shard_{_dots(position.index or (0,))}_{_dots(position.stack or (1,))}"
            modules = [key.rpartition(".")[0] for key in position.keys]
            modules += [m.replace(".linear_proj", ".core_attention") for m in modules if m.endswith(".linear_proj")]
            keys |= dict.fromkeys(f"{module}._extra_state/{where}" for module in modules)
        self.items += (_Item(key, None, (), file.path, begin, len(content)) for key in keys)

    @property
    def files(self) -> list[NewFile]:
        """The files that hold something."""
        return [file for buckets in self._buckets.values() for file in buckets if file.size]

    def small_files(self) -> dict[str, bytes]:
        """What makes the folder a checkpoint, by name; the metadata last, for without it the folder is none."""
        # A version below 2 would make Megatron-LM reorder queries, keys and values.
        common = object_archive({"checkpoint_version": 3.0})
        about = json.dumps({**_FORMAT, "common_backend_version": 1}).encode()
        return {"common.pt": common, "metadata.json": about, METADATA: self._metadata()}

    def _metadata(self) -> bytes:
        """torch.distributed.checkpoint.metadata.Metadata, pickled."""
        chunks: dict[str, list[Made]] = {key: [] for key in self.tensors}
        storage: dict[Made, Made] = {}
        entries: dict[str, Made] = {}
        for item in self.items:
            index: dict[str, Any] = {"fqn": item.key, "index": None}
            if item.start is None:
                entries[item.key] = Made(Global(_METADATA, "BytesStorageMetadata"), {})
            else:
                index["offset"] = _size(item.start)
                sizes = {"offsets": _size(item.start), "sizes": _size(item.shape)}
                chunks[item.key].append(Made(Global(_METADATA, "ChunkStorageMetadata"), sizes))
            at = {"relative_path": item.file, "offset": item.offset, "length": item.length}
            storage[Made(Global(_METADATA, "MetadataIndex"), index)] = Made(_STORAGE, at)
        for key, (dtype, shape) in self.tensors.items():
            content = {"properties": _properties(dtype), "size": _size(shape), "chunks": chunks[key]}
            entries[key] = Made(Global(_METADATA, "TensorStorageMetadata"), content)
        content = {"state_dict_metadata": entries, "planner_data": None, "storage_data": storage, "storage_meta": None}
        return write_pickle(Made(Global(_METADATA, "Metadata"), content))


def _size(shape: Ints) -> Call:
    return Call(Global("torch", "Size"), (shape,))


def _properties(dtype: str) -> Made:
    layout = Call(Global("torch.serialization", "_get_layout"), ("torch.strided",))
    memory = Call(Global(_METADATA, "_MEM_FORMAT_ENCODING"), (0,))
    state = (Global("torch", TORCH_DTYPES[dtype]), layout, False, memory, False)
    return Made(Global(_METADATA, "TensorProperties"), state)


def _dots(numbers: Ints) -> str:
    return ".".join(map(str, numbers))
