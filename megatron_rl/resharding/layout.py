"""Canonical coordinates: which part of which Hugging Face tensor lies where.

Every weight is named by its Hugging Face tensor, an index space (name, shape). A ``Segment`` says that
one box of that index space lies in one local tensor, at a flat offset and with one stride per canonical
dimension. Flat coordinates make rows, columns, transposes, head groups and stacked experts the same
thing: an offset and strides.

One refinement keeps every segment a single box: the index space may split the tensor's first dimension
where some layout interleaves it. Megatron stores grouped-query attention as [q, k, v] per query group, so
q_proj [heads * d, hidden] is indexed as (groups, heads / groups * d, hidden): the same bytes in the same
order, and one box per rank instead of one per group.
"""

from dataclasses import dataclass
from math import prod


@dataclass(frozen=True)
class TensorSpec:
    """A canonical tensor: its Hugging Face shape, the index space that segments use, and its dtype."""

    shape: tuple[int, ...]
    index: tuple[int, ...] = ()  # row-major refinement of the shape; the shape itself when left out
    dtype: str = ""  # torch's name of it; the model's when left out

    def __post_init__(self) -> None:
        if not self.index:
            object.__setattr__(self, "index", self.shape)
        if prod(self.index) != prod(self.shape):
            raise ValueError(f"index space {self.index} has not as many elements as shape {self.shape}")

    @property
    def elements(self) -> int:
        return prod(self.shape)


@dataclass(frozen=True, slots=True)
class Segment:
    """A box of one canonical tensor inside one local tensor (all numbers count elements)."""

    tensor: str  # canonical name, e.g. "model.layers.0.self_attn.q_proj.weight"
    start: tuple[int, ...]  # the box's first index in each canonical dimension
    shape: tuple[int, ...]  # its extent in each canonical dimension
    local: str  # name of the local tensor that holds it
    offset: int  # flat position of the box's first element in the local tensor
    strides: tuple[int, ...]  # flat step in the local tensor for each canonical dimension


@dataclass(frozen=True, slots=True)
class Padding:
    """Elements of a local tensor that belong to no canonical tensor: [offset, offset + size), flat."""

    local: str
    offset: int
    size: int


@dataclass(frozen=True)
class Shard:
    """One rank's local tensors and what lies in them. Segments and padding tile every local tensor exactly."""

    locals: dict[str, tuple[int, ...]]  # local name -> shape
    segments: tuple[Segment, ...]
    padding: tuple[Padding, ...] = ()


@dataclass(frozen=True)
class Layout:
    """Where every rank of one side keeps its part of the canonical tensors. Replicas may share one Shard."""

    tensors: dict[str, TensorSpec]
    ranks: tuple[Shard, ...]
    unused: frozenset[str] = frozenset()  # tensors that this side knows and does without


@dataclass(frozen=True)
class ParallelSizes:
    """Megatron's parallel sizes. Ranks are numbered tensor, context, data, pipeline, fastest first.

    Experts have coordinates of their own inside a pipeline stage: expert-tensor, expert, expert-data,
    fastest first (``megatron.core.parallel_state``, order "tp-cp-ep-dp-pp").
    """

    tensor: int = 1
    pipeline: int = 1
    virtual: int = 1  # model chunks per pipeline rank
    context: int = 1
    expert: int = 1
    data: int = 1
    expert_tensor: int = 1  # ranks that share one expert's matrices
    first_stage: int = 0  # layers of the first pipeline stage; 0: as many as the others
    last_stage: int = 0  # layers of the last pipeline stage; 0: as many as the others

    @property
    def stage(self) -> int:
        """Ranks of one pipeline stage."""
        return self.tensor * self.context * self.data

    @property
    def world(self) -> int:
        return self.stage * self.pipeline


def row_major(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Strides of a contiguous tensor."""
    strides, step = [], 1
    for extent in reversed(shape):
        strides.append(step)
        step *= extent
    return tuple(reversed(strides))


def merged(shape: tuple[int, ...], *strides: tuple[int, ...]) -> tuple[tuple[int, ...], tuple[tuple[int, ...], ...]]:
    """The same box with as few dimensions as possible: those that are contiguous on every side become one."""
    extents: list[int] = []
    steps: list[list[int]] = [[] for _ in strides]
    for extent, *step in zip(shape, *strides, strict=True):
        if extent == 1:
            continue
        if extents and all(mine[-1] == extent * s for mine, s in zip(steps, step, strict=True)):
            extents[-1] *= extent
            for mine, s in zip(steps, step, strict=True):
                mine[-1] = s
        else:
            extents.append(extent)
            for mine, s in zip(steps, step, strict=True):
                mine.append(s)
    if not extents:
        return (1,), tuple((1,) for _ in strides)
    return tuple(extents), tuple(tuple(mine) for mine in steps)
