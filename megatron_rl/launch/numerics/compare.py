"""What a layout computed, held against one rank: the largest differences, and in which tensor on which rank."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from megatron_rl.resharding.execute import box
from megatron_rl.resharding.layout import Layout, ParallelSizes
from megatron_rl.resharding.layouts.megatron import megatron_layout

TOLERANCE = {  # what fp32 reaches with room to spare: docs/runs.md
    "log-probs": 1e-4,  # nats
    "metrics": 1e-4,  # of the metric, or of 1 where it is smaller
    "gradients": 1e-4,  # of the largest element of the tensor's gradient
    "weights": 1e-3,  # of the largest change of an element of the tensor
}
UNITS = {
    "log-probs": "nats",
    "metrics": "of the value",
    "gradients": "of the tensor's largest",
    "weights": "of the tensor's largest change",
}
_LEAST = 1e-6  # a tensor's scale is at least this share of the largest of all tensors
CLOCKED = ("time/", "tokens_per_second")


@dataclass(frozen=True)
class Difference:
    """Of one tensor, metric or token on one rank."""

    kind: str  # a key of TOLERANCE
    where: str
    rank: int
    size: float  # in the kind's UNITS; infinite where something is not a number

    @property
    def exceeds(self) -> bool:
        """Whether fp32's rounding does not explain it."""
        return not self.size <= TOLERANCE[self.kind]


@dataclass
class Comparison:
    """All differences, the largest of each tensor alone, largest first."""

    differences: list[Difference] = field(default_factory=list)

    def of(self, kind: str) -> list[Difference]:
        """Those of one kind."""
        return [found for found in self.differences if found.kind == kind]

    @property
    def exceeding(self) -> list[Difference]:
        """Those that say that the layout computes something else."""
        return [found for found in self.differences if found.exceeds]


def compare(
    one: Path, many: Path, models: Mapping[str, Mapping[str, Any]], sizes: ParallelSizes, start: Mapping[str, Any]
) -> Comparison:
    """Hold the results of ranks of ``sizes`` in a folder against those of a single rank in another.

    ``models``: the config.json of each trained model by its name; ``start``: its weights before the step, by name and
    Hugging Face tensor.
    """
    reference = _load(one, 0)
    layouts = {name: megatron_layout(hf_config, sizes) for name, hf_config in models.items()}
    alone = {name: megatron_layout(hf_config, ParallelSizes()) for name, hf_config in models.items()}
    largest: dict[tuple[str, str], Difference] = {}
    whole = {
        name: (
            _assembled(layout, reference["gradients"][name]),
            _changes(layout, reference["weights"][name], start[name]),
        )
        for name, layout in alone.items()
    }
    seen: set[int] = set()
    for rank in range(sizes.world):
        result = _load(many, rank)
        seen |= result["scored"].keys()
        for found in _rank(rank, result, reference, layouts, whole, start):
            before = largest.get((found.kind, found.where))
            if before is None or not found.size <= before.size:
                largest[found.kind, found.where] = found
    lost = reference["scored"].keys() ^ seen
    if lost:
        largest["log-probs", "lost"] = Difference("log-probs", f"{len(lost)} tokens that one side lacks", 0, torch.inf)
    return Comparison(sorted(largest.values(), key=lambda d: -d.size))


def _rank(
    rank: int,
    result: Mapping[str, Any],
    reference: Mapping[str, Any],
    layouts: Mapping[str, Layout],
    whole: Mapping[str, tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]],
    start: Mapping[str, Any],
) -> Iterator[Difference]:
    for token, value in result["scored"].items():
        gap = abs(value - reference["scored"].get(token, value))
        yield Difference("log-probs", f"token {token}", rank, _number(gap))
    names = [name for name in reference["metrics"] if not name.startswith(CLOCKED)]
    for name in names:
        ours, theirs = result["metrics"].get(name, torch.nan), reference["metrics"][name]
        yield Difference("metrics", name, rank, _number(abs(ours - theirs) / max(abs(theirs), 1.0)))
    norm = "grad_norm"
    if norm in reference["metrics"]:  # of any size
        ours, theirs = result["metrics"][norm], reference["metrics"][norm]
        yield Difference("metrics", norm, rank, _number(abs(ours - theirs) / max(theirs, 1e-30)))
    for model, layout in layouts.items():
        gradients, changes = whole[model]
        prefix = "" if model == "policy" else f"{model}: "
        for kind, expected, local in (
            ("gradients", gradients, result["gradients"][model]),
            ("weights", changes, result["weights"][model]),
        ):
            floor = _LEAST * max(float(t.abs().max()) for t in expected.values())
            for segment in layout.ranks[rank].segments:
                wanted = expected[segment.tensor]
                place = tuple(slice(a, a + n) for a, n in zip(segment.start, segment.shape, strict=True))
                mine = box(local[segment.local].flatten(), segment.shape, segment.strides, segment.offset)
                if kind == "weights":
                    mine = mine - start[model][segment.tensor].view(wanted.shape)[place]
                scale = max(float(wanted.abs().max()), floor, 1e-30)
                gap = float((mine - wanted[place]).abs().max()) / scale
                yield Difference(kind, f"{prefix}{segment.tensor}", rank, _number(gap))


def _assembled(layout: Layout, local: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Canonical tensors, in their index spaces, of a layout of one rank."""
    [shard] = layout.ranks
    found = {name: torch.zeros(spec.index) for name, spec in layout.tensors.items()}
    for segment in shard.segments:
        place = tuple(slice(a, a + n) for a, n in zip(segment.start, segment.shape, strict=True))
        found[segment.tensor][place] = box(
            local[segment.local].flatten(), segment.shape, segment.strides, segment.offset
        )
    return found


def _changes(
    layout: Layout, local: Mapping[str, torch.Tensor], start: Mapping[str, torch.Tensor]
) -> dict[str, torch.Tensor]:
    return {name: after - start[name].view(after.shape) for name, after in _assembled(layout, local).items()}


def _load(folder: Path, rank: int) -> dict[str, Any]:
    content: dict[str, Any] = torch.load(folder / f"rank{rank}.pt", weights_only=False)
    return content


def _number(size: float) -> float:
    """Of a difference; what is no number is as far away as can be."""
    return size if size == size else torch.inf
