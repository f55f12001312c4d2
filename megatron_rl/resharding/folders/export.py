"""Writing a Hugging Face folder from a sharded model: a plan whose destination is a sequence of small buffers.

Files are written front to back from one buffer at a time, so memory stays bounded whatever the model's size.
"""

import os
import shutil
from collections.abc import Container, Iterator, Sequence
from dataclasses import replace
from math import prod
from pathlib import Path

import torch

from megatron_rl.errors import InputError
from megatron_rl.resharding.execute import pull
from megatron_rl.resharding.folders.contents import divide, file_name, index_file, small_files
from megatron_rl.resharding.folders.hf import INDEX
from megatron_rl.resharding.folders.load import DTYPES
from megatron_rl.resharding.folders.safetensors import header_bytes
from megatron_rl.resharding.layout import Layout, Segment, Shard, row_major
from megatron_rl.resharding.plan import make_plan
from megatron_rl.resharding.proof import prove
from megatron_rl.resharding.swap import SwapSource
from megatron_rl.resharding.transports.shared_memory import RankMemory
from megatron_rl.system.files import flush_folder, folder_beside, rename_folder, require_space

BUFFER = 1 << 26  # bytes assembled at a time
NAMES = {dtype: name for name, dtype in DTYPES.items()}


def _bands(layout: Layout, dtypes: dict[str, torch.dtype]) -> Layout:
    """One rank whose local tensors "{tensor}#{n}" are consecutive pieces of the tensors, of about BUFFER bytes."""
    shapes: dict[str, tuple[int, ...]] = {}
    segments = []
    for name, spec in layout.tensors.items():
        rest = spec.index[1:]
        step = max(1, BUFFER // (prod(rest) * dtypes[name].itemsize))
        for first in range(0, spec.index[0], step):
            shape = (min(step, spec.index[0] - first), *rest)
            local = f"{name}#{first}"
            shapes[local] = shape
            segments.append(Segment(name, (first, *(0 for _ in rest)), shape, local, 0, row_major(shape)))
    return Layout(layout.tensors, (Shard(shapes, tuple(segments)),))


def needed_from(layout: Layout, near: Sequence[bool]) -> list[set[str]]:
    """By rank, the local tensors that a reader needs of whom it can reach by files only; all of those that are near.

    Of a box that several hold it needs one: a near rank's, else the lowest rank's.
    """
    held = {(s.tensor, s.start, s.shape) for r, shard in enumerate(layout.ranks) if near[r] for s in shard.segments}
    needed = []
    for rank, shard in enumerate(layout.ranks):
        asked = set(shard.locals) if near[rank] else set()
        for s in shard.segments if not near[rank] else ():
            if (s.tensor, s.start, s.shape) not in held:
                asked.add(s.local)
        held |= {(s.tensor, s.start, s.shape) for s in shard.segments if s.local in asked}
        needed.append(asked)
    return needed


class TrainedTensors:
    """The trainer ranks' memory, read tensor by tensor; ``dtype`` None keeps each weight's own.

    Ranks may offer a part of their tensors, as long as all of them together have everything.
    """

    def __init__(self, source: SwapSource, dtype: torch.dtype | None = None) -> None:
        self.layout = source.layout()
        maps = [memory.open() for memory in source.memories if isinstance(memory, RankMemory)]
        if len(maps) != len(self.layout.ranks):
            raise ValueError("not every rank's memory is shared")
        self.tensors = {(rank, name): t for rank, mapped in enumerate(maps) for name, t in mapped.tensors.items()}
        self.dtypes = {
            s.tensor: dtype or self.tensors[rank, s.local].dtype
            for rank, shard in enumerate(self.layout.ranks)
            for s in shard.segments
            if (rank, s.local) in self.tensors
        }
        bands, offered = _bands(self.layout, self.dtypes), _offered(self.layout, [mapped.tensors for mapped in maps])
        self.plan = make_plan(offered, bands)
        prove(self.plan, offered, bands)

    def read(self, names: list[str]) -> Iterator[memoryview]:
        """The bytes of these tensors, band after band; a view is valid until the next one is asked for."""
        wanted = set(names)
        copies = [c for c in self.plan.copies if c.tensor in wanted]
        begin = 0
        while begin < len(copies):
            end = begin
            while end < len(copies) and copies[end].destination == copies[begin].destination:
                end += 1
            count = sum(c.elements for c in copies[begin:end])
            band = torch.empty(count, dtype=self.dtypes[copies[begin].tensor])
            pull(copies[begin:end], self.tensors, {copies[begin].destination: band})
            yield band.view(torch.uint8).numpy().data
            begin = end

    def tensor(self, name: str) -> torch.Tensor:
        """One whole tensor, in its Hugging Face shape; a copy."""
        content = bytearray().join(self.read([name]))
        return torch.frombuffer(content, dtype=self.dtypes[name]).view(self.layout.tensors[name].shape)


def _offered(layout: Layout, tensors: Sequence[Container[str]]) -> Layout:
    """The layout of what ranks offer."""
    ranks = tuple(
        shard if all(name in theirs for name in shard.locals) else _part(shard, theirs)
        for shard, theirs in zip(layout.ranks, tensors, strict=True)
    )
    return replace(layout, ranks=ranks)


def _part(shard: Shard, kept: Container[str]) -> Shard:
    return Shard(
        {name: shape for name, shape in shard.locals.items() if name in kept},
        tuple(segment for segment in shard.segments if segment.local in kept),
        tuple(pad for pad in shard.padding if pad.local in kept),
    )


def export_hf(
    path: str | Path,
    source: SwapSource,
    *,
    dtype: torch.dtype | None = None,
    carry_from: str | Path | None = None,
    max_shard_bytes: int = 5_000_000_000,
) -> None:
    """Write the model that the trainer's ranks hold as a Hugging Face folder that transformers loads.

    ``path`` must not exist; it appears complete or not at all. ``dtype`` None keeps each weight's own. What a model
    has besides weights (``contents.carried``) is copied from ``carry_from``. Called by one process while no rank
    changes its weights.

    Raises InputError when the target exists or its disk has too little space.
    """
    target = Path(path)
    if target.exists():
        raise InputError(
            f"{target} exists already; the model is written to a new folder only. Move it away or name another."
        )
    reader = TrainedTensors(source, dtype)
    sizes = {name: spec.elements * reader.dtypes[name].itemsize for name, spec in reader.layout.tensors.items()}
    target.parent.mkdir(parents=True, exist_ok=True)
    require_space(target.parent, sum(sizes.values()), "the model", "Free some, or write elsewhere.")
    beside = folder_beside(target)
    try:
        _write_weights(beside, reader, sizes, max_shard_bytes)
        main = NAMES[next(iter(reader.dtypes.values()))]
        origin = None if carry_from is None else Path(carry_from)
        for name, content in small_files(source.hf_config, main, origin).items():
            (beside / name).parent.mkdir(exist_ok=True)
            (beside / name).write_bytes(content)
        for inner in filter(Path.is_dir, beside.iterdir()):
            flush_folder(inner)
        rename_folder(beside, target)
    except BaseException:
        shutil.rmtree(beside, ignore_errors=True)
        raise


def _write_weights(folder: Path, reader: TrainedTensors, sizes: dict[str, int], limit: int) -> None:
    groups = divide(sizes, limit)
    files = {file_name(i, len(groups)): names for i, names in enumerate(groups, 1)}
    for file, names in files.items():
        described = ((name, NAMES[reader.dtypes[name]], reader.layout.tensors[name].shape) for name in names)
        with (folder / file).open("wb") as out:
            out.write(header_bytes(described)[0])
            for band in reader.read(names):
                out.write(band)
            out.flush()
            os.fsync(out.fileno())
    if len(files) > 1:
        (folder / INDEX).write_bytes(index_file(files, sum(sizes.values())))
