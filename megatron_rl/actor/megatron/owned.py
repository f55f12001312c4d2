"""Fields of Megatron-Core's configurations that are not for ``actor.megatron``, and what to do instead.

What is in no table goes through to Megatron as it is given, also what a newer version brings. Imports no torch.
"""

INSTEAD = {  # set from options of this project
    "tensor_model_parallel_size": "actor.tensor_parallel",
    "pipeline_model_parallel_size": "actor.pipeline_parallel",
    "virtual_pipeline_model_parallel_size": "actor.virtual_pipeline",
    "overlap_p2p_comm": "actor.virtual_pipeline",
    "batch_p2p_comm": "actor.virtual_pipeline",
    "variable_seq_lengths": "actor.virtual_pipeline",
    "num_layers_in_first_pipeline_stage": "actor.first_stage",
    "num_layers_in_last_pipeline_stage": "actor.last_stage",
    "account_for_embedding_in_pipeline_split": "actor.first_stage",
    "account_for_loss_in_pipeline_split": "actor.last_stage",
    "pipeline_model_parallel_layout": "actor.first_stage and actor.last_stage",
    "context_parallel_size": "actor.context_parallel",
    "expert_model_parallel_size": "actor.expert_parallel",
    "expert_tensor_parallel_size": "actor.expert_tensor_parallel",
    "sequence_parallel": "actor.sequence_parallel",
    **dict.fromkeys(("params_dtype", "bf16", "pipeline_dtype", "autocast_dtype", "enable_autocast"), "model.dtype"),
    "transformer_impl": "model.dtype (Transformer Engine's layers compute bfloat16 on a GPU, Megatron's own the rest)",
    **dict.fromkeys(("fp8", "fp8_recipe"), "actor.fp8"),
    **dict.fromkeys(("fp8_param", "fp8_param_gather"), "actor.fp8_weights"),
    **dict.fromkeys(
        ("first_last_layers_bf16", "num_layers_at_start_in_bf16", "num_layers_at_end_in_bf16"), "actor.bf16_layers"
    ),
    "recompute_granularity": "actor.recompute",
    "moe_layer_recompute": "actor.recompute=selective and actor.recompute_modules",
    "recompute_modules": "actor.recompute_modules",
    "recompute_method": "actor.recompute_method",
    "recompute_num_layers": "actor.recompute_layers",
    **{name: f"actor.optimizer.{name}" for name in ("lr", "weight_decay", "clip_grad")},
    "min_lr": "actor.optimizer.min_lr_ratio",
    "adam_beta1": "actor.optimizer.beta1",
    "adam_beta2": "actor.optimizer.beta2",
    "adam_eps": "actor.optimizer.eps",
    **dict.fromkeys(("optimizer_cpu_offload", "optimizer_offload_fraction"), "actor.optimizer_on_host"),
    **dict.fromkeys(("use_precision_aware_optimizer", "exp_avg_dtype", "exp_avg_sq_dtype"), "actor.moments"),
    **dict.fromkeys(("main_grads_dtype", "grad_reduce_in_fp32"), "actor.gradients"),
    "moe_enable_routing_replay": "rollout.sglang.routing_replay",
}

