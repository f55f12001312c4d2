"""Builds Megatron-Core models of the families that only resharding knows, one rank at a time, other ranks being fake.

stdin: JSON list of (config.json, parallel sizes, ranks); stdout: for each rank the shapes of its parameters and of the
router's bias, and the global number of every layer. A process of its own, because the CPU adaptation of Megatron
changes torch for good.
"""

import contextlib
import json
import sys
from typing import Any

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from megatron.core.models.gpt import GPTModel
from megatron.core.models.gpt.gpt_layer_specs import get_gpt_decoder_block_spec, get_gpt_mtp_block_spec
from megatron.core.tensor_parallel import model_parallel_cuda_manual_seed
from megatron.core.transformer import MLATransformerConfig, TransformerConfig, multi_latent_attention
from megatron.core.transformer.identity_op import IdentityOp
from torch.testing._internal.distributed.fake_pg import FakeStore

from megatron_rl.actor import accelerator
from megatron_rl.actor.modules.layers import RMSNorm
from megatron_rl.resharding.layout import ParallelSizes


def transformer_config(config: dict[str, Any], sizes: ParallelSizes) -> TransformerConfig:
    """As Megatron's own scripts describe these models."""
    experts, layers = config.get("n_routed_experts"), config["num_hidden_layers"]
    options: dict[str, Any] = dict(
        num_layers=layers,
        hidden_size=config["hidden_size"],
        ffn_hidden_size=config["intermediate_size"],
        num_attention_heads=config["num_attention_heads"],
        add_bias_linear=False,
        gated_linear_unit=True,
        activation_func=torch.nn.functional.silu,
        normalization="RMSNorm",
        tensor_model_parallel_size=sizes.tensor,
        pipeline_model_parallel_size=sizes.pipeline,
        virtual_pipeline_model_parallel_size=sizes.virtual if sizes.virtual > 1 else None,
        context_parallel_size=sizes.context,
        expert_model_parallel_size=sizes.expert,
        expert_tensor_parallel_size=sizes.expert_tensor,
        num_layers_in_first_pipeline_stage=sizes.first_stage or None,
        num_layers_in_last_pipeline_stage=sizes.last_stage or None,
        mtp_num_layers=config.get("num_nextn_predict_layers") or None,
        sequence_parallel=sizes.tensor > 1,
        pipeline_dtype=torch.float32,
        use_cpu_initialization=True,
        gradient_accumulation_fusion=False,
        persist_layer_norm=False,
        bias_dropout_fusion=False,
        masked_softmax_fusion=False,
        apply_rope_fusion=False,
    )
    if experts:
        dense = config["first_k_dense_replace"]
        options |= dict(
            num_moe_experts=experts,
            moe_ffn_hidden_size=config["moe_intermediate_size"],
            moe_layer_freq=[int(i >= dense) for i in range(layers)],
            moe_shared_expert_intermediate_size=config["moe_intermediate_size"] * config["n_shared_experts"],
            moe_router_topk=config["num_experts_per_tok"],
            moe_router_score_function="sigmoid",
            moe_router_enable_expert_bias=True,
            moe_router_load_balancing_type="seq_aux_loss",
            moe_token_dispatcher_type="alltoall",
        )
    if "kv_lora_rank" in config:
        return MLATransformerConfig(
            **options,
            multi_latent_attention=True,
            q_lora_rank=config["q_lora_rank"],
            kv_lora_rank=config["kv_lora_rank"],
            qk_head_dim=config["qk_nope_head_dim"],
            qk_pos_emb_head_dim=config["qk_rope_head_dim"],
            v_head_dim=config["v_head_dim"],
            qk_layernorm=True,
            rope_type="rope",
        )
    return TransformerConfig(
        **options,
        num_query_groups=config["num_key_value_heads"],
        kv_channels=config["head_dim"],
        qk_layernorm=config.get("use_qk_norm", False),
        add_qkv_bias=config.get("attention_bias", False),
    )


