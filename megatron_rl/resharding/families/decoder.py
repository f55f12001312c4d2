"""Rows that the Llama-like decoders share (names: transformers' modeling files, megatron-core's gpt_layer_specs)."""

from dataclasses import replace

from megatron_rl.resharding.families.table import EMBEDDING, FINAL_NORM, HEAD, Kind, Layers, Row

_HF = "model.layers.{layer}."
_MEGATRON = "decoder.layers.{layer}."
_MTP = "mtp.layers.{layer}."
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
        linear=True,
    ),
    Row(Kind.ROW, _ATTENTION + "linear_proj.weight", {_HF + "self_attn.o_proj.weight": ("hidden", "q")}, linear=True),
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
        linear=True,
    ),
    Row(
        Kind.ROW,
        _MEGATRON + "mlp.linear_fc2.weight",
        {_HF + "mlp.down_proj.weight": ("hidden", "mlp")},
        layers=Layers.DENSE,
        linear=True,
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
        linear=True,
    ),
    Row(
        Kind.ROW,
        _MEGATRON + "mlp.experts.local_experts.{expert}.linear_fc2.weight",
        {_HF + "mlp.experts.{expert}.down_proj.weight": ("hidden", "expert_mlp")},
        grouped=_MEGATRON + "mlp.experts.linear_fc2.weight{expert}",
        stacked=_HF + "mlp.experts.down_proj",
        layers=Layers.EXPERTS,
        linear=True,
    ),
)

ROUTER_BIAS = (  # a buffer on both sides, float32 whatever the model's dtype
    Row(
        Kind.COPY,
        _MEGATRON + "mlp.router.expert_bias",
        {_HF + "mlp.gate.e_score_correction_bias": ("experts",)},
        layers=Layers.EXPERTS,
        dtype="float32",
    ),
)

SHARED_EXPERTS = (
    Row(
        Kind.COLUMN,
        _MEGATRON + "mlp.shared_experts.linear_fc1.weight",
        {
            _HF + "mlp.shared_experts.gate_proj.weight": ("shared_mlp", "hidden"),
            _HF + "mlp.shared_experts.up_proj.weight": ("shared_mlp", "hidden"),
        },
        layers=Layers.EXPERTS,
        needs="n_shared_experts",
        linear=True,
    ),
    Row(
        Kind.ROW,
        _MEGATRON + "mlp.shared_experts.linear_fc2.weight",
        {_HF + "mlp.shared_experts.down_proj.weight": ("hidden", "shared_mlp")},
        layers=Layers.EXPERTS,
        needs="n_shared_experts",
        linear=True,
    ),
)

# Multi-head latent attention. Transformer Engine's layers hold the down-projections whole on every rank and fuse the
# latent norms into the up-projections; Megatron's own split the one and keep the other apart.
LATENT_ATTENTION = (
    Row(Kind.COPY, _MEGATRON + "input_layernorm.weight", {_HF + "input_layernorm.weight": ("hidden",)}),
    Row(
        Kind.COLUMN,
        _ATTENTION + "linear_q_proj.weight",
        {_HF + "self_attn.q_proj.weight": ("latent_q", "hidden")},
        lacks="q_lora_rank",
        linear=True,
    ),
    Row(
        Kind.COLUMN,
        _ATTENTION + "linear_q_down_proj.weight",
        {_HF + "self_attn.q_a_proj.weight": ("q_lora", "hidden")},
        te_kind=Kind.COPY,
        needs="q_lora_rank",
        linear=True,
    ),
    Row(
        Kind.COPY,
        _ATTENTION + "q_layernorm.weight",
        {_HF + "self_attn.q_a_layernorm.weight": ("q_lora",)},
        fused_norm=_ATTENTION + "linear_q_up_proj.layer_norm_weight",
        needs="q_lora_rank",
    ),
    Row(
        Kind.COLUMN,
        _ATTENTION + "linear_q_up_proj.weight",
        {_HF + "self_attn.q_b_proj.weight": ("latent_q", "q_lora")},
        needs="q_lora_rank",
        linear=True,
    ),
    Row(
        Kind.COLUMN,
        _ATTENTION + "linear_kv_down_proj.weight",
        {_HF + "self_attn.kv_a_proj_with_mqa.weight": ("kv_lora_rope", "hidden")},
        te_kind=Kind.COPY,
        linear=True,
    ),
    Row(
        Kind.COPY,
        _ATTENTION + "kv_layernorm.weight",
        {_HF + "self_attn.kv_a_layernorm.weight": ("kv_lora",)},
        fused_norm=_ATTENTION + "linear_kv_up_proj.layer_norm_weight",
    ),
    Row(
        Kind.COLUMN,
        _ATTENTION + "linear_kv_up_proj.weight",
        {_HF + "self_attn.kv_b_proj.weight": ("latent_kv", "kv_lora")},
        linear=True,
    ),
    Row(
        Kind.ROW,
        _ATTENTION + "linear_proj.weight",
        {_HF + "self_attn.o_proj.weight": ("hidden", "latent_v")},
        linear=True,
    ),
)


def predictors(layer: tuple[Row, ...]) -> tuple[Row, ...]:
    """Multi-token prediction layers: an expert layer of the decoder between a projection and a norm of its own."""
    inside = "mtp.layers.{layer}.transformer_layer."
    before = (
        Row(Kind.COPY, _MTP + "enorm.weight", {_HF + "enorm.weight": ("hidden",)}, layers=Layers.PREDICTORS),
        Row(Kind.COPY, _MTP + "hnorm.weight", {_HF + "hnorm.weight": ("hidden",)}, layers=Layers.PREDICTORS),
        Row(
            Kind.COLUMN,
            _MTP + "eh_proj.weight",
            {_HF + "eh_proj.weight": ("hidden", "two_hidden")},
            layers=Layers.PREDICTORS,
        ),
    )
    after = (
        Row(
            Kind.COPY,
            _MTP + "final_layernorm.weight",
            {_HF + "shared_head.norm.weight": ("hidden",)},
            layers=Layers.PREDICTORS,
        ),
    )
    inner = tuple(
        replace(
            row,
            megatron=row.megatron.replace(_MEGATRON, inside),
            fused_norm=row.fused_norm.replace(_MEGATRON, inside),
            grouped=row.grouped.replace(_MEGATRON, inside),
            layers=Layers.PREDICTORS,
        )
        for row in layer
        if row.layers is not Layers.DENSE
    )
    return before + inner + after


OUTPUT = (
    Row(Kind.COPY, "decoder.final_layernorm.weight", {FINAL_NORM: ("hidden",)}),
    Row(Kind.VOCABULARY, "output_layer.weight", {HEAD: ("vocabulary", "hidden")}),
)
