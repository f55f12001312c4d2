"""Where Megatron-Core keeps the canonical tensors: the parameters of every rank's GPTModel chunks.

Names and shapes are those of megatron-core 0.16: weights are [out, in]; ``linear_qkv`` holds [q, k, v] per query
group; ``linear_fc1`` holds [gate shard; up shard]. Imports no torch.
"""

from collections import defaultdict
from collections.abc import Callable, Mapping
from functools import cache
from math import prod
from typing import Any

from megatron_rl.resharding.families import canonical_tensors, family
from megatron_rl.resharding.families.table import (
    EMBEDDING,
    HEAD,
    Family,
    Instance,
    Kind,
    dimensions,
    expert_layer,
    instances,
    tied,
)
from megatron_rl.resharding.layout import Layout, Padding, ParallelSizes, Segment, Shard, TensorSpec, row_major

Box = tuple[int, tuple[int, ...], tuple[int, ...], int, tuple[int, ...]]  # part, start, shape, offset, strides


def padded_vocabulary(size: int, tensor_parallel: int) -> int:
    """Rows of Megatron's embedding: the smallest multiple of the tensor-parallel size that holds ``size``."""
    return -(-size // tensor_parallel) * tensor_parallel


@cache
def split(kind: Kind, parts: tuple[TensorSpec, ...], ways: int, index: int) -> tuple[tuple[int, ...], list[Box], int]:
    """What rank ``index`` of ``ways`` holds of a row: its local shape, boxes of the parts, and padding elements.

    Padding, if any, lies at the end. The sizes must divide as ``layout_violations`` asks.
    """
    first = parts[0].index
    local: tuple[int, ...]
    if kind is Kind.COPY:
        return parts[0].shape, [(0, (0,) * len(first), first, 0, row_major(first))], 0
    if kind is Kind.ROW:
        local = (first[0], first[1] // ways)
        return local, [(0, (0, index * local[1]), local, 0, row_major(local))], 0
    if kind is Kind.VOCABULARY:
        rows = padded_vocabulary(first[0], ways) // ways
        real = min(max(first[0] - index * rows, 0), rows)
        local = (rows, *first[1:])
        boxes: list[Box] = [(0, (index * rows, 0), (real, *first[1:]), 0, row_major(local))] if real else []
        return local, boxes, (rows - real) * prod(first[1:])
    if kind is Kind.QKV:
        return _split_groups(parts, ways, index)
    boxes, rows, width = [], first[0] // ways, prod(first[1:])  # COLUMN: the parts' shards one below the other
    for i, part in enumerate(parts):
        start = (index * rows, *(0 for _ in first[1:]))
        boxes.append((i, start, (rows, *part.index[1:]), i * rows * width, row_major(part.index)))
    return (len(parts) * rows, *first[1:]), boxes, 0


def _split_groups(parts: tuple[TensorSpec, ...], ways: int, index: int) -> tuple[tuple[int, ...], list[Box], int]:
    """Rows of the full matrix of [q, k, v] blocks. With more ranks than groups a rank holds a slice of one block."""
    groups, trailing = parts[0].index[0], parts[0].index[2:]
    width, block = prod(trailing), sum(part.index[1] for part in parts)  # block: rows of one group
    if ways <= groups:
        count, group, low, high = groups // ways, index * groups // ways, 0, block
    else:
        cuts = ways // groups
        count, group = 1, index // cuts
        low, high = index % cuts * block // cuts, (index % cuts + 1) * block // cuts
    boxes: list[Box] = []
    top = 0  # first row of this part inside its group
    strides = ((high - low) * width, width, *row_major(trailing))[: 2 + len(trailing)]
    for i, part in enumerate(parts):
        begin, end = max(low, top), min(high, top + part.index[1])
        if begin < end:
            start = (group, begin - top, *(0 for _ in trailing))
            boxes.append((i, start, (count, end - begin, *trailing), (begin - low) * width, strides))
        top += part.index[1]
    return (count * (high - low), *trailing), boxes, 0


def _shard(parts: list[tuple[str, tuple[int, ...], tuple[Segment, ...], int]]) -> Shard:
    """A rank's shard from (local name, shape, segments, padding elements)."""
    padding = tuple(Padding(name, prod(shape) - pad, pad) for name, shape, _, pad in parts if pad)
    segments = tuple(segment for _, _, found, _ in parts for segment in found)
    return Shard({name: shape for name, shape, _, _ in parts}, segments, padding)


class _Placement:
    """Which rows lie in one pipeline stage, under which local names."""

    def __init__(
        self, found: Family, config: Mapping[str, Any], sizes: ParallelSizes, fused_norms: bool, grouped: bool
    ) -> None:
        self.sizes, self.fused_norms, self.grouped = sizes, fused_norms, grouped
        numbers = dimensions(found, config)
        self.layers = numbers["layers"] // (sizes.pipeline * sizes.virtual)  # per model chunk
        self.experts = numbers["experts"] // sizes.expert  # per rank
        self.stages: dict[int, list[tuple[str, Instance]]] = defaultdict(list)
        last = sizes.pipeline - 1
        for instance in instances(found, config):
            if instance.layer >= 0:
                chunk, stage = divmod(instance.layer // self.layers, sizes.pipeline)
            else:
                chunk, stage = (0, 0) if EMBEDDING in instance.parts else (sizes.virtual - 1, last)
            self.stages[stage].append((self._local(instance, chunk), instance))
            if EMBEDDING in instance.parts and tied(config) and last > 0:
                head = next(row for row in found.rows if HEAD in row.parts)
                copy = Instance(head, -1, -1, instance.parts)
                self.stages[last].append((f"{sizes.virtual - 1}/{head.megatron}", copy))

    def _local(self, instance: Instance, chunk: int) -> str:
        row = instance.row
        pattern = row.fused_norm if self.fused_norms and row.fused_norm else row.megatron
        pattern = row.grouped if self.grouped and row.grouped else pattern
        layer = instance.layer % self.layers if instance.layer >= 0 else -1
        return f"{chunk}/{instance.name(pattern, layer, instance.expert % max(self.experts, 1))}"

    def shard(self, stage: int, tensor: int, expert: int, expert_tensor: int) -> Shard:
        """The shard at these coordinates."""
        entries = []
        for local, instance in self.stages[stage]:
            if instance.row.per_expert:
                if instance.expert // self.experts != expert:
                    continue
                ways, index = self.sizes.expert_tensor, expert_tensor
            else:
                ways, index = self.sizes.tensor, tensor
            shape, boxes, padding = split(instance.row.kind, tuple(instance.parts.values()), ways, index)
            names = tuple(instance.parts)
            segments = tuple(
                Segment(names[part], start, extent, local, offset, strides)
                for part, start, extent, offset, strides in boxes
            )
            entries.append((local, shape, segments, padding))
        return _shard(entries)


def megatron_layout(
    hf_config: Mapping[str, Any], sizes: ParallelSizes, *, fused_norms: bool = False, grouped_experts: bool = False
) -> Layout:
    """The segments of every rank. A local name is "{model chunk}/{name in named_parameters()}".

    ``fused_norms``: Transformer Engine's layers, which hold each norm in the linear after it.
    ``grouped_experts``: TEGroupedMLP's names instead of SequentialMLP's.
    The sizes must divide as ``layout_violations`` asks. Raises InputError for an unknown family.
    """
    found = family(hf_config)
    placement = _Placement(found, hf_config, sizes, fused_norms, grouped_experts)
    make = cache(placement.shard)  # replicas share one shard
    ranks = []
    for rank in range(sizes.world):
        stage, inside = divmod(rank, sizes.stage)
        expert_tensor = inside % sizes.expert_tensor
        expert = inside // sizes.expert_tensor % sizes.expert
        ranks.append(make(stage, inside % sizes.tensor, expert, expert_tensor))
    return Layout(canonical_tensors(hf_config), tuple(ranks))


def layout_violations(hf_config: Mapping[str, Any], sizes: ParallelSizes) -> list[str]:
    """Every reason why the model cannot be sharded this way, each with the sizes that can; empty when it can.

    Raises InputError for an unknown family.
    """
    found = family(hf_config)
    numbers = dimensions(found, hf_config)
    named = {
        "tensor_parallel": sizes.tensor,
        "pipeline_parallel": sizes.pipeline,
        "virtual_pipeline": sizes.virtual,
        "context_parallel": sizes.context,
        "expert_parallel": sizes.expert,
        "data_parallel": sizes.data,
    }
    problems = [f"actor.{key}={size} is not positive." for key, size in named.items() if size < 1]
    if problems:
        return problems
    problems += _tensor_violations(found, hf_config, numbers, sizes.tensor)
    layers, stages = numbers["layers"], sizes.pipeline * sizes.virtual
    if sizes.virtual > 1 and sizes.pipeline == 1:
        problems.append(f"actor.virtual_pipeline={sizes.virtual} needs actor.pipeline_parallel > 1.")
    if layers % stages:
        what = f"actor.pipeline_parallel={sizes.pipeline}"
        if sizes.virtual > 1:
            what = f"actor.pipeline_parallel x actor.virtual_pipeline = {sizes.pipeline} x {sizes.virtual}"
        problems.append(_indivisible(what, "num_hidden_layers", layers, lambda n: layers % n == 0))
    if sizes.expert > 1 and not numbers["experts"]:
        problems.append(f"actor.expert_parallel={sizes.expert}, but {found.model_type} has no experts; use 1.")
    elif numbers["experts"] % sizes.expert:
        count = numbers["experts"]
        what = f"actor.expert_parallel={sizes.expert}"
        problems.append(_indivisible(what, "num_experts", count, lambda n: count % n == 0))
    if sizes.stage % (sizes.expert * sizes.expert_tensor):
        problems.append(
            f"actor.expert_parallel={sizes.expert} does not divide the {sizes.stage} ranks of one pipeline stage "
            f"(tensor_parallel x context_parallel x data_parallel)."
        )
    if numbers["experts"] and numbers["expert_mlp"] % sizes.expert_tensor:
        problems.append(f"{sizes.expert_tensor} expert-tensor-parallel ranks do not divide moe_intermediate_size.")
    return problems


def _tensor_violations(found: Family, config: Mapping[str, Any], numbers: dict[str, int], size: int) -> list[str]:
    heads, groups = numbers["heads"], numbers["groups"]
    features = (heads + 2 * groups) * numbers["head_dim"]
    rules: list[tuple[str, int, Callable[[int], bool]]] = [
        ("num_attention_heads", heads, lambda n: heads % n == 0),
        # Megatron replicates the work of a group when there are more ranks than groups.
        ("num_key_value_heads", groups, lambda n: groups % n == 0 or (n % groups == 0 and features % n == 0)),
    ]
    if not all(expert_layer(found, config, layer) for layer in range(numbers["layers"])):
        rules.append(("intermediate_size", numbers["mlp"], lambda n: numbers["mlp"] % n == 0))
    what = f"actor.tensor_parallel={size}"
    return [_indivisible(what, key, value, divides) for key, value, divides in rules if not divides(size)]


def _indivisible(what: str, key: str, value: int, divides: Callable[[int], bool]) -> str:
    fitting = [str(n) for n in range(1, value + 1) if divides(n)]
    shown = fitting if len(fitting) <= 12 else [*fitting[:11], "...", fitting[-1]]
    return f"{what} does not divide {key}={value}; {', '.join(shown)} do."
