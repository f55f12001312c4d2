"""What a family is: a table of rows, and the sizes that a config.json gives to their symbols."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
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
    PREDICTORS = "predictors"  # the multi-token prediction layers, which are numbered after the decoder's


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
    te_kind: Kind | None = None  # where Transformer Engine's layers are laid out in another way
    stacked: str = ""  # transformers' parameter that stacks [expert, parts one below the other, ...]
    layers: Layers = Layers.ALL
    needs: str = ""  # key of config.json that must be set (true, or not zero) for the row to exist
    lacks: str = ""  # key that must not be set
    dtype: str = ""  # where it is not the model's
    linear: bool = False  # a matrix that FP8 checkpoints quantise

    @property
    def per_layer(self) -> bool:
        return "{layer}" in self.megatron

    @property
    def per_expert(self) -> bool:
        return "{expert}" in self.megatron


# What transformers takes where config.json says nothing, in most families; None: what other keys make of it.
DEFAULTS: dict[str, Any] = {
    "num_key_value_heads": None,  # as many as there are heads
    "head_dim": None,  # hidden_size // num_attention_heads
    "tie_word_embeddings": False,
    "rms_norm_eps": 1e-6,
    "hidden_act": "silu",
}
PREDICTORS = "num_nextn_predict_layers"
DTYPE_KEYS = ("dtype", "torch_dtype")  # transformers 5's name goes before 4's
IGNORED = ("rotary_emb.inv_freq",)  # endings of stored tensors that are no weights


@dataclass(frozen=True)
class Family:
    """A model family: ``model_type`` and the rows of its table, in the order of the forward pass."""

    model_type: str
    architecture: str  # transformers' class
    rows: tuple[Row, ...]
    fixed: dict[str, tuple[Any, Any]] = field(default_factory=dict)  # key -> (value the rows assume, value if absent)
    defaults: dict[str, Any] = field(default_factory=dict)  # besides, or instead of, DEFAULTS
    nullable: tuple[str, ...] = ()  # keys with a default that may be null all the same
    expert_keys: tuple[str, ...] = ()  # names of the number of experts; the first that is there counts
    leading_dense: bool = False  # the first ``first_k_dense_replace`` layers are dense, all others have experts

    @property
    def experts(self) -> bool:
        return any(row.per_expert for row in self.rows)

    @property
    def predicts(self) -> bool:
        """True when the table has multi-token prediction layers (``num_nextn_predict_layers``)."""
        return any(row.layers is Layers.PREDICTORS for row in self.rows)


EMBEDDING = "model.embed_tokens.weight"
HEAD = "lm_head.weight"
SCORE = "score.weight"  # a scalar head: transformers' ForSequenceClassification with one label
FINAL_NORM = "model.norm.weight"


def completed(found: Family, config: Mapping[str, Any]) -> dict[str, Any]:
    """A config.json with what transformers takes for the keys that it does not have."""
    return {**DEFAULTS, **found.defaults, **config}


def stored_dtype(config: Mapping[str, Any]) -> str | None:
    """The weights' dtype as config.json has it, under transformers 5's name or, where that is not set, under 4's."""
    return next((str(config[key]) for key in DTYPE_KEYS if config.get(key) is not None), None)


def value(config: Mapping[str, Any], *keys: str, default: int | None = None, least: int = 1) -> int:
    """The first of these keys that config.json sets: a whole number, ``least`` or more.

    Raises InputError naming the key when it is anything else, or when none is set and there is no default.
    """
    for key in keys:
        found = config.get(key)
        if found is None:
            continue
        if type(found) is not int or found < least:  # a bool is an int, too
            raise InputError(f"config.json has {key}={found!r}; a whole number of {least} or more is needed.")
        return found
    if default is None:
        raise InputError(f"config.json has no {' or '.join(keys)}: the model's sizes cannot be known without it.")
    return default


