"""The folders that a conversion writes, laid out before a byte of weights is there. No torch."""

from collections.abc import Mapping
from math import prod
from pathlib import Path

from megatron_rl.resharding.families import family
from megatron_rl.resharding.families.table import HEAD, aliases
from megatron_rl.resharding.folders.contents import divide, file_name, index_file, small_files
from megatron_rl.resharding.folders.hf import INDEX
from megatron_rl.resharding.folders.safetensors import header_bytes, page_shift
from megatron_rl.resharding.folders.stored import FP8, ITEMSIZES, PAGE, NewFile, Place, Stored
from megatron_rl.resharding.folders.torch_dist.writer import TorchDistWriter
from megatron_rl.resharding.layout import ParallelSizes, row_major
from megatron_rl.resharding.layouts.fp8 import SCALE, scale_shape
from megatron_rl.resharding.layouts.transformers import files_layout

MODEL = "huggingface"  # folder inside a Megatron checkpoint with config.json, tokenizer and generation config


class HfTarget:
    """The files of a model folder that holds ``source`` in these dtypes; FP8 ones are followed by their scales.

    Multi-token prediction layers have their copies of embedding and head, as the releases on the hub have them.
    ``stored.places`` are relative to the folder. ``origin``: the folder whose tokenizer and the like are carried
    along. ``limit``: bytes per file.
    """

    def __init__(self, source: Stored, dtypes: Mapping[str, str], origin: Path | None, limit: int) -> None:
        self.hf_config, self.dtypes, self.origin = source.hf_config, dtypes, origin
        copies = aliases(family(self.hf_config), self.hf_config)
        copies.pop(HEAD, None)  # a tied head is not stored
        layout = files_layout(self.hf_config, copies)
        described: dict[str, tuple[str, tuple[int, ...]]] = {}
        for name, shape in layout.ranks[0].locals.items():
            described[name] = dtypes[copies.get(name, name)], shape
            if dtypes.get(name) == FP8:
                described[name + SCALE] = "F32", scale_shape(shape)
        sizes = {name: prod(shape) * ITEMSIZES[dtype] for name, (dtype, shape) in described.items()}
        self.total = sum(sizes.values())
        groups = divide(sizes, limit)
        self._names = {file_name(i, len(groups)): names for i, names in enumerate(groups, 1)}
        self.files: list[NewFile] = []
        places: dict[str, Place] = {}
        copied = {name: _position(source, name) for name in dtypes if dtypes[name] == source.dtypes[name]}
        copied |= {copy: copied[name] for copy, name in copies.items() if name in copied}
        for path, names in self._names.items():
            # what would shift the others comes last, unless all still lie as in a file with names in order
            orders = [sorted(names, key=lambda name: sizes[name] % PAGE != 0), sorted(names)]
            names[:] = max(orders, key=lambda order: page_shift(order, sizes, copied)[1])
            header, begins = header_bytes(((name, *described[name]) for name in names), copied)
            self.files.append(NewFile(path, len(header) + sum(sizes[name] for name in names), [(0, header)]))
            places |= {name: Place(Path(path), begins[name], described[name][0]) for name in names}
        scales = {name: places.pop(name + SCALE) for name, dtype in dtypes.items() if dtype == FP8}
        self.stored = Stored(Path(), self.hf_config, layout, places, scales)

    def small_files(self) -> dict[str, bytes]:
        """What makes the folder a model, by path."""
        main = next(dtype for dtype in self.dtypes.values() if dtype != FP8)  # the embedding's
        found = small_files(self.hf_config, main, self.origin, fp8=FP8 in self.dtypes.values())
        return found | ({INDEX: index_file(self._names, self.total)} if len(self.files) > 1 else {})


def _position(source: Stored, name: str) -> int:
    """Where in its file a tensor's first segment begins, as if the tensor lay there whole."""
    segment = source.segments[name][0]
    place, index = source.places[segment.local], source.layout.tensors[name].index
    first = sum(i * step for i, step in zip(segment.start, row_major(index), strict=True))
    return place.offset + (segment.offset - first) * place.itemsize


class MegatronTarget(TorchDistWriter):
    """A torch_dist folder that also holds what the Hugging Face folder ``source`` is made of besides weights."""

    def __init__(self, source: Stored, sizes: ParallelSizes, dtypes: Mapping[str, str]) -> None:
        super().__init__(source.hf_config, sizes, dtypes, source.places)
        self.origin = source.folder

    def small_files(self) -> dict[str, bytes]:
        """What makes the folder a checkpoint, by path."""
        found = small_files(self.hf_config, next(dtype for dtype, _ in self.tensors.values()), self.origin)
        return {f"{MODEL}/{name}": content for name, content in found.items()} | super().small_files()
