"""A checkpoint on the disk, of either kind: which bytes of which file hold which box of which canonical tensor."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from math import prod
from pathlib import Path
from typing import Any

from megatron_rl.errors import InputError
from megatron_rl.resharding.layout import Layout, Segment

ITEMSIZES = {"BF16": 2, "F16": 2, "F32": 4, "F8_E4M3": 1}  # safetensors' names of what weights can be -> bytes
TORCH_DTYPES = {"BF16": "bfloat16", "F16": "float16", "F32": "float32", "F8_E4M3": "float8_e4m3fn"}
FP8 = "F8_E4M3"
PAGE = 4096  # the kernel copies fastest between positions that are equal modulo this many bytes


class UnlikeError(InputError):
    """A checkpoint holds other tensors, by name or shape, than its model has, or than another checkpoint."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where a contiguous tensor begins: a file, the byte, and the elements' dtype."""

    path: Path
    offset: int
    dtype: str

    @property
    def itemsize(self) -> int:
        return ITEMSIZES[self.dtype]


@dataclass
class NewFile:
    """A file to be written: its path in the folder, its size, and what stands around the tensors' bytes."""

    path: str
    size: int = 0
    frames: list[tuple[int, bytes]] = field(default_factory=list)  # (position, bytes)


@dataclass(frozen=True)
class Stored:
    """A checkpoint's weights. ``layout`` has one rank, and ``places`` says where its local tensors lie."""

    folder: Path
    hf_config: Mapping[str, Any]
    layout: Layout
    places: dict[str, Place]
    scales: dict[str, Place] = field(default_factory=dict)  # FP8 weight (canonical name) -> its scales

    @cached_property
    def segments(self) -> dict[str, list[Segment]]:
        """Canonical name -> the segments that hold it."""
        found: dict[str, list[Segment]] = {name: [] for name in self.layout.tensors}
        for segment in self.layout.ranks[0].segments:
            found[segment.tensor].append(segment)
        return found

    @cached_property
    def dtypes(self) -> dict[str, str]:
        """Canonical name -> dtype."""
        return {name: self.places[segments[0].local].dtype for name, segments in self.segments.items()}

    def files(self) -> dict[Path, int]:
        """Every file and the bytes of weights in it."""
        sizes: dict[Path, int] = {}
        for local, shape in self.layout.ranks[0].locals.items():
            place = self.places[local]
            sizes[place.path] = sizes.get(place.path, 0) + prod(shape) * place.itemsize
        return sizes

    def bytes(self) -> Iterator[tuple[str, int]]:
        """(canonical name, bytes) of every tensor, without scales and padding."""
        for name, spec in self.layout.tensors.items():
            yield name, spec.elements * ITEMSIZES[self.dtypes[name]]