def _heads(config: Mapping[str, Any]) -> int:
    return value(config, "num_attention_heads")


def _head_dim(config: Mapping[str, Any]) -> int:
    # with fewer features than heads it cannot be left out
    return value(config, "head_dim", default=value(config, "hidden_size") // _heads(config) or None)


def _groups(config: Mapping[str, Any]) -> int:
    return value(config, "num_key_value_heads", default=_heads(config))


def _predictors(config: Mapping[str, Any]) -> int:
    return value(config, PREDICTORS, default=0, least=0)


_SIZES: dict[str, Callable[[Mapping[str, Any]], int]] = {  # symbol -> its size
    "hidden": lambda c: value(c, "hidden_size"),
    "two_hidden": lambda c: 2 * value(c, "hidden_size"),
    "heads": _heads,
    "groups": _groups,
    "head_dim": _head_dim,
    "q": lambda c: _heads(c) * _head_dim(c),
    "kv": lambda c: _groups(c) * _head_dim(c),
    "mlp": lambda c: value(c, "intermediate_size"),
    "vocabulary": lambda c: value(c, "vocab_size"),
    "one": lambda c: 1,
    "layers": lambda c: value(c, "num_hidden_layers"),
    "expert_mlp": lambda c: value(c, "moe_intermediate_size"),
    "shared_mlp": lambda c: value(c, "moe_intermediate_size") * value(c, "n_shared_experts"),
    # multi-head latent attention: a query and key of each head has a part without and a part with positions
    "q_lora": lambda c: value(c, "q_lora_rank"),
    "kv_lora": lambda c: value(c, "kv_lora_rank"),
    "kv_lora_rope": lambda c: value(c, "kv_lora_rank") + value(c, "qk_rope_head_dim"),
    "latent_q": lambda c: _heads(c) * (value(c, "qk_nope_head_dim") + value(c, "qk_rope_head_dim")),
    "latent_kv": lambda c: _heads(c) * (value(c, "qk_nope_head_dim") + value(c, "v_head_dim")),
    "latent_v": lambda c: _heads(c) * value(c, "v_head_dim"),
}


def active_rows(family: Family, config: Mapping[str, Any]) -> list[Row]:
    """The rows that this config.json's options call for."""
    config = completed(family, config)
    return [
        row
        for row in family.rows
        if (not row.needs or config.get(row.needs))
        and (not row.lacks or not config.get(row.lacks))
        and (row.layers is not Layers.PREDICTORS or _predictors(config))
    ]


def dimensions(family: Family, config: Mapping[str, Any]) -> dict[str, int]:
    """Sizes of the symbols that rows use, and ``heads``, ``groups``, ``layers``, ``experts``, ``predictors``.

    A family without grouped queries has as many groups as heads; one without experts has 0 of them. Raises InputError
    naming a key of config.json that is missing or no such size.
    """
    given, config = config, completed(family, config)
    used = {symbol for row in active_rows(family, config) for dims in row.parts.values() for symbol in dims}
    used |= {"heads", "mlp", "layers"} | ({"groups", "head_dim"} if "kv" in used else set())
    sizes = {symbol: size(config) for symbol, size in _SIZES.items() if symbol in used}
    if "experts" in used:
        sizes["experts"] = value(config, *family.expert_keys)
    sizes.setdefault("groups", sizes["heads"])
    sizes.setdefault("experts", 0)
    if family.predicts:
        sizes["predictors"] = _predictors(config)
    heads, groups = sizes["heads"], sizes["groups"]
    if heads % groups:
        whose = "" if "num_key_value_heads" in given else ", transformers' default"
        raise InputError(
            f"config.json has num_attention_heads={heads}, not a multiple of num_key_value_heads={groups}{whose}."
        )
    return sizes


def expert_layer(family: Family, config: Mapping[str, Any], layer: int) -> bool:
    """True when this decoder layer is a mixture of experts.

    ``first_k_dense_replace`` (DeepSeek, GLM), ``mlp_only_layers`` and ``decoder_sparse_step`` (Qwen) say which are.
    """
    if not family.experts:
        return False
    if family.leading_dense:
        return layer >= value(config, "first_k_dense_replace", least=0)
    config = completed(family, config)
    dense = config.get("mlp_only_layers") or []
    if not isinstance(dense, Sequence) or any(type(number) is not int for number in dense):
        raise InputError(f"config.json has mlp_only_layers={dense!r}; a list of layers' numbers is needed.")
    return layer not in dense and (layer + 1) % value(config, "decoder_sparse_step") == 0


def dense_layers(family: Family, config: Mapping[str, Any]) -> bool:
    """True when a decoder layer is no mixture of experts, so that ``intermediate_size`` is the size of something."""
    return not all(expert_layer(family, config, layer) for layer in range(value(config, "num_hidden_layers")))


def scalar_head(config: Mapping[str, Any]) -> bool:
    """True when config.json is that of a model whose head gives one number a token, and no logits."""
    named = config.get("architectures")
    return isinstance(named, list) and any(str(name).endswith("ForSequenceClassification") for name in named)


def tied(config: Mapping[str, Any]) -> bool:
    """True when the output head is the embedding."""
    return not scalar_head(config) and bool(config.get("tie_word_embeddings", DEFAULTS["tie_word_embeddings"]))


def aliases(family: Family, config: Mapping[str, Any]) -> dict[str, str]:
    """Tensors that a checkpoint may store a second time -> the canonical tensor that they equal.

    They are the head of a tied model, and embedding and head of every multi-token prediction layer.
    """
    head = EMBEDDING if tied(config) else HEAD
    found = {HEAD: EMBEDDING} if tied(config) else {}
    sizes = dimensions(family, config)
    for layer in range(sizes["layers"], sizes["layers"] + sizes.get("predictors", 0)):
        found[f"model.layers.{layer}.embed_tokens.weight"] = EMBEDDING
        found[f"model.layers.{layer}.shared_head.head.weight"] = head
    return found


@cache
def _spec(kind: Kind, shape: tuple[int, ...], groups: int, dtype: str) -> TensorSpec:
    return TensorSpec(shape, (groups, shape[0] // groups, *shape[1:]) if kind is Kind.QKV else shape, dtype)


@dataclass(frozen=True, slots=True)
class Instance:
    """A row at one layer (-1: outside the layers) and expert (-1: none), with its canonical tensors."""

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
    sizes, rows = dimensions(family, config), active_rows(family, config)
    repeated = [i for i, row in enumerate(rows) if row.per_layer]
    before, after = rows[: repeated[0]], rows[repeated[-1] + 1 :]
    decoder = {
        experts: [row for row in rows if row.per_layer and row.layers in (Layers.ALL, which)]
        for experts, which in ((True, Layers.EXPERTS), (False, Layers.DENSE))
    }

    def repeat(rows: Iterable[Row], layer: int = -1) -> Iterator[Instance]:
        for row in rows:
            shapes = (tuple(sizes[d] for d in dims) for dims in row.parts.values())
            specs = [_spec(row.kind, shape, sizes["groups"], row.dtype) for shape in shapes]
            for expert in range(sizes["experts"]) if row.per_expert else (-1,):
                names = (name.format(layer=layer, expert=expert) for name in row.parts)
                yield Instance(row, layer, expert, dict(zip(names, specs, strict=True)))

    yield from repeat(before)
    layers = sizes["layers"]
    for layer in range(layers):
        yield from repeat(decoder[expert_layer(family, config, layer)], layer)
    for layer in range(layers, layers + sizes.get("predictors", 0)):
        yield from repeat((row for row in rows if row.layers is Layers.PREDICTORS), layer)
    yield from repeat(row for row in after if not (HEAD in row.parts and tied(config)))
