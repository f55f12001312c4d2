"""Where Megatron-Core keeps the canonical tensors: the parameters of every rank's GPTModel chunks.

Names and shapes are those of megatron-core 0.16: weights are [out, in]; ``linear_qkv`` holds [q, k, v] per query
group; ``linear_fc1`` holds [gate shard; up shard]. The router's bias is a buffer there, everything else a parameter.
Imports no torch.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cache, partial
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

Split = tuple[tuple[int, ...], list["Box"], int]  # local shape, boxes, padding elements
Box = tuple[int, tuple[int, ...], tuple[int, ...], int, tuple[int, ...]]  # part, start, shape, offset, strides


def padded_vocabulary(size: int, tensor_parallel: int) -> int:
    """Rows of Megatron's embedding: the smallest multiple of the tensor-parallel size that holds ``size``."""
    return -(-size // tensor_parallel) * tensor_parallel


@cache
def split(kind: Kind, parts: tuple[TensorSpec, ...], ways: int, index: int) -> Split:
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
        return split_vocabulary(first, padded_vocabulary(first[0], ways) // ways, index)
    if kind is Kind.QKV:
        return _split_groups(parts, ways, index)
    boxes: list[Box] = []
    rows, width = first[0] // ways, prod(first[1:])  # COLUMN: the parts' shards one below the other
    for i, part in enumerate(parts):
        start = (index * rows, *(0 for _ in first[1:]))
        boxes.append((i, start, (rows, *part.index[1:]), i * rows * width, row_major(part.index)))
    return (len(parts) * rows, *first[1:]), boxes, 0


def split_vocabulary(shape: tuple[int, ...], rows: int, index: int) -> Split:
    """As ``split``, of an embedding whose padded vocabulary gives every rank ``rows`` rows."""
    real = min(max(shape[0] - index * rows, 0), rows)
    local = (rows, *shape[1:])
    boxes: list[Box] = [(0, (index * rows, 0), (real, *shape[1:]), 0, row_major(local))] if real else []
    return local, boxes, (rows - real) * prod(shape[1:])


def _split_groups(parts: tuple[TensorSpec, ...], ways: int, index: int) -> Split:
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


def pack_shard(entries: Iterable[tuple[str, Iterable[str], Split]]) -> Shard:
    """A rank's shard from (local name, canonical names of its parts, what it holds of them)."""
    shapes: dict[str, tuple[int, ...]] = {}
    segments: list[Segment] = []
    padding: list[Padding] = []
    for local, parts, (shape, boxes, pad) in entries:
        names = tuple(parts)
        shapes[local] = shape
        segments += (
            Segment(names[part], start, extent, local, offset, strides)
            for part, start, extent, offset, strides in boxes
        )
        if pad:
            padding.append(Padding(local, prod(shape) - pad, pad))
    return Shard(shapes, tuple(segments), tuple(padding))


def layer_places(layers: int, sizes: ParallelSizes) -> list[tuple[int, int, int]]:
    """(pipeline stage, model chunk, number inside the chunk) of every decoder layer.

    A stage's layers are divided over its chunks; chunks take layers in turn (megatron.core's
    ``get_transformer_layer_offset``).
    """
    ends = {0: sizes.first_stage, sizes.pipeline - 1: sizes.last_stage} if sizes.pipeline > 1 else {}
    ends = {stage: count for stage, count in ends.items() if count}
    middle = (layers - sum(ends.values())) // max(sizes.pipeline - len(ends), 1)
    return [
        (stage, chunk, number)
        for chunk in range(sizes.virtual)
        for stage in range(sizes.pipeline)
        for number in range(ends.get(stage, middle) // sizes.virtual)
    ]


class _Placement:
    """Which rows lie in one pipeline stage, under which local names."""

    def __init__(
        self, found: Family, config: Mapping[str, Any], sizes: ParallelSizes, fused_norms: bool, grouped: bool
    ) -> None:
        self.sizes, self.fused_norms, self.grouped = sizes, fused_norms, grouped
        numbers = dimensions(found, config)
        self.experts = max(numbers["experts"] // sizes.expert, 1)  # per rank
        self.stages: dict[int, list[tuple[str, Instance]]] = defaultdict(list)
        places = layer_places(numbers["layers"], sizes)
        first, last = (0, 0, -1), (sizes.pipeline - 1, sizes.virtual - 1, -1)
        for instance in instances(found, config):
            if instance.layer >= len(places):  # multi-token prediction: after the last layers
                place = (*last[:2], instance.layer - len(places))
            elif instance.layer >= 0:
                place = places[instance.layer]
            else:
                place = first if EMBEDDING in instance.parts else last
            self._add(instance, place)
            if EMBEDDING in instance.parts and first != last:
                if tied(config):
                    head = next(row for row in found.rows if HEAD in row.parts)
                    self._add(Instance(head, -1, -1, instance.parts), last)
                if numbers.get("predictors"):  # they embed the next token
                    self._add(instance, last)

    def _add(self, instance: Instance, place: tuple[int, int, int]) -> None:
        row, (stage, chunk, layer) = instance.row, place
        pattern = row.fused_norm if self.fused_norms and row.fused_norm else row.megatron
        pattern = row.grouped if self.grouped and row.grouped else pattern
        local = f"{chunk}/{instance.name(pattern, layer, instance.expert % self.experts)}"
        self.stages[stage].append((local, instance))

    def shard(self, stage: int, tensor: int, expert: int, expert_tensor: int) -> Shard:
        """The shard at these coordinates."""
        return pack_shard(self._entries(stage, tensor, expert, expert_tensor))

    def _entries(
        self, stage: int, tensor: int, expert: int, expert_tensor: int
    ) -> Iterator[tuple[str, Iterable[str], Split]]:
        for local, instance in self.stages[stage]:
            row = instance.row
            kind = row.te_kind if self.fused_norms and row.te_kind else row.kind
            if not row.per_expert:
                yield local, instance.parts, split(kind, tuple(instance.parts.values()), self.sizes.tensor, tensor)
            elif instance.expert // self.experts == expert:
                ways = self.sizes.expert_tensor
                yield local, instance.parts, split(kind, tuple(instance.parts.values()), ways, expert_tensor)


def megatron_layout(
    hf_config: Mapping[str, Any], sizes: ParallelSizes, *, fused_norms: bool = False, grouped_experts: bool = False
) -> Layout:
    """The segments of every rank. A local name is "{model chunk}/{name in named_parameters() or named_buffers()}".

    ``fused_norms``: Transformer Engine's layers, which hold each norm in the linear after it and, in latent
    attention, the down-projections whole on every rank. ``grouped_experts``: TEGroupedMLP's names instead of
    SequentialMLP's. A trainer that has no multi-token prediction layers passes ``num_nextn_predict_layers=0``.
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


def layout_violations(hf_config: Mapping[str, Any], sizes: ParallelSizes, *, fused_norms: bool = False) -> list[str]:
    """Every reason why the model cannot be sharded this way, each with the sizes that can; empty when it can.

    ``fused_norms`` as for ``megatron_layout``. Raises InputError for an unknown family.
    """
    found = family(hf_config)
    numbers = dimensions(found, hf_config)
    named = {
        "tensor_parallel": sizes.tensor,
        "pipeline_parallel": sizes.pipeline,
        "virtual_pipeline": sizes.virtual,
        "context_parallel": sizes.context,
        "expert_parallel": sizes.expert,
        "expert_tensor_parallel": sizes.expert_tensor,
        "data_parallel": sizes.data,
    }
    problems = [f"actor.{key}={size} is not positive." for key, size in named.items() if size < 1]
    if problems:
        return problems
    problems += _tensor_violations(found, hf_config, numbers, sizes.tensor, fused_norms)
    problems += _pipeline_violations(numbers["layers"], sizes)
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


def _pipeline_violations(layers: int, sizes: ParallelSizes) -> list[str]:
    if sizes.virtual > 1 and sizes.pipeline == 1:
        return [f"actor.virtual_pipeline={sizes.virtual} needs actor.pipeline_parallel > 1."]
    stages = sizes.pipeline * sizes.virtual
    if not (sizes.first_stage or sizes.last_stage) or sizes.pipeline == 1:
        if layers % stages == 0:
            return []
        what = f"actor.pipeline_parallel={sizes.pipeline}"
        if sizes.virtual > 1:
            what = f"actor.pipeline_parallel x actor.virtual_pipeline = {sizes.pipeline} x {sizes.virtual}"
        return [_indivisible(what, "num_hidden_layers", layers, lambda n: layers % n == 0)]
    if len(layer_places(layers, sizes)) == layers:
        return []
    return [
        f"first_stage={sizes.first_stage} and last_stage={sizes.last_stage} leave layers that cannot be divided evenly "
        f"over the other stages and their chunks (num_hidden_layers={layers}, pipeline_parallel={sizes.pipeline}, "
        f"virtual_pipeline={sizes.virtual})."
    ]


def _tensor_violations(
    found: Family, config: Mapping[str, Any], numbers: dict[str, int], size: int, fused_norms: bool
) -> list[str]:
    heads, groups = numbers["heads"], numbers["groups"]
    rules: list[tuple[str, int, Callable[[int], bool]]] = [("num_attention_heads", heads, lambda n: heads % n == 0)]
    if "kv" in numbers:
        features = (heads + 2 * groups) * numbers["head_dim"]
        # Megatron replicates the work of a group when there are more ranks than groups.
        rules.append(
            ("num_key_value_heads", groups, lambda n: groups % n == 0 or (n % groups == 0 and features % n == 0))
        )
    elif not fused_norms:  # latent attention with Megatron's own layers splits the down-projections
        down = {"q_lora_rank": "q_lora", "kv_lora_rank + qk_rope_head_dim": "kv_lora_rope"}
        rules += ((key, n, partial(_divides, n)) for key, name in down.items() if (n := numbers.get(name, 0)))
    if not all(expert_layer(found, config, layer) for layer in range(numbers["layers"])):
        rules.append(("intermediate_size", numbers["mlp"], partial(_divides, numbers["mlp"])))
    if numbers.get("predictors"):
        rules.append(("hidden_size", numbers["hidden"], partial(_divides, numbers["hidden"])))
    if shared := numbers.get("shared_mlp"):
        rules.append(("moe_intermediate_size x n_shared_experts", shared, partial(_divides, shared)))
    what = f"actor.tensor_parallel={size}"
    return [_indivisible(what, key, value, divides) for key, value, divides in rules if not divides(size)]


def _divides(value: int, size: int) -> bool:
    return value % size == 0


def _indivisible(what: str, key: str, value: int, divides: Callable[[int], bool]) -> str:
    fitting = [str(n) for n in range(1, value + 1) if divides(n)]
    shown = fitting if len(fitting) <= 12 else [*fitting[:11], "...", fitting[-1]]
    return f"{what} does not divide {key}={value}; {', '.join(shown)} do."