_REASONS = {
    "it follows from the model's config.json, which the engines read too": """
        num_layers hidden_size ffn_hidden_size num_attention_heads num_query_groups kv_channels qk_layernorm
        qk_l2_norm add_qkv_bias add_bias_linear gated_linear_unit activation_func normalization layernorm_epsilon
        layernorm_zero_centered_gamma num_moe_experts moe_ffn_hidden_size moe_router_topk moe_router_pre_softmax
        moe_router_score_function moe_router_topk_scaling_factor moe_layer_freq rotary_interleaved no_rope_freq
        moe_shared_expert_intermediate_size moe_shared_expert_gate multi_latent_attention mtp_num_layers
        attention_output_gate experimental_attention_variant linear_attention_freq window_size
        window_attn_skip_freq softmax_scale softmax_type glu_linear_offset activation_func_clamp_value
        apply_residual_connection_post_layernorm moe_latent_size is_hybrid_model mrope_section
        heterogeneous_block_specs moe_router_enable_expert_bias moe_router_num_groups moe_router_group_topk""",
    "losses come normalised over the whole mini-batch, and gradients are summed": """
        calculate_per_token_loss average_in_collective gradient_reduce_div_fusion""",
    "the actor's own head makes log-probs and entropies (actor.logprob_chunk)": """
        cross_entropy_loss_fusion cross_entropy_fusion_impl defer_embedding_wgrad_compute""",
    "weights, gradients and optimiser are sharded by Megatron's distributed optimiser, not by its FSDP": """
        use_megatron_fsdp use_custom_fsdp data_parallel_sharding_strategy outer_dp_sharding_strategy
        preserve_fp32_weights fsdp_double_buffer fsdp_manual_registration keep_fp8_transpose_cache
        init_model_with_meta_device""",
    # TransformerLayer._te_cuda_graph_replay, _CudaGraphRunner.get_mismatch_errors and FullCudaGraphWrapper.data_read
    "a CUDA graph replays one shape, and packed micro-batches differ in length and number (docs/precision.md)": """
        enable_cuda_graph external_cuda_graph cuda_graph_impl cuda_graph_scope cuda_graph_modules
        cuda_graph_use_single_mempool cuda_graph_retain_backward_graph cuda_graph_warmup_steps
        delay_offload_until_cuda_graph optimizer_cuda_graph""",
    # _ParamAndGradBuffer gathers them through the gradients' memory, which actor.asleep gives up
    "it is for weights in mxfp8, and actor.fp8_weights has them in tensorwise and blockwise alone": """
        reuse_grad_buf_for_mxfp8_param_ag""",
    "FP4 is not among the precisions here: use actor.fp8": "fp4 fp4_recipe fp4_param fp4_param_gather",
    "float16 needs a scaled loss, which the actor does not make: use model.dtype=bfloat16": """
        fp16 loss_scale initial_loss_scale min_loss_scale loss_scale_window hysteresis""",
    "the optimiser is AdamW, whose state checkpoints and the memory forecast know": """
        optimizer decoupled_weight_decay main_params_dtype use_layer_wise_distributed_optimizer""",
    "the policy's log-probs would be drawn anew in every pass, and the engine's are without": """
        hidden_dropout attention_dropout moe_input_jitter_eps moe_router_force_load_balancing""",
    "tokens that an expert has no room for would be dropped, and engines drop none: log-probs would differ": """
        moe_expert_capacity_factor moe_token_dropping moe_token_drop_policy moe_pad_expert_input_to_capacity""",
    "it weighs what experts take, and engines weigh what they give: log-probs would differ": "moe_apply_probs_on_input",
    "tokens would choose among fewer experts than in the engine: log-probs would differ": """
        moe_router_topk_limited_devices""",
    "it updates a bias of routers, and they have none": "moe_router_bias_update_rate",
    "it is for Megatron's own tests, in which attention compares its norms over the ranks": "test_mode",
    "every weight has the rate of actor.optimizer, which follows its schedule": "decoupled_lr decoupled_min_lr",
    "the groups of ranks are made without": "num_distributed_optimizer_instances hybrid_context_parallel",
    "engines generate, not the actor": """
        flash_decode inference_rng_tracker use_inference_optimized_layers inference_fuse_tp_communication
        mlp_chunks_for_prefill inference_cuda_graph_scope""",
    "the actor sets it itself": "use_distributed_optimizer use_cpu_initialization perform_initialization",
    "set overlap_param_gather, which gathers in the next forward pass": "overlap_param_gather_with_optimizer_step",
    "it needs a kernel that adds to gradients past the hooks that reduce them": "gradient_accumulation_fusion",
    "use actor.sequence_parallel, which cuts them as well": "distribute_saved_activations",
    "checkpoints have the float32 weights whole": "store_param_remainders",
}
REFUSED = {name: " ".join(reason.split()) for reason, names in _REASONS.items() for name in names.split()}

BALANCED = ("aux_loss", "global_aux_loss", "none")  # of moe_router_load_balancing_type; what it cannot be, and why:
UNBALANCED = {
    "sinkhorn": "it chooses other experts than the engine",
    # TopKRouter._apply_seq_aux_loss takes sequences from the shape of its input, [tokens, 1] here
    "seq_aux_loss": "it balances each sequence, and takes the sequences packed in a micro-batch for one",
}
LEAST = {"moe_aux_loss_coeff": 0, "moe_z_loss_coeff": 0, "bucket_size": 1}  # where a type allows less

_ATTENTION = """
    flash_attention_version attention_softmax_in_fp32 apply_query_key_layer_scaling attention_backend cp_comm_type
    log_max_attention_logit qk_clip"""
_LAYERS = """
    masked_softmax_fusion bias_activation_fusion persist_layer_norm memory_efficient_layer_norm
    apply_rope_fusion fused_single_qkv_rope moe_grouped_gemm moe_permute_fusion moe_router_fusion
    disable_parameter_transpose_cache delay_wgrad_compute activation_func_fp8_input_store cpu_offloading
    cpu_offloading_num_layers fine_grained_activation_offloading offload_modules use_kitchen
    use_kitchen_attention batch_invariant_mode use_te_rng_tracker use_te_activation_func tp_only_amax_red
    use_transformer_engine_op_fuser bias_dropout_fusion fp32_residual_connection"""
_PREFIXES = ("tp_comm_", "fp8_")


def needs_transformer_engine(name: str) -> bool:
    """Whether Megatron's own layers, as they are built here, do nothing with a field."""
    return name in f"{_LAYERS} {_ATTENTION}".split() or name.startswith(_PREFIXES)


def needs_its_attention(name: str) -> bool:
    """Whether torch's attention (``actor.attention=torch``) does nothing with a field."""
    return name in _ATTENTION.split()
