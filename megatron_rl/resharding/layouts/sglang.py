"""Where an SGLang engine keeps the canonical tensors: the parameters of every worker, by its own names.

Follows SGLang 0.5.21's modules for unquantised weights: q, k and v stand one below the other in ``qkv_proj``, gate and
up in ``gate_up_proj``, a layer's experts are stacked in ``w13_weight`` and ``w2_weight``, latent attention's two
down-projections are one matrix on every worker. Shared experts are modules of their own
(``--disable-shared-experts-fusion``, or expert parallelism). What SGLang derives from its parameters (latent
attention's ``w_kc`` and ``w_vc``) is not listed. Plans on paper use this table; a running engine's layout is learnt
(``learnt``). Imports no torch.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from math import prod
from typing import Any

from megatron_rl.resharding.families import canonical_tensors, family
from megatron_rl.resharding.families.table import (
    EMBEDDING,
    HEAD,
    Instance,
    Kind,
    dense_layers,
    dimensions,
    instances,
    tied,
)
from megatron_rl.resharding.layout import Layout, Padding, Segment, Shard, TensorSpec, row_major
from megatron_rl.resharding.layouts.megatron import Box, Split, fitting, indivisible, split, split_vocabulary

PADDING = 64  # rows: the vocabulary is padded to a multiple of it
_FUSED = {  # the last parts of Hugging Face's names -> SGLang's
    "self_attn.q_proj.": "self_attn.qkv_proj.",
    "mlp.gate_proj.": "mlp.gate_up_proj.",
    "mlp.shared_experts.gate_proj.": "mlp.shared_experts.gate_up_proj.",
}
_HEAD_ON_ALL = ("llama", "mistral", "qwen3_moe", "glm4_moe")  # every stage builds and loads their untied head
_LATENT = "self_attn.fused_qkv_a_proj_with_mqa."  # q_a_proj above kv_a_proj_with_mqa


@dataclass(frozen=True)
class EngineSizes:
    """Parallel sizes of rollout engines. Workers are numbered tensor, pipeline, data, fastest first."""

    tensor: int = 1  # workers that share every matrix (--tp)
    pipeline: int = 1  # stages (--pp)
    expert: int = 1  # groups of the tensor-parallel workers that share the experts (--ep)
    data: int = 1  # engines

    @property
    def world(self) -> int:
        return self.tensor * self.pipeline * self.data


def padded_vocabulary(size: int, tensor_parallel: int) -> int:
    """Rows of SGLang's embedding: a multiple of 64, and of 64 x tensor-parallel where that does not divide it."""
    rows = -(-size // PADDING) * PADDING
    return rows if rows % tensor_parallel == 0 else -(-size // (PADDING * tensor_parallel)) * PADDING * tensor_parallel


def _stages(layers: int, pipeline: int) -> list[int]:
    """The stage of every layer; the last stages take one more where they do not divide (``get_pp_indices``)."""
    base, more = divmod(layers, pipeline)
    return [stage for stage in range(pipeline) for _ in range(base + (stage >= pipeline - more))]


@cache
def _split_heads(parts: tuple[TensorSpec, ...], ways: int, index: int) -> Split:
    """[q; k; v] of one worker. With more workers than key heads, several hold the same key and value head."""
    groups, trailing = parts[0].index[0], parts[0].index[2:]
    width, boxes, rows = prod(trailing), [], 0
    for part, spec in enumerate(parts):
        height = spec.index[1]  # rows of one group
        if ways <= groups:
            count, group, low = groups // ways, index * groups // ways, 0
        else:
            cuts = ways // groups
            count, group, low = 1, index // cuts, 0
            if part == 0:
                height //= cuts
                low = index % cuts * height
        start = (group, low, *(0 for _ in trailing))
        shape = (count, height, *trailing)
        box: Box = (part, start, shape, rows * width, row_major(shape))
        boxes.append(box)
        rows += count * height
    return (rows, *trailing), boxes, 0


def _local(instance: Instance, q_lora: bool) -> str:
    """SGLang's name of the parameter that holds the instance."""
    row, name = instance.row, next(iter(instance.parts))
    if row.per_expert:
        prefix = name.partition(f"experts.{instance.expert}.")[0]
        return f"{prefix}experts.{'w2_weight' if row.kind is Kind.ROW else 'w13_weight'}"
    for ending in ("self_attn.q_a_proj.", "self_attn.kv_a_proj_with_mqa.") if q_lora else ():
        name = name.replace(ending, _LATENT)
    if len(instance.parts) > 1:
        for ending, fused in _FUSED.items():
            name = name.replace(ending, fused)
    return name


class _Engine:
    """What lies in which pipeline stage of an engine, and how a worker's share of it is cut."""

    def __init__(self, hf_config: Mapping[str, Any], sizes: EngineSizes) -> None:
        found = family(hf_config)
        numbers = dimensions(found, hf_config)
        self.sizes = sizes
        self.experts = max(numbers["experts"] // sizes.expert, 1)  # per worker
        self.unused: set[str] = set()
        self.stages: list[list[tuple[str, Instance]]] = [[] for _ in range(sizes.pipeline)]
        stage_of, last = _stages(numbers["layers"], sizes.pipeline), sizes.pipeline - 1
        for instance in instances(found, hf_config):
            if instance.layer >= len(stage_of):
                self.unused.update(instance.parts)
                continue
            embedding = EMBEDDING in instance.parts
            stage = stage_of[instance.layer] if instance.layer >= 0 else 0 if embedding else last
            if HEAD in instance.parts and found.model_type in _HEAD_ON_ALL:
                for before in self.stages[:-1]:
                    before.append((HEAD, instance))
            self.stages[stage].append((_local(instance, "q_lora" in numbers), instance))
            if embedding and tied(hf_config) and last > 0:
                self.stages[last].append((HEAD, instance))

    def _pieces(self, stage: int, tensor: int) -> Iterator[tuple[str, Instance, Split]]:
        ways = self.sizes.tensor // self.sizes.expert  # workers that share one expert
        for local, instance in self.stages[stage]:
            row, specs = instance.row, tuple(instance.parts.values())
            if row.per_expert:
                if instance.expert // self.experts == tensor // ways:
                    yield local, instance, split(row.kind, specs, ways, tensor % ways)
            elif row.kind is Kind.QKV:
                yield local, instance, _split_heads(specs, self.sizes.tensor, tensor)
            elif row.kind is Kind.VOCABULARY:
                rows = padded_vocabulary(specs[0].shape[0], self.sizes.tensor) // self.sizes.tensor
                yield local, instance, split_vocabulary(specs[0].shape, rows, tensor)
            else:
                yield local, instance, split(row.te_kind or row.kind, specs, self.sizes.tensor, tensor)

    def shard(self, stage: int, tensor: int) -> Shard:
        """One worker's parameters; what has the same local name lies one below the other."""
        shapes: dict[str, tuple[int, ...]] = {}
        filled: dict[str, int] = {}
        segments: list[Segment] = []
        padding: list[Padding] = []
        for local, instance, (shape, boxes, pad) in self._pieces(stage, tensor):
            begin, names = filled.get(local, 0), tuple(instance.parts)
            segments += [
                Segment(names[part], start, extent, local, begin + offset, strides)
                for part, start, extent, offset, strides in boxes
            ]
            filled[local] = begin + prod(shape)
            if pad:
                padding.append(Padding(local, filled[local] - pad, pad))
            if instance.row.per_expert:
                shapes[local] = (self.experts, *shape)
            else:
                shapes[local] = (shapes.get(local, (0,))[0] + shape[0], *shape[1:])
        return Shard(shapes, tuple(segments), tuple(padding))


def sglang_layout(hf_config: Mapping[str, Any], sizes: EngineSizes) -> Layout:
    """The segments of every worker. Multi-token prediction layers, which a draft model holds, are declared unused.

    The sizes must divide as ``engine_violations`` asks. Raises InputError for an unknown family.
    """
    engine = _Engine(hf_config, sizes)
    make = cache(engine.shard)  # engines share one shard
    ranks = tuple(
        make(stage, tensor)
        for _ in range(sizes.data)
        for stage in range(sizes.pipeline)
        for tensor in range(sizes.tensor)
    )
    return Layout(canonical_tensors(hf_config), ranks, frozenset(engine.unused))


def engine_violations(hf_config: Mapping[str, Any], sizes: EngineSizes) -> list[str]:
    """Every reason why engines cannot shard the model this way, each with the sizes that can; empty when they can."""
    named = {
        "tensor_parallel": sizes.tensor,
        "pipeline_parallel": sizes.pipeline,
        "expert_parallel": sizes.expert,
        "data_parallel": sizes.data,
    }
    problems = [f"engine.{key}={size} is not positive." for key, size in named.items() if size < 1]
    if problems:
        return problems
    found = family(hf_config)
    numbers = dimensions(found, hf_config)
    heads, groups = numbers["heads"], numbers["groups"]
    tensor, expert = f"engine.tensor_parallel={sizes.tensor}", f"engine.expert_parallel={sizes.expert}"
    rules = [(tensor, sizes.tensor, "num_attention_heads", heads)]
    if dense_layers(found, hf_config):
        rules.append((tensor, sizes.tensor, "intermediate_size", numbers["mlp"]))
    if "shared_mlp" in numbers:
        rules.append((tensor, sizes.tensor, "moe_intermediate_size x n_shared_experts", numbers["shared_mlp"]))
    if numbers["experts"]:
        rules.append((expert, sizes.expert, "num_experts", numbers["experts"]))
        rules.append((expert, sizes.expert, "engine.tensor_parallel", sizes.tensor))
        if sizes.tensor % sizes.expert == 0:
            what = f"engine.tensor_parallel / engine.expert_parallel = {sizes.tensor} / {sizes.expert}"
            rules.append((what, sizes.tensor // sizes.expert, "moe_intermediate_size", numbers["expert_mlp"]))
    elif sizes.expert > 1:
        problems.append(f"{expert}, but {found.model_type} has no experts; use 1.")
    problems += [indivisible(what, key, value) for what, size, key, value in rules if value % size]
    if "kv" in numbers and groups % sizes.tensor and sizes.tensor % groups:
        fit = fitting(heads, lambda n: heads % n == 0 and (groups % n == 0 or n % groups == 0))
        problems.append(f"{tensor} and num_key_value_heads={groups} do not divide each other; {fit}.")
    if sizes.pipeline > numbers["layers"]:
        problems.append(f"engine.pipeline_parallel={sizes.pipeline} exceeds num_hidden_layers={numbers['layers']}.")
    return problems
