"""Reading torch_dist folders: the metadata, and where every chunk's bytes lie. Imports no torch."""

import os
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from itertools import product
from math import prod
from pathlib import Path
from typing import Any

from megatron_rl.errors import InputError
from megatron_rl.resharding.families import canonical_tensors, predictor_layers
from megatron_rl.resharding.families.table import PREDICTORS
from megatron_rl.resharding.folders.stored import ITEMSIZES, Place, Stored, UnlikeError
from megatron_rl.resharding.folders.torch_dist.archive import find_tensor
from megatron_rl.resharding.folders.torch_dist.keys import (
    NOT_OF_HF,
    Position,
    Rectangle,
    by_key,
    place_chunk,
    positions,
    stacked_layers,
)
from megatron_rl.resharding.folders.torch_dist.pickles import read_pickle, whole_numbers
from megatron_rl.resharding.layout import Layout, Padding, Segment, Shard
from megatron_rl.resharding.proof import disjoint

METADATA = ".metadata"
_OPEN_FILES = 256  # a process may usually have 1024
Ints = tuple[int, ...]
_EMBEDDING = "embedding.word_embeddings.weight"
_PREDICTOR = "mtp."
_ADAPTERS = "adapters."
# What a trainer keeps besides the policy's weights: optimisers, models that are trained beside it, its reference.
_NO_WEIGHT = re.compile(r"critic\.|reward_model\.|reference\.|(chained_\d+\.)?optimizer\.")


@dataclass(frozen=True)
class Chunk:
    """One box of a global tensor, and the archive in a file that holds it."""

    start: Ints
    shape: Ints
    file: str
    offset: int
    length: int


@dataclass(frozen=True)
class GlobalTensor:
    """A tensor of the checkpoint as its metadata describe it."""

    key: str
    dtype: str
    shape: Ints
    chunks: tuple[Chunk, ...]


def is_torch_dist(folder: Path) -> bool:
    """True when a folder is, or was meant to be, a torch_dist checkpoint."""
    return any((folder / name).is_file() for name in (METADATA, "metadata.json"))


def _chunk(start: Any, shape: Any, at: dict[str, Any]) -> Chunk:
    """ValueError when one of its numbers is none, or the file would lie elsewhere."""
    file, (offset, length) = at["relative_path"], whole_numbers((at["offset"], at["length"]))
    if not isinstance(file, str) or not _inside(file):
        raise ValueError(f"{file!r} is no file of the folder")
    return Chunk(whole_numbers(start), whole_numbers(shape), file, offset, length)


@lru_cache(maxsize=1 << 12)
def _inside(file: str) -> bool:
    return not Path(file).is_absolute() and ".." not in Path(file).parts


def read_metadata(folder: Path) -> tuple[dict[str, GlobalTensor], dict[str, Chunk]]:
    """The tensors of a checkpoint, and its objects as chunks without dimensions.

    Raises InputError for a folder that is none, or whose metadata are damaged.
    """
    path = folder / METADATA
    if not path.is_file():
        raise InputError(
            f"{folder} has no {METADATA}: it is no torch_dist checkpoint, or writing it was cut short. Name the folder "
            f"that holds the .distcp files."
        )
    try:
        metadata = read_pickle(path.read_bytes())
        items = {(i.get("fqn"), i.get("offset")): at.__dict__ for i, at in metadata.storage_data.items()}
        tensors: dict[str, GlobalTensor] = {}
        objects: dict[str, Chunk] = {}
        for key, entry in metadata.state_dict_metadata.items():
            if entry.get("chunks") is None:
                objects[str(key)] = _chunk((), (), items[key, None])
                continue
            chunks, shape = [], whole_numbers(entry.size)
            for chunk in entry.chunks:
                at = items.get((key, chunk.offsets))
                if at is None or at.get("transform_descriptors"):
                    raise ValueError(f"the chunk of {key} at {list(chunk.offsets)} is nowhere, or it is transformed")
                chunks.append(_chunk(chunk.offsets, chunk.sizes, at))
                if not len(shape) == len(chunks[-1].start) == len(chunks[-1].shape):
                    raise ValueError(f"the chunk of {key} at {list(chunk.offsets)} has other dimensions")
            tensors[str(key)] = GlobalTensor(str(key), str(entry.properties.arguments[0]), shape, tuple(chunks))
    except (ValueError, AttributeError, KeyError, TypeError, IndexError) as error:
        raise InputError(f"{path} cannot be read ({error}): it is damaged, or of another format.") from error
    return tensors, objects


