"""The safetensors file format: headers, read and written. No torch.

https://github.com/huggingface/safetensors#format: a length, a JSON header, the tensors' bytes.
"""

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from math import prod
from pathlib import Path
from typing import NamedTuple

from megatron_rl.errors import InputError, named
from megatron_rl.resharding.folders.stored import ITEMSIZES, PAGE
from megatron_rl.system.files import not_content

_LONGEST_HEADER = 100_000_000  # bytes, as the safetensors library has it


class Entry(NamedTuple):
    """A tensor in a safetensors file: bytes [begin, end) of the file."""

    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


def _whole(numbers: object) -> tuple[int, ...]:
    """A list from JSON as whole numbers that are not negative; ValueError when it is none."""
    if not isinstance(numbers, list) or not all(type(n) is int and n >= 0 for n in numbers):
        raise ValueError(f"{numbers!r} are no whole numbers")
    return tuple(numbers)


def read_header(path: Path) -> dict[str, Entry]:
    """A safetensors file's tensors.

    Raises InputError naming file and tensor when the header does not fit the file, whose every byte behind the header
    has to belong to one tensor.
    """
    try:
        if wrong := not_content(path):
            raise InputError(wrong)
        return _read_header(path)
    except OSError as error:
        raise InputError(named(error)) from error


def _read_header(path: Path) -> dict[str, Entry]:
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > size - 8:
            raise InputError(
                f"{path} is cut short: its header should have {length} bytes, the file has {size}. Fetch it again."
            )
        if length > _LONGEST_HEADER:
            raise InputError(f"{path} is no safetensors file: its header would have {length} bytes.")
        try:
            header = json.loads(file.read(length))
            header.pop("__metadata__", None)
        except (ValueError, RecursionError, AttributeError, TypeError) as error:
            raise InputError(f"{path} is no safetensors file: its header is not JSON ({error}).") from error
    entries = {}
    for name, entry in header.items():
        try:
            begin, end = (8 + length + n for n in _whole(entry["data_offsets"]))
            entries[name] = Entry(str(entry["dtype"]), _whole(entry["shape"]), begin, end)
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(f"{path} is damaged: its header does not describe tensor {name}.") from error
        if end > size:
            raise InputError(
                f"{path} is cut short: tensor {name} ends at byte {end}, the file at {size}. Fetch it again."
            )
    at = 8 + length
    for name, item in sorted(entries.items(), key=lambda pair: (pair[1].begin, pair[1].end)):
        if item.begin != at or item.end < at:
            raise InputError(
                f"{path} is damaged: tensor {name} is said to be bytes {item.begin} to {item.end}, and what stands "
                f"before it ends at {at}. Fetch it again."
            )
        at = item.end
    if at != size:
        raise InputError(f"{path} is damaged: its last tensor ends at byte {at}, the file at {size}. Fetch it again.")
    return entries


def page_shift(order: Iterable[str], sizes: Mapping[str, int], sources: Mapping[str, int]) -> tuple[int, int]:
    """Where tensors that follow each other should begin, modulo the page size, for most bytes to keep their position
    modulo it; and how many bytes then do."""
    shifts, begin = Counter({0: 0}), 0
    for name in order:
        if name in sources:
            shifts[(sources[name] - begin) % PAGE] += sizes[name]
        begin += sizes[name]
    shift = max((s for s in shifts if s % 8 == 0), key=lambda s: shifts[s])
    return shift, shifts[shift]


def header_bytes(
    tensors: Iterable[tuple[str, str, tuple[int, ...]]], sources: Mapping[str, int] | None = None
) -> tuple[bytes, dict[str, int]]:
    """A safetensors header for (name, dtype, shape), and where in the file each tensor begins.

    ``sources``: positions in other files from which tensors are to be copied. The header is padded (always to 8 bytes)
    so that most bytes keep their position modulo the page size, between which the kernel copies fastest.
    """
    entries: dict[str, object] = {"__metadata__": {"format": "pt"}}
    begins, sizes, begin = {}, {}, 0
    for name, dtype, shape in tensors:
        sizes[name] = prod(shape) * ITEMSIZES[dtype]
        entries[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, begin + sizes[name]]}
        begins[name] = begin
        begin += sizes[name]
    text = json.dumps(entries, separators=(",", ":")).encode()
    shift, kept = page_shift(sizes, sizes, sources or {})
    text += b" " * ((shift - 8 - len(text)) % (PAGE if kept else 8))
    header = len(text).to_bytes(8, "little") + text
    return header, {name: len(header) + at for name, at in begins.items()}
