"""What a family is: a table of rows, and the sizes that a config.json gives to their symbols."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import Enum
from functools import cache
from typing import Any

from megatron_rl.errors import InputError
from megatron_rl.resharding.layout import TensorSpec


class Kind(Enum):
    """How Megatron lays a row's parts out over tensor-parallel ranks."""

    COPY = "copy"  # every rank holds all of it
    COLUMN = "column"  # output features (dimension 0) of every part are split; a rank holds [its gate; its up]
    ROW = "row"  # input features (dimension 1) are split
    QKV = "qkv"  # parts q, k, v: one [q, k, v] block per query group; blocks are split
    VOCABULARY = "vocabulary"  # dimension 0, padded to a multiple of the ranks, is split


class Layers(Enum):
    """Which decoder layers a row belongs to."""

    ALL = "all"
    DENSE = "dense"
    EXPERTS = "experts"


@dataclass(frozen=True)
class Row:
    """One Megatron parameter and the Hugging Face tensors in it. Names hold {layer} and {expert} where they repeat.

    A row without {layer} that stands before the layers' rows lives on the first pipeline stage, one after them on
    the last.
    """

    kind: Kind
    megatron: str
    parts: dict[str, tuple[str, ...]]  # canonical name -> symbols of its dimensions
    fused_norm: str = ""  # Megatron's name where Transformer Engine fuses the norm into the next linear
    grouped: str = ""  # Megatron's name in TEGroupedMLP
    stacked: str = ""  # transformers' parameter that stacks [expert, parts one below the other, ...]
    layers: Layers = Layers.ALL

    @property
    def per_layer(self) -> bool:
        return "{layer}" in self.megatron

    @property
    def per_expert(self) -> bool:
        return "{expert}" in self.megatron


@dataclass(frozen=True)
class Family:
    """A model family: ``model_type`` and the rows of its table, in the order of the forward pass."""

    model_type: str
    architecture: str  # transformers' class
    rows: tuple[Row, ...]
    fixed: dict[str, tuple[Any, Any]] = field(default_factory=dict)  # key -> (value the rows assume, value if absent)
    ignored: tuple[str, ...] = ("rotary_emb.inv_freq",)  # endings of stored tensors that are no weights

    @property
    def experts(self) -> bool:
        return any(row.per_expert for row in self.rows)


EMBEDDING = "model.embed_tokens.weight"
HEAD = "lm_head.weight"
FINAL_NORM = "model.norm.weight"


def value(config: Mapping[str, Any], *keys: str, default: Any = None) -> Any:
    """The first of these keys that config.json sets; InputError when none is set and there is no default."""
    for key in keys:
        if config.get(key) is not None:
            return config[key]
    if default is None:
        raise InputError(f"config.json has no {' or '.join(keys)}: the model's sizes cannot be known without it.")
    return default


def dimensions(family: Family, config: Mapping[str, Any]) -> dict[str, int]:
    """Sizes of the symbols that rows use, and ``heads``, ``groups``, ``layers``, ``experts``."""
    heads = value(config, "num_attention_heads")
    hidden = value(config, "hidden_size")
    head_dim = value(config, "head_dim", default=hidden // heads)
    groups = value(config, "num_key_value_heads", default=heads)
    sizes = {
        "hidden": hidden,
        "heads": heads,
        "groups": groups,
        "head_dim": head_dim,
        "q": heads * head_dim,
        "kv": groups * head_dim,
        "mlp": value(config, "intermediate_size"),
        "vocabulary": value(config, "vocab_size"),
        "layers": value(config, "num_hidden_layers"),
        "experts": 0,
    }
    if family.experts:
        # transformers 5 writes num_local_experts where the checkpoints on the hub say num_experts.
        sizes["experts"] = value(config, "num_experts", "num_local_experts")
        sizes["expert_mlp"] = value(config, "moe_intermediate_size")
    for name, size in sizes.items():
        if not isinstance(size, int) or size < (0 if name == "experts" else 1):
            raise InputError(f"config.json gives {name} the size {size!r}; a positive whole number is needed.")
    if heads % groups:
        raise InputError(
            f"config.json has num_attention_heads={heads}, not a multiple of num_key_value_heads={groups}."
        )
    return sizes


def expert_layer(family: Family, config: Mapping[str, Any], layer: int) -> bool:
    """True when this decoder layer is a mixture of experts (``mlp_only_layers``, ``decoder_sparse_step``)."""
    if not family.experts:
        return False
    step = config.get("decoder_sparse_step") or 1
    return layer not in (config.get("mlp_only_layers") or ()) and (layer + 1) % step == 0


def tied(config: Mapping[str, Any]) -> bool:
    """True when the output head is the embedding."""
    return bool(config.get("tie_word_embeddings", False))


@cache
def _spec(kind: Kind, shape: tuple[int, ...], groups: int) -> TensorSpec:
    return TensorSpec(shape, (groups, shape[0] // groups, *shape[1:]) if kind is Kind.QKV else shape)


@dataclass(frozen=True, slots=True)
class Instance:
    """A row at one layer (-1: outside the decoder layers) and expert (-1: none), with its canonical tensors."""

    row: Row
    layer: int
    expert: int
    parts: dict[str, TensorSpec]

    def name(self, pattern: str, layer: int | None = None, expert: int | None = None) -> str:
        """``pattern`` with this instance's numbers, or with local ones."""
        return pattern.format(
            layer=self.layer if layer is None else layer, expert=self.expert if expert is None else expert
        )


def instances(family: Family, config: Mapping[str, Any]) -> Iterator[Instance]:
    """Every row at every layer and expert that it applies to, in the order of the forward pass."""
    sizes = dimensions(family, config)
    repeated = [i for i, row in enumerate(family.rows) if row.per_layer]
    before, after = family.rows[: repeated[0]], family.rows[repeated[-1] + 1 :]

    def repeat(rows: Iterable[Row], layer: int = -1) -> Iterator[Instance]:
        for row in rows:
            specs = [_spec(row.kind, tuple(sizes[d] for d in dims), sizes["groups"]) for dims in row.parts.values()]
            for expert in range(sizes["experts"]) if row.per_expert else (-1,):
                names = (name.format(layer=layer, expert=expert) for name in row.parts)
                yield Instance(row, layer, expert, dict(zip(names, specs, strict=True)))

    yield from repeat(before)
    for layer in range(sizes["layers"]):
        here = (Layers.ALL, Layers.EXPERTS if expert_layer(family, config, layer) else Layers.DENSE)
        yield from repeat((row for row in family.rows[repeated[0] : repeated[-1] + 1] if row.layers in here), layer)
    yield from repeat(row for row in after if not (HEAD in row.parts and tied(config)))
