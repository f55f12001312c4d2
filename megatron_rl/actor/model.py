"""Megatron-Core GPT models from a Hugging Face config.json."""

import os
from functools import partial
from typing import Any

import torch
from megatron.core import parallel_state
from megatron.core.models.gpt import GPTModel
from megatron.core.models.gpt.gpt_layer_specs import (
    get_gpt_layer_local_spec,
    get_gpt_layer_with_transformer_engine_spec,
)
from megatron.core.transformer import TransformerConfig, attention
from megatron.core.transformer.spec_utils import ModuleSpec
from megatron.core.transformer.transformer_block import TransformerBlockSubmodules, get_num_layers_to_build

from megatron_rl.actor import accelerator
from megatron_rl.actor.config import ActorConfig
from megatron_rl.actor.megatron.fields import TRANSFORMER
from megatron_rl.actor.megatron.given import given, readable_refusals
from megatron_rl.actor.megatron.quantised import is_quantised
from megatron_rl.actor.micro_batch import MicroBatch
from megatron_rl.actor.modules.layers import PackedAttention, PackedRotary, RMSNorm, SwiGLU, apply_rotary
from megatron_rl.actor.modules.logprobs import token_logprobs
from megatron_rl.actor.modules.routing import replay_routing
from megatron_rl.actor.modules.scalar import ScalarHead
from megatron_rl.actor.modules.shared_prompts import SharedRotary, shared_attention
from megatron_rl.actor.modules.true_on_policy import ColumnParallel, RowParallel
from megatron_rl.errors import InputError
from megatron_rl.resharding.families.architecture import Architecture
from megatron_rl.system.kernels import unusable

_UNFUSED = "NVTE_UNFUSED_ATTN"  # 0: Transformer Engine may not fall back to scores of all pairs of tokens


def transformer_engine(dtype: torch.dtype) -> bool:
    """True when Transformer Engine's layers are used: it is there, and the model computes in bfloat16 on a GPU.

    In float32 its products round their inputs to TF32 (a mean error of 7e-4 nats was measured for a model of 8 layers);
    the local layers' do not. Raises InputError for one that is there and cannot be imported.
    """
    if not accelerator.on_gpu() or dtype == torch.float32:
        return False
    try:
        import transformer_engine.pytorch  # noqa: F401
    except (ImportError, OSError, RuntimeError) as error:
        if isinstance(error, ModuleNotFoundError) and error.name == "transformer_engine":
            return False
        raise InputError(unusable(str(error))) from error
    return True


