"""What a checkpoint of either kind holds, without looking at a config.json or at the weights."""

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from pathlib import Path

from megatron_rl.errors import InputError
from megatron_rl.resharding.hf_folder import read_header, weight_files
from megatron_rl.resharding.torch_dist.reader import is_torch_dist, read_metadata

_ITEMSIZES = {"F64": 8, "I64": 8, "I32": 4, "F32": 4, "I16": 2, "F16": 2, "BF16": 2}  # others have one byte


@dataclass(frozen=True)
class Item:
    """A tensor of a checkpoint; ``where`` says in how many chunks, or in which file it is."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    where: str

    @property
    def bytes(self) -> int:
        return prod(self.shape) * _ITEMSIZES.get(self.dtype, 1)


def contents(folder: Path) -> tuple[str, list[Item], list[str]]:
    """The kind of a checkpoint, its tensors, and the names of the objects stored with them.

    Raises InputError for a folder that is no checkpoint, or names a file that is missing or cut short.
    """
    if not folder.is_dir():
        raise InputError(f"{folder} is no folder. Name a Hugging Face model or a Megatron checkpoint.")
    if not is_torch_dist(folder):
        return "Hugging Face", list(_hf(folder)), []
    tensors, objects = read_metadata(folder)
    items = []
    for tensor in tensors.values():
        count = len(tensor.chunks)
        items.append(Item(tensor.key, tensor.dtype, tensor.shape, f"{count} chunk{'s' if count > 1 else ''}"))
    return "Megatron torch_dist", items, objects


def _hf(folder: Path) -> Iterator[Item]:
    for file in weight_files(folder):
        for name, entry in read_header(folder / file).items():
            yield Item(name, entry.dtype, entry.shape, file)
