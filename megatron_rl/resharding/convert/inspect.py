"""What a checkpoint of either kind holds, without looking at a config.json or at the weights."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from math import prod
from pathlib import Path

from megatron_rl.errors import InputError
from megatron_rl.resharding.folders.hf import read_headers
from megatron_rl.resharding.folders.torch_dist.reader import ChunkFiles, GlobalTensor, is_torch_dist, read_metadata

_ITEMSIZES = {"F64": 8, "I64": 8, "I32": 4, "F32": 4, "I16": 2, "F16": 2, "BF16": 2}  # torch_dist's others have 1


@dataclass(frozen=True)
class Item:
    """A tensor of a checkpoint; ``where`` says in how many chunks, or in which file it is."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    bytes: int
    where: str


def contents(folder: Path) -> tuple[str, list[Item], list[str]]:
    """The kind of a checkpoint, its tensors, and the names of the objects stored with them.

    A tensor with two names is one item. Raises InputError for a folder that is no checkpoint, and naming a file that is
    missing, cut short, or not what the index says.
    """
    if not folder.is_dir():
        raise InputError(f"{folder} is no folder. Name a Hugging Face model or a Megatron checkpoint.")
    if not is_torch_dist(folder):
        return "Hugging Face", list(_hf(folder)), []
    tensors, objects = read_metadata(folder)
    with ChunkFiles(folder) as files:
        for tensor in tensors.values():
            for chunk in tensor.chunks:
                files.open(tensor.key, chunk)
        for key, chunk in objects.items():
            files.open(key, chunk)
    return "Megatron torch_dist", list(_torch_dist(tensors.values())), list(objects)


def _torch_dist(tensors: Iterable[GlobalTensor]) -> Iterator[Item]:
    names: dict[object, list[GlobalTensor]] = {}
    for tensor in tensors:
        names.setdefault(tensor.chunks or tensor.key, []).append(tensor)
    for tensor, *others in names.values():
        where = f"{len(tensor.chunks)} chunk{'s' if len(tensor.chunks) > 1 else ''}"
        where += "".join(f", also {other.key}" for other in others)
        size = prod(tensor.shape) * _ITEMSIZES.get(tensor.dtype, 1)
        yield Item(tensor.key, tensor.dtype, tensor.shape, size, where)


def _hf(folder: Path) -> Iterator[Item]:
    for path, header in read_headers(folder).items():
        for name, entry in header.items():
            yield Item(name, entry.dtype, entry.shape, entry.end - entry.begin, path.name)
