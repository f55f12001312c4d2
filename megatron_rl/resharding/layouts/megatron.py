"""Where Megatron-Core keeps the canonical tensors: the parameters of every rank's GPTModel chunks.

Names and shapes are those of megatron-core 0.16 and 0.19: weights are [out, in]; ``linear_qkv`` holds [q, k, v] per
query group; ``linear_fc1`` holds [gate shard; up shard]. The router's bias is a buffer there, everything else a
parameter. Imports no torch.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cache
from math import prod
from typing import Any

from megatron_rl.resharding.families import family
from megatron_rl.resharding.families.architecture import padded_vocabulary
from megatron_rl.resharding.families.table import (
    EMBEDDING,
    HEAD,
    Family,
    Instance,
    Kind,
    dense_layers,
    dimensions,
    instances,
    tied,
)
from megatron_rl.resharding.layout import Layout, Padding, ParallelSizes, Segment, Shard, TensorSpec, row_major

Split = tuple[tuple[int, ...], list["Box"], int]  # local shape, boxes, padding elements
Box = tuple[int, tuple[int, ...], tuple[int, ...], int, tuple[int, ...]]  # part, start, shape, offset, strides


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
        self.tensors: dict[str, TensorSpec] = {}  # canonical
        places = layer_places(numbers["layers"], sizes)
        first, last = (0, 0, -1), (sizes.pipeline - 1, sizes.virtual - 1, -1)
        for instance in instances(found, config):
            self.tensors |= instance.parts
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
    return Layout(placement.tensors, tuple(ranks))


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
    ends = {"first_stage": sizes.first_stage, "last_stage": sizes.last_stage}
    problems = [f"actor.{key}={size} is not positive." for key, size in named.items() if size < 1]
    problems += [f"actor.{key}={size} is negative." for key, size in ends.items() if size < 0]
    if problems:
        return problems
    problems += _tensor_violations(found, hf_config, numbers, sizes.tensor, fused_norms)
    problems += _pipeline_violations(numbers["layers"], sizes)
    return problems + _expert_violations(found, numbers, sizes)


def _expert_violations(found: Family, numbers: Mapping[str, int], sizes: ParallelSizes) -> list[str]:
    expert, cut = sizes.expert, sizes.expert_tensor
    said = {"actor.expert_parallel": expert, "actor.expert_tensor_parallel": cut}
    said = {key: size for key, size in said.items() if size > 1}
    if not numbers["experts"]:
        return [f"{key}={size}, but {found.model_type} has no experts; use 1." for key, size in said.items()]
    ranks = "the ranks of one pipeline stage, tensor_parallel x context_parallel x data_parallel"
    rules = [
        (f"actor.expert_parallel={expert}", expert, "num_experts", numbers["experts"]),
        (f"actor.expert_tensor_parallel={cut}", cut, "moe_intermediate_size", numbers["expert_mlp"]),
        (_product(said), expert * cut, ranks, sizes.stage),
    ]
    return [indivisible(what, key, value) for what, size, key, value in rules if value % size]


def _pipeline_violations(layers: int, sizes: ParallelSizes) -> list[str]:
    chunks = {"actor.virtual_pipeline": sizes.virtual} if sizes.virtual > 1 else {}
    ends = {"actor.first_stage": sizes.first_stage, "actor.last_stage": sizes.last_stage}
    if sizes.pipeline == 1:
        said = chunks | {key: count for key, count in ends.items() if count}
        return [f"{key}={size} needs actor.pipeline_parallel > 1." for key, size in said.items()]
    stages = {"actor.pipeline_parallel": sizes.pipeline} | chunks
    places = layer_places(layers, sizes)
    if len(places) == layers and len({place[:2] for place in places}) == sizes.pipeline * sizes.virtual:
        return []
    even_ends = fitting_ends(layers, sizes.pipeline, sizes.virtual)
    if not any(ends.values()):
        cure = f" Or set {_listed(dict(zip(ends, even_ends, strict=True)))}." if even_ends else ""
        return [indivisible(_product(stages), "num_hidden_layers", layers) + cure]
    cure = f"; {_listed(dict(zip(ends, even_ends, strict=True)))} would do" if even_ends else ""
    return [
        f"actor.first_stage={sizes.first_stage} and actor.last_stage={sizes.last_stage} leave layers that cannot be "
        f"divided evenly over the other stages and their chunks (num_hidden_layers={layers}, {_listed(stages)}){cure}."
    ]


def fitting_ends(layers: int, pipeline: int, virtual: int) -> tuple[int, int] | None:
    """Layers of the first and the last stage that leave the same number to each of the others, as even as can be."""
    for middle in range(-(-layers // pipeline), 0, -1):
        left = layers - middle * (pipeline - 2)
        if middle % virtual == left % virtual == 0 and left >= 2 * virtual:
            first = left // (2 * virtual) * virtual
            return first, left - first
    return None


def _listed(sizes: Mapping[str, int]) -> str:
    return ", ".join(f"{key}={size}" for key, size in sizes.items())


def _product(sizes: Mapping[str, int]) -> str:
    """a=2, or "a x b = 2 x 3" of several."""
    return f"{' x '.join(sizes)} = {' x '.join(map(str, sizes.values()))}" if len(sizes) > 1 else _listed(sizes)


def _tensor_violations(
    found: Family, config: Mapping[str, Any], numbers: dict[str, int], size: int, fused_norms: bool
) -> list[str]:
    heads, groups, what = numbers["heads"], numbers["groups"], f"actor.tensor_parallel={size}"
    rules, problems = [("num_attention_heads", heads)], []
    if "kv" in numbers:
        features = (heads + 2 * groups) * numbers["head_dim"]

        def grouped(n: int) -> bool:  # Megatron replicates the work of a group when there are more ranks than groups
            return groups % n == 0 or (n % groups == 0 and features % n == 0)

        if not grouped(size):
            fit = fitting(heads, lambda n: heads % n == 0 and grouped(n))
            problems.append(f"{what} and num_key_value_heads={groups} do not divide each other; {fit}.")
    elif not fused_norms:  # latent attention with Megatron's own layers splits the down-projections
        down = {"q_lora_rank": "q_lora", "kv_lora_rank + qk_rope_head_dim": "kv_lora_rope"}
        rules += ((key, n) for key, name in down.items() if (n := numbers.get(name, 0)))
    if dense_layers(found, config):
        rules.append(("intermediate_size", numbers["mlp"]))
    if numbers.get("predictors"):
        rules.append(("hidden_size", numbers["hidden"]))
    if shared := numbers.get("shared_mlp"):
        rules.append(("moe_intermediate_size x n_shared_experts", shared))
    return [indivisible(what, key, value) for key, value in rules if value % size] + problems


def indivisible(what: str, key: str, value: int) -> str:
    """That ``what`` does not divide the size ``key``, and what does."""
    return f"{what} does not divide {key}={value}; {fitting(value, lambda n: value % n == 0)}."


def fitting(most: int, fits: Callable[[int], bool]) -> str:
    """The sizes up to ``most`` that fit, as "1, 2, 4 do": the first ones and the last."""
    found = [str(n) for n in range(1, most + 1) if fits(n)]
    shown = found if len(found) <= 12 else [*found[:11], "...", found[-1]]
    return f"{', '.join(shown)} {'do' if len(found) > 1 else 'does'}"