class PolicyModel(GPTModel):
    """A GPT model whose last stage returns final hidden states [t, 1, h]: logits are made chunk by chunk later."""

    wide: torch.dtype | None = None  # see megatron_rl.actor.modules.layers

    def forward(self, input_ids: torch.Tensor, position_ids: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        self.rotary_pos_emb.prepare(position_ids, kwargs["packed_seq_params"])
        try:
            return super().forward(input_ids, position_ids, *args, **kwargs)  # type: ignore[no-any-return]
        except ValueError as error:
            if "No dot product attention backend" not in str(error):
                raise
            raise InputError(
                "Transformer Engine finds neither cuDNN's fused attention for packed sequences nor flash-attn on this "
                "machine (NVTE_DEBUG=1 NVTE_DEBUG_LEVEL=2 has it say why), and its unfused attention, which keeps the "
                "scores of all pairs of tokens, is not used. Install flash-attn, or set actor.attention=torch."
            ) from error

    def _postprocess(self, hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        return hidden_states

    def logprobs(
        self, hidden: torch.Tensor, batch: MicroBatch, *, temperature: float, vocab_size: int, chunk: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Log-prob and entropy (float32 [n]) of the trained positions, from this stage's output [t, 1, h]."""
        group = self.pg_collection.tp
        return token_logprobs(
            self.trained_hidden(hidden, batch),
            self.output_matrix(),
            batch.targets,
            vocab_size=vocab_size,
            temperature=temperature,
            rank=group.rank(),
            group=group if group.size() > 1 else None,
            chunk=chunk,
            wide=self.wide,
        )

    def trained_hidden(self, hidden: torch.Tensor, batch: MicroBatch) -> torch.Tensor:
        """The trained positions [n, h], whole on every tensor-parallel rank, of this stage's output."""
        from megatron.core.tensor_parallel import mappings

        group = self.pg_collection.tp
        if self.config.sequence_parallel:
            hidden = mappings.gather_from_sequence_parallel_region(
                hidden, tensor_parallel_output_grad=True, group=group
            )
        else:
            hidden = mappings.copy_to_tensor_model_parallel_region(hidden, group=group)
        return hidden.squeeze(1).index_select(0, batch.trained)

    def output_matrix(self) -> torch.Tensor:
        """This rank's rows of the output matrix."""
        if self.share_embeddings_and_output_weights:
            return self.shared_embedding_or_output_weight()  # type: ignore[no-any-return]
        return self.output_layer.weight  # type: ignore[no-any-return]

    def values(self, hidden: torch.Tensor, batch: MicroBatch) -> torch.Tensor:
        """The scalar head's number (float32 [n]) of the trained positions: what is known before the token they predict.

        hidden: this stage's output [t, 1, h].
        """
        found: torch.Tensor = self.output_layer(hidden, self.pg_collection.tp)
        return found.index_select(0, batch.trained)


def transformer_config(
    arch: Architecture, config: ActorConfig, dtype: torch.dtype, te: bool | None = None
) -> TransformerConfig:
    """Megatron's configuration of this architecture and sharding. Raises InputError where it refuses the options.

    ``te``: whether of Transformer Engine's layers; None: as this rank has them.
    """
    te = transformer_engine(dtype) if te is None else te
    moe: dict[str, Any] = {}
    if arch.experts:
        moe = dict(
            num_moe_experts=arch.experts,
            moe_ffn_hidden_size=arch.expert_hidden,
            moe_router_topk=arch.experts_per_token,
            moe_router_pre_softmax=not arch.norm_topk,  # softmax over the chosen k = softmax over all, renormalised
            moe_router_load_balancing_type="none",
            moe_aux_loss_coeff=0.0,
            moe_grouped_gemm=te,
            moe_permute_fusion=te,
        )
    virtual = config.virtual_pipeline if config.virtual_pipeline > 1 else None
    own: dict[str, Any] = dict(
        num_layers=arch.layers,
        hidden_size=arch.hidden,
        ffn_hidden_size=arch.mlp_hidden,
        num_attention_heads=arch.heads,
        num_query_groups=arch.kv_heads,
        kv_channels=arch.head_dim,
        qk_layernorm=arch.qk_norm,
        add_qkv_bias=arch.qkv_bias,
        add_bias_linear=False,
        gated_linear_unit=True,
        activation_func=torch.nn.functional.silu,
        normalization="RMSNorm",
        layernorm_epsilon=arch.norm_eps,
        hidden_dropout=0.0,
        attention_dropout=0.0,
        tensor_model_parallel_size=config.tensor_parallel,
        pipeline_model_parallel_size=config.pipeline_parallel,
        virtual_pipeline_model_parallel_size=virtual,
        num_layers_in_first_pipeline_stage=config.first_stage or None,
        num_layers_in_last_pipeline_stage=config.last_stage or None,
        context_parallel_size=config.context_parallel,
        expert_model_parallel_size=config.expert_parallel,
        expert_tensor_parallel_size=config.expert_tensor_parallel,
        sequence_parallel=config.sequence_parallel,
        variable_seq_lengths=virtual is None,  # packed micro-batches differ in length
        moe_token_dispatcher_type="alltoall",  # the one that allows them
        # interleaved, two stages are each other's both neighbours: only the unbatched exchange keeps them apart
        overlap_p2p_comm=virtual is not None,
        batch_p2p_comm=virtual is None,
        pipeline_dtype=dtype,
        params_dtype=dtype,
        bf16=dtype == torch.bfloat16,
        calculate_per_token_loss=True,  # gradients are summed: losses come normalised over the global batch
        use_cpu_initialization=not accelerator.on_gpu(),
        gradient_accumulation_fusion=False,
        persist_layer_norm=False,
        bias_activation_fusion=te,
        use_te_activation_func=not te,  # an activation of our own, in fact
        bias_dropout_fusion=False,  # torch.compile would need a C compiler, and there is no dropout to fuse
        masked_softmax_fusion=False,  # apex's, of an attention that is not used here
        apply_rope_fusion=te,
        **moe,
        **_precision(config, te),
        **_recomputation(config),
    )
    with readable_refusals(config.megatron, TRANSFORMER):
        return TransformerConfig(**own | given(config.megatron, TRANSFORMER))


def _precision(config: ActorConfig, te: bool) -> dict[str, Any]:
    if config.fp8 == "none":
        return {}
    if not te:
        raise InputError(f"actor.fp8={config.fp8} needs Transformer Engine's layers, which this rank has not.")
    blocks = config.fp8 in ("blockwise", "mxfp8")  # whose scales are fine enough for gradients with three bits
    found: dict[str, Any] = dict(fp8="e4m3" if blocks else "hybrid", fp8_recipe=config.fp8)
    if config.fp8_weights:
        found["fp8_param"] = True
    if config.bf16_layers:
        found |= dict(
            first_last_layers_bf16=True,
            num_layers_at_start_in_bf16=config.bf16_layers,
            num_layers_at_end_in_bf16=config.bf16_layers,
        )
    return found


def _recomputation(config: ActorConfig) -> dict[str, Any]:
    if config.recompute == "full":
        return dict(
            recompute_granularity="full",
            recompute_method=config.recompute_method,
            recompute_num_layers=config.recompute_layers,
        )
    if config.recompute == "selective":
        return dict(recompute_granularity="selective", recompute_modules=list(config.recompute_modules))
    return {}


def _inside(spec: Any) -> Any:
    """What a part of a layer is made of: an MLP is a ModuleSpec in Megatron-Core 0.16, a partial call in 0.19."""
    return spec.keywords["submodules"] if isinstance(spec, partial) else spec.submodules


def _layer_spec(arch: Architecture, config: ActorConfig, te: bool) -> ModuleSpec:
    if te:
        spec = get_gpt_layer_with_transformer_engine_spec(
            num_experts=arch.experts or None, moe_grouped_gemm=bool(arch.experts), qk_layernorm=arch.qk_norm
        )
        own = PackedAttention if config.attention == "torch" else shared_attention()
        spec.submodules.self_attention.submodules.core_attention = own
        return spec
    spec = get_gpt_layer_local_spec(
        num_experts=arch.experts or None, moe_grouped_gemm=False, qk_layernorm=arch.qk_norm, normalization="RMSNorm"
    )
    spec.submodules.input_layernorm = spec.submodules.pre_mlp_layernorm = RMSNorm
    inner = spec.submodules.self_attention.submodules
    inner.core_attention = PackedAttention
    if arch.qk_norm:
        inner.q_layernorm = inner.k_layernorm = RMSNorm
    mlp = _inside(spec.submodules.mlp)
    (_inside(mlp.experts) if arch.experts else mlp).activation_func = SwiGLU
    inner.linear_qkv, inner.linear_proj = ColumnParallel, RowParallel
    if not arch.experts:
        mlp.linear_fc1, mlp.linear_fc2 = ColumnParallel, RowParallel
    return spec


def build_model(arch: Architecture, config: ActorConfig, dtype: torch.dtype) -> list[PolicyModel]:
    """This rank's model chunks (one, or one per virtual pipeline stage), on its device, without weights."""
    accelerator.adapt()
    megatron = transformer_config(arch, config, dtype)
    te = transformer_engine(dtype)
    spec = _layer_spec(arch, config, te)
    os.environ.pop(_UNFUSED, None)  # Megatron wants to set it itself
    chunks = []
    for chunk in range(config.virtual_pipeline):
        vp_stage = chunk if config.virtual_pipeline > 1 else None
        first = parallel_state.is_pipeline_first_stage(ignore_virtual=False, vp_stage=vp_stage)
        last = parallel_state.is_pipeline_last_stage(ignore_virtual=False, vp_stage=vp_stage)
        block: Any = spec
        if not te:
            layers = get_num_layers_to_build(megatron, vp_stage=vp_stage)
            block = TransformerBlockSubmodules(layer_specs=[spec] * layers, layer_norm=RMSNorm)
        model = PolicyModel(
            config=megatron,
            transformer_layer_spec=block,
            vocab_size=arch.padded_vocab(config.tensor_parallel),
            max_sequence_length=arch.max_positions,
            pre_process=first,
            post_process=last,
            share_embeddings_and_output_weights=arch.tied,
            position_embedding_type="rope",
            rotary_base=int(arch.rope.theta),
            vp_stage=vp_stage,
        )
        frequencies = arch.inverse_frequencies().to(accelerator.device())
        if arch.scalar and last:
            model.output_layer = ScalarHead(megatron)  # in the place of a matrix that never gets weights
        if te:
            model.rotary_pos_emb.inv_freq = frequencies
            model.rotary_pos_emb = SharedRotary(model.rotary_pos_emb, PackedRotary(frequencies, dtype))
        else:
            model.rotary_pos_emb = PackedRotary(frequencies, dtype)
        if arch.experts:
            replay_routing(model)
            _mark_experts(model)
        _place(model, dtype)
        chunks.append(model)
    attention.apply_rotary_pos_emb = apply_rotary
    os.environ[_UNFUSED] = "0"
    return chunks


def _place(model: PolicyModel, dtype: torch.dtype) -> None:
    """Put it on this rank's device, in ``dtype``; weights in FP8 are there, and ``Module.to`` would exchange them."""
    device = accelerator.device()
    if not any(is_quantised(p) for p in model.parameters()):
        model.to(device=device, dtype=dtype)
        return
    for module in model.modules():
        for p in module.parameters(recurse=False):
            if not is_quantised(p):
                p.data = p.data.to(device, dtype)
        for name, buffer in module.named_buffers(recurse=False):
            setattr(module, name, buffer.to(device, dtype if buffer.is_floating_point() else buffer.dtype))


def _mark_experts(model: PolicyModel) -> None:
    """Have the experts' gradients summed over all ranks that hold them, and every one of them in the gradient's norm.

    Megatron calls experts dense where ``expert_parallel`` is 1 and sums them over the data-parallel ranks alone; but
    then every tensor-parallel rank has all experts whole and sends them other tokens. And what Transformer Engine does
    not mark as cut, Megatron takes for a copy of the first tensor-parallel rank's and leaves out of the norm on all
    others; but experts have ranks of their own, and none is there twice.
    """
    for name, parameter in model.named_parameters():
        if ".mlp.experts." in name:
            parameter.allreduce = False  # type: ignore[attr-defined]
            parameter.tensor_model_parallel = True  # type: ignore[attr-defined]