class ChunkFiles:
    """The .distcp files of a folder, kept open while chunks are found."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.handles: dict[str, tuple[int, int]] = {}
        self.paths: dict[str, Path] = {}

    def path(self, chunk: Chunk) -> Path:
        """Of the file that holds a chunk: one object for all of them."""
        if chunk.file not in self.paths:
            self.paths[chunk.file] = self.folder / chunk.file
        return self.paths[chunk.file]

    def open(self, key: str, chunk: Chunk) -> int:
        """The file that holds a chunk. Raises InputError naming it when it is missing or ends too early."""
        path = self.path(chunk)
        if chunk.file not in self.handles:
            if len(self.handles) == _OPEN_FILES:
                self.close()
            if not path.is_file():
                raise InputError(
                    f"{self.folder / METADATA} says that a chunk of {key} is in {chunk.file}, and there is no "
                    f"such file: the checkpoint is not complete."
                )
            self.handles[chunk.file] = os.open(path, os.O_RDONLY), path.stat().st_size
        handle, size = self.handles[chunk.file]
        if chunk.offset + chunk.length > size:
            raise InputError(
                f"{path} is cut short: the chunk of {key} at {list(chunk.start)} ends at byte "
                f"{chunk.offset + chunk.length}, the file at {size}."
            )
        return handle

    def locate(self, tensor: GlobalTensor, chunk: Chunk) -> Place:
        """Where a chunk's bytes begin. Raises InputError naming file and tensor when they are not there."""
        path, handle = self.path(chunk), self.open(tensor.key, chunk)
        try:
            dtype, shape, offset = find_tensor(handle, chunk.offset, chunk.length)
        except ValueError as error:
            raise InputError(
                f"{path} is damaged at the chunk of {tensor.key} at {list(chunk.start)}: {error}."
            ) from error
        if (dtype, shape) != (tensor.dtype, chunk.shape):
            raise InputError(
                f"{path} holds {dtype} {list(shape)} where {METADATA} says {tensor.dtype} {list(chunk.shape)}, for "
                f"the chunk of {tensor.key} at {list(chunk.start)}: they are not of one checkpoint."
            )
        return Place(path, offset, dtype)

    def __enter__(self) -> "ChunkFiles":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Close all; they open again when they are needed."""
        for handle, _ in self.handles.values():
            os.close(handle)
        self.handles.clear()


def open_torch_dist(
    folder: Path, hf_config: Mapping[str, Any], progress: Callable[[int], None] = lambda chunks: None
) -> Stored:
    """The weights in a torch_dist folder, however its writer was sharded; optimiser and random state are left alone.

    ``progress`` is told how many chunks more have been found. The result's ``hf_config`` counts multi-token prediction
    layers only if the checkpoint has any of their tensors. Raises InputError naming file and tensor for anything that
    is missing or damaged; UnlikeError where tensors are missing, unknown, or of another shape than ``hf_config`` says.
    """
    tensors, _ = read_metadata(folder)
    if any(key.startswith(_ADAPTERS) for key in tensors):
        raise InputError(
            f"{folder} holds adapters (actor.lora) without the weights that they belong to; a run's hf folder has both "
            "in one."
        )
    prefixes = (key.removesuffix(_EMBEDDING) for key in tensors if key.endswith(_EMBEDDING))
    prefix = next((p for p in prefixes if not _NO_WEIGHT.match(p)), "")  # some writers put "module." before every name
    weights = {k.removeprefix(prefix): t for k, t in tensors.items() if not _NO_WEIGHT.match(k)}
    if predictor_layers(hf_config) and not any(key.startswith(_PREDICTOR) for key in weights):
        hf_config = {**hf_config, PREDICTORS: 0}
    per_layer = stacked_layers(hf_config) and not any(
        k.startswith("decoder.layers.") and not k.split(".")[2].isdigit() for k in weights
    )
    found = by_key(positions(hf_config, stacked_layers(hf_config) and not per_layer))
    unknown = [key for key in weights if key not in found]
    for key in unknown:
        for end, why in NOT_OF_HF.items():
            if key.endswith(end):
                raise UnlikeError(f"{folder} holds tensor {key}: {why}.")
    if unknown:
        raise UnlikeError(
            f"{folder} holds tensor {unknown[0]}, which no {hf_config['model_type']} model with this config.json has"
            f" ({len(unknown)} such tensors)."
        )
    shapes: dict[str, Ints] = {}
    segments: list[Segment] = []
    padding: list[Padding] = []
    places: dict[str, Place] = {}
    filled: dict[int, str] = {}
    with ChunkFiles(folder) as files:
        for key, here in found.items():
            if key not in weights:
                continue
            tensor = weights[key]
            other = next((filled[id(position)] for position in here if id(position) in filled), None)
            if other is not None:
                _check_same(folder, tensor, weights[other])
                continue
            filled |= {id(position): key for position in here}
            _check(folder, tensor, here)
            at = {position.index: position for position in here}
            for chunk in tensor.chunks:
                local = f"{key}@{','.join(map(str, chunk.start))}"
                shapes[local], places[local] = chunk.shape, files.locate(tensor, chunk)
                progress(1)
                for inside, pads in _place(at, chunk, local):
                    segments += inside
                    padding += pads
    _check_apart(places)
    _check_complete(folder, weights, found, filled)
    order = {name: i for i, name in enumerate(canonical_tensors(hf_config))}
    segments.sort(key=lambda s: order[s.tensor])
    layout = Layout(canonical_tensors(hf_config), (Shard(shapes, tuple(segments), tuple(padding)),))
    return Stored(folder, hf_config, layout, places)


def _check_same(folder: Path, tensor: GlobalTensor, other: GlobalTensor) -> None:
    """Of two names of a weight, both have to mean the same bytes."""
    if tensor.chunks != other.chunks:
        raise InputError(
            f"{folder} holds {tensor.key} and {other.key}, which are two names of one weight, in two places: which is "
            f"meant cannot be known."
        )


def _check_apart(places: Mapping[str, Place]) -> None:
    """No two chunks are in one place of a file."""
    found: dict[Place, str] = {}
    for local, place in places.items():
        if (other := found.setdefault(place, local)) != local:
            raise InputError(
                f"{place.path.parent / METADATA} says that {other} and {local} are both at byte {place.offset} of "
                f"{place.path.name}: it is damaged."
            )


def _check(folder: Path, tensor: GlobalTensor, here: list[Position]) -> None:
    if tensor.dtype not in ITEMSIZES:
        raise InputError(
            f"Tensor {tensor.key} of {folder} has dtype {tensor.dtype}; only {', '.join(ITEMSIZES)} can be converted."
        )
    position = here[0]
    expected = (*position.stack, *position.whole)
    same = len(tensor.shape) == len(expected) and all(
        have == want or (position.padded and i == len(position.stack) and have >= want)
        for i, (have, want) in enumerate(zip(tensor.shape, expected, strict=False))
    )
    if not same:
        raise UnlikeError(
            f"Tensor {tensor.key} of {folder} has shape {list(tensor.shape)}, but config.json makes it "
            f"{list(expected)}: the model folder is not this checkpoint's."
        )
    ends = [tuple(a + n for a, n in zip(chunk.start, chunk.shape, strict=True)) for chunk in tensor.chunks]
    covered = sum(prod(chunk.shape) for chunk in tensor.chunks)
    inside = all(end <= whole for corner in ends for end, whole in zip(corner, tensor.shape, strict=True))
    boxes = [(chunk.start, end) for chunk, end in zip(tensor.chunks, ends, strict=True)]
    if not inside or covered != prod(tensor.shape) or not disjoint(boxes):
        raise InputError(
            f"The chunks of tensor {tensor.key} of {folder}, {covered} elements, do not make up its shape "
            f"{list(tensor.shape)}: the checkpoint is not complete, or damaged."
        )


def _check_complete(
    folder: Path, weights: Mapping[str, GlobalTensor], found: Mapping[str, list[Position]], filled: Mapping[int, str]
) -> None:
    missing = [p for here in found.values() for p in here if id(p) not in filled]
    if missing:
        name = next(iter(missing[0].instance.parts))
        raise UnlikeError(
            f"{folder} holds no tensor {' or '.join(missing[0].keys)}, of which {name} is made; it holds "
            f"{len(weights)} tensors."
        )


def _place(at: Mapping[Ints, Position], chunk: Chunk, local: str) -> Iterator[tuple[list[Segment], list[Padding]]]:
    """What a chunk holds of each of the positions that it stacks, of those that its tensor does, by their index."""
    depth = len(next(iter(at)))
    row, column = (*chunk.start[depth:], 0)[:2]
    inside = Rectangle(row, column, chunk.shape[depth:])
    ranges = (range(first, first + n) for first, n in zip(chunk.start, chunk.shape[:depth], strict=False))
    for number, index in enumerate(product(*ranges)):
        yield place_chunk(at[index], inside, local, number * prod(inside.shape))