class NoAttention(torch.nn.Module):
    """Megatron's own core attention refuses latent attention's head sizes; none of them has weights."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__()


def for_cpu(layer: Any) -> None:
    """Put modules that can be built on a CPU where the specification has norms and core attention."""
    inner = layer.submodules.self_attention.submodules
    inner.core_attention = NoAttention
    for owner in (layer.submodules, inner):
        for name in ("input_layernorm", "pre_mlp_layernorm", "q_layernorm", "k_layernorm", "kv_layernorm"):
            found = getattr(owner, name, None)
            if found is not None and "Identity" not in found.__name__:
                setattr(owner, name, RMSNorm)


def let_queries_be_projected() -> None:
    """Megatron-Core 0.19 fuses a norm into their projection, for which it wants Transformer Engine: not in 0.16."""
    with contextlib.suppress(ImportError):
        from megatron.core.transformer.mla_qk_norm_config import QKNormConfigResolver

        QKNormConfigResolver._mla_fused_linear_or_default = lambda self, spec, name: spec


def build(config: dict[str, Any], sizes: ParallelSizes, rank: int) -> dict[str, Any]:
    dist.init_process_group("fake", store=FakeStore(), rank=rank, world_size=sizes.world)
    parallel_state.initialize_model_parallel(
        sizes.tensor,
        sizes.pipeline,
        sizes.virtual if sizes.virtual > 1 else None,
        context_parallel_size=sizes.context,
        expert_model_parallel_size=sizes.expert,
        expert_tensor_parallel_size=sizes.expert_tensor,
        create_gloo_process_groups=False,
    )
    model_parallel_cuda_manual_seed(0)
    megatron = transformer_config(config, sizes)
    vocabulary = -(-config["vocab_size"] // sizes.tensor) * sizes.tensor
    shapes: dict[str, Any] = {}
    layers: dict[str, int] = {}
    for i in range(sizes.virtual):
        stage = i if sizes.virtual > 1 else None
        spec = get_gpt_decoder_block_spec(megatron, use_transformer_engine=False, vp_stage=stage)
        spec.layer_norm = RMSNorm
        predictors = get_gpt_mtp_block_spec(megatron, spec, use_transformer_engine=False, vp_stage=stage)
        for layer in spec.layer_specs:
            for_cpu(layer)
            if "kv_lora_rank" in config and config["q_lora_rank"] is None:  # Megatron-Core 0.19 refuses an unused norm
                layer.submodules.self_attention.submodules.q_layernorm = IdentityOp
                let_queries_be_projected()
        for layer in predictors.layer_specs if predictors else ():
            layer.submodules.enorm = layer.submodules.hnorm = layer.submodules.layer_norm = RMSNorm
        model = GPTModel(
            config=megatron,
            transformer_layer_spec=spec,
            vocab_size=vocabulary,
            max_sequence_length=8,
            pre_process=parallel_state.is_pipeline_first_stage(ignore_virtual=False, vp_stage=stage),
            post_process=parallel_state.is_pipeline_last_stage(ignore_virtual=False, vp_stage=stage),
            share_embeddings_and_output_weights=config["tie_word_embeddings"],
            position_embedding_type="rope",
            mtp_block_spec=predictors,
            vp_stage=stage,
        )
        # what Megatron-Core 0.19 calls mtp_model_layer has its earlier name in checkpoints still
        named = [(n.replace(".mtp_model_layer.", ".transformer_layer."), p) for n, p in model.named_parameters()]
        shapes |= {f"{i}/{n}": p.shape for n, p in named}
        named = [(n.replace(".mtp_model_layer.", ".transformer_layer."), b) for n, b in model.named_buffers()]
        shapes |= {f"{i}/{n}": b.shape for n, b in named if n.endswith("expert_bias")}
        layers |= {f"{i}/decoder.layers.{j}.": m.layer_number - 1 for j, m in enumerate(model.decoder.layers)}
        for j, m in enumerate(model.mtp.layers) if predictors else ():
            layers[f"{i}/mtp.layers.{j}.transformer_layer."] = config["num_hidden_layers"] + m.layer_number - 1
    parallel_state.destroy_model_parallel()
    dist.destroy_process_group()
    return {"shapes": shapes, "layers": layers}


if __name__ == "__main__":
    accelerator.adapt()
    multi_latent_attention.HAVE_TE = False  # without Transformer Engine it is True all the same, its classes None
    print(json.dumps([[build(c, ParallelSizes(**s), rank) for rank in ranks] for c, s, ranks in json.load(sys.stdin)]))
