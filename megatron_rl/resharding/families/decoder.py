"""Rows that the Llama-like decoders share (names: transformers' modeling files, megatron-core's gpt_layer_specs)."""

from megatron_rl.resharding.families.table import EMBEDDING, FINAL_NORM, HEAD, Kind, Layers, Row

_HF = "model.layers.{layer}."
_MEGATRON = "decoder.layers.{layer}."
_ATTENTION = _MEGATRON + "self_attention."

EMBEDDINGS = (Row(Kind.VOCABULARY, "embedding.word_embeddings.weight", {EMBEDDING: ("vocabulary", "hidden")}),)

ATTENTION = (
    Row(
        Kind.COPY,
        _MEGATRON + "input_layernorm.weight",
        {_HF + "input_layernorm.weight": ("hidden",)},
        fused_norm=_ATTENTION + "linear_qkv.layer_norm_weight",
    ),
    Row(
        Kind.QKV,
        _ATTENTION + "linear_qkv.weight",
        {
            _HF + "self_attn.q_proj.weight": ("q", "hidden"),
            _HF + "self_attn.k_proj.weight": ("kv", "hidden"),
            _HF + "self_attn.v_proj.weight": ("kv", "hidden"),
        },
    ),
    Row(Kind.ROW, _ATTENTION + "linear_proj.weight", {_HF + "self_attn.o_proj.weight": ("hidden", "q")}),
)

QKV_BIASES = (
    Row(
        Kind.QKV,
        _ATTENTION + "linear_qkv.bias",
        {
            _HF + "self_attn.q_proj.bias": ("q",),
            _HF + "self_attn.k_proj.bias": ("kv",),
            _HF + "self_attn.v_proj.bias": ("kv",),
        },
    ),
)

QK_NORMS = (
    Row(Kind.COPY, _ATTENTION + "q_layernorm.weight", {_HF + "self_attn.q_norm.weight": ("head_dim",)}),
    Row(Kind.COPY, _ATTENTION + "k_layernorm.weight", {_HF + "self_attn.k_norm.weight": ("head_dim",)}),
)

DENSE_MLP = (
    Row(
        Kind.COPY,
        _MEGATRON + "pre_mlp_layernorm.weight",
        {_HF + "post_attention_layernorm.weight": ("hidden",)},
        fused_norm=_MEGATRON + "mlp.linear_fc1.layer_norm_weight",
        layers=Layers.DENSE,
    ),
    Row(
        Kind.COLUMN,
        _MEGATRON + "mlp.linear_fc1.weight",
        {_HF + "mlp.gate_proj.weight": ("mlp", "hidden"), _HF + "mlp.up_proj.weight": ("mlp", "hidden")},
        layers=Layers.DENSE,
    ),
    Row(
        Kind.ROW,
        _MEGATRON + "mlp.linear_fc2.weight",
        {_HF + "mlp.down_proj.weight": ("hidden", "mlp")},
        layers=Layers.DENSE,
    ),
)

EXPERTS = (
    Row(  # never fused: the router reads its output too
        Kind.COPY,
        _MEGATRON + "pre_mlp_layernorm.weight",
        {_HF + "post_attention_layernorm.weight": ("hidden",)},
        layers=Layers.EXPERTS,
    ),
    Row(
        Kind.COPY,
        _MEGATRON + "mlp.router.weight",
        {_HF + "mlp.gate.weight": ("experts", "hidden")},
        layers=Layers.EXPERTS,
    ),
    Row(
        Kind.COLUMN,
        _MEGATRON + "mlp.experts.local_experts.{expert}.linear_fc1.weight",
        {
            _HF + "mlp.experts.{expert}.gate_proj.weight": ("expert_mlp", "hidden"),
            _HF + "mlp.experts.{expert}.up_proj.weight": ("expert_mlp", "hidden"),
        },
        grouped=_MEGATRON + "mlp.experts.linear_fc1.weight{expert}",
        stacked=_HF + "mlp.experts.gate_up_proj",
        layers=Layers.EXPERTS,
    ),
    Row(
        Kind.ROW,
        _MEGATRON + "mlp.experts.local_experts.{expert}.linear_fc2.weight",
        {_HF + "mlp.experts.{expert}.down_proj.weight": ("hidden", "expert_mlp")},
        grouped=_MEGATRON + "mlp.experts.linear_fc2.weight{expert}",
        stacked=_HF + "mlp.experts.down_proj",
        layers=Layers.EXPERTS,
    ),
)

OUTPUT = (
    Row(Kind.COPY, "decoder.final_layernorm.weight", {FINAL_NORM: ("hidden",)}),
    Row(Kind.VOCABULARY, "output_layer.weight", {HEAD: ("vocabulary", "hidden")}),
)
