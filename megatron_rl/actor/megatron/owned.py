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
        heterogeneous_block_specs moe_router_enable_expert_bias moe_router_num_groups moe_router_group_topk
        use_mup mup_base_hidden_size mup_width_mult mup_embedding_mult mup_output_mult mup_base_head_dim
        mup_attn_scale_power use_fused_weighted_squared_relu moe_shared_expert_overlap
        use_grouped_gemm_for_shared_expert moe_shared_expert_glu_interleave_size""",
    "no model here has such layers (Mamba, linear or sparse attention, prediction of several tokens)": """
        mamba_head_dim mamba_num_groups mamba_num_heads mamba_state_dim mamba_training_ssm_states_dtype
        use_mamba_mem_eff_path linear_conv_kernel_dim linear_key_head_dim linear_num_key_heads linear_num_value_heads
        linear_value_head_dim dsa_indexer_head_dim dsa_indexer_k_norm_epsilon dsa_indexer_k_norm_fp32
        dsa_indexer_loss_coeff dsa_indexer_n_heads dsa_indexer_rope_interleaved dsa_indexer_rotate_activation
        dsa_indexer_scoring_relu dsa_indexer_skip_topk_offset dsa_indexer_topk dsa_indexer_topk_freq
        dsa_indexer_use_sparse_loss dsa_kernel_backend mtp_detach_heads mtp_hybrid_override_pattern
        mtp_loss_scaling_factor mtp_standalone mtp_use_repeated_layer""",
    "the weights that Megatron draws are never used": "init_method_std embedding_init_method_std",
    # module/base.py of Transformer Engine: get_ub raises without initialize_ub(shape), which Megatron-LM's training
    # script calls with the one length of its sequences
    "Transformer Engine's overlap needs buffers of one shape, made before training, and packed micro-batches differ in "
    "length (docs/precision.md)": """
        tp_comm_overlap tp_comm_overlap_ag tp_comm_overlap_rs tp_comm_overlap_rs_dgrad tp_comm_overlap_disable_qkv
        tp_comm_overlap_disable_fc1 tp_comm_split_ag tp_comm_split_rs tp_comm_atomic_ag tp_comm_atomic_rs
        tp_comm_bulk_dgrad tp_comm_bulk_wgrad tp_comm_bootstrap_backend""",
    "it calls torch.distributed.ring_exchange, which torch does not have": "use_ring_exchange_p2p",
    "it acts where a training script calls Megatron's clip_qk, and the actor does not": """
        qk_clip qk_clip_alpha qk_clip_threshold log_max_attention_logit""",
    "the actor's attention is Transformer Engine's or torch's, which do not read it": """
        attention_softmax_in_fp32 apply_query_key_layer_scaling masked_softmax_fusion""",
    "norms are Transformer Engine's or the actor's own, which do not read it": """
        persist_layer_norm memory_efficient_layer_norm""",
    # Attention.forward asserts that there are none
    "it does not take packed sequences": "fused_single_qkv_rope",
    # fused_attn.cpp: NVTE_FP8 takes bshd and sbhd; get_attention_backend: no FlashAttention trains in FP8
    "Transformer Engine has no kernels that train packed sequences' attention in FP8": """
        fp8_dot_product_attention fp8_multi_head_attention""",
    # set_activation_dtype raises for inputs of another dtype than the weights
    "Transformer Engine's layers take the float32 that it hands them only under autocast": "fp32_residual_connection",
    "Transformer Engine ignores it": "fp8_interval",
    "it is for a recipe of your own, and actor.fp8 has none": "fp8_quantizer_factory",
    "the actor builds its layers without": """
        use_kitchen use_kitchen_attention kitchen_attention_backend use_te_activation_func moe_grouped_gemm
        moe_use_legacy_grouped_gemm use_grouped_gemm_for_dense_mlp""",
    "its random numbers are made before, and nothing here draws any": "use_te_rng_tracker",
    "a training script turns its kernels on, and the actor does not": "batch_invariant_mode",
    "its schedule asks for a plan of the layers' parts, which the actor's forward step does not make": """
        overlap_moe_expert_parallel_comm delay_wgrad_compute ep_overlap_early_attn_memory_release
        high_priority_a2a_comm_stream""",
    "it hands the forward step an argument more than the actor's takes; use actor.recompute": """
        num_microbatches_with_partial_activation_checkpoints""",
    "nothing is timed by Megatron's timers here": "barrier_with_L1_time",
    "nothing reads what it counts": "log_num_zeros_in_grad moe_per_layer_logging",
    "Megatron's training script reads it, and nothing else": "num_buckets max_seqlen_per_dp_cp_rank",
    "Megatron does nothing with it any more": "async_tensor_model_parallel_allreduce moe_extended_tp",
    "checkpoints and swaps know weights as they are without": """
        hetereogenous_dist_checkpoint moe_mlp_glu_interleave_size moe_single_grouped_weight moe_single_grouped_bias""",
    "losses come normalised over the whole mini-batch, and gradients are summed": """
        calculate_per_token_loss average_in_collective gradient_reduce_div_fusion""",
    "the actor's own head makes log-probs and entropies (actor.logprob_chunk)": """
        cross_entropy_loss_fusion cross_entropy_fusion_impl defer_embedding_wgrad_compute wgrad_deferral_limit
        fp8_output_proj""",
    "weights, gradients and optimiser are sharded by Megatron's distributed optimiser, not by its FSDP": """
        use_megatron_fsdp use_custom_fsdp data_parallel_sharding_strategy outer_dp_sharding_strategy
        preserve_fp32_weights fsdp_double_buffer fsdp_manual_registration keep_fp8_transpose_cache
        init_model_with_meta_device suggested_communication_unit_size fsdp_all_gather_in_start_param_sync
        fsdp_db_use_persist_buf_on_alloc_fail megatron_fsdp_cuda_graph_mode
        megatron_fsdp_enable_fine_grained_param_gather megatron_fsdp_grad_comm_dtype megatron_fsdp_main_grads_dtype
        megatron_fsdp_main_params_dtype megatron_fsdp_max_pool_double_buffer megatron_fsdp_use_decoupled_grad""",
    # TransformerLayer._te_cuda_graph_replay, _CudaGraphRunner.get_mismatch_errors and FullCudaGraphWrapper.data_read
    "a CUDA graph replays one shape, and packed micro-batches differ in length and number (docs/precision.md)": """
        enable_cuda_graph external_cuda_graph cuda_graph_impl cuda_graph_scope cuda_graph_modules
        cuda_graph_use_single_mempool cuda_graph_retain_backward_graph cuda_graph_warmup_steps
        delay_offload_until_cuda_graph""",
    # training.py installs OptimizerCudaGraphWrapper, which keeps its graph in the class, one for the process
    "Megatron's training script captures the optimiser's step, once in a process, and the actor does not": """
        optimizer_cuda_graph""",
    # _ParamAndGradBuffer gathers them through the gradients' memory, which actor.asleep gives up
    "it is for weights in mxfp8, and actor.fp8_weights has them in tensorwise and blockwise alone": """
        reuse_grad_buf_for_mxfp8_param_ag""",
    "FP4 is not among the precisions here: use actor.fp8": """
        fp4 fp4_recipe fp4_param fp4_param_gather fp4_quantizer_factory""",
    "float16 needs a scaled loss, which the actor does not make: use model.dtype=bfloat16": """
        fp16 loss_scale initial_loss_scale min_loss_scale loss_scale_window hysteresis""",
    "the optimiser is AdamW, whose state checkpoints and the memory forecast know": """
        optimizer decoupled_weight_decay main_params_dtype use_layer_wise_distributed_optimizer sgd_momentum
        use_torch_optimizer_for_cpu_offload lion_beta1 lion_beta2 muon_coefficient_type muon_extra_scale_factor
        muon_fp32_matmul_prec muon_momentum muon_nesterov muon_num_ns_steps muon_scalar_optimizer muon_scale_mode
        muon_split_qkv muon_tp_mode muon_use_nesterov adaptive_muon_beta2 adaptive_muon_eps
        adaptive_muon_moment2_method soap_precondition_frequency soap_shampoo_beta soap_use_kl_shampoo""",
    "the policy's log-probs would be drawn anew in every pass, and the engine's are without": """
        hidden_dropout attention_dropout moe_input_jitter_eps moe_router_force_load_balancing
        moe_router_force_biased""",
    "tokens that an expert has no room for would be dropped, and engines drop none: log-probs would differ": """
        moe_expert_capacity_factor moe_token_dropping moe_token_drop_policy moe_pad_expert_input_to_capacity
        moe_expert_rank_capacity_factor moe_paged_stash moe_paged_stash_page_size
        moe_paged_stash_buffer_size_factor_cuda moe_paged_stash_buffer_size_factor_cpu""",
    "it weighs what experts take, and engines weigh what they give: log-probs would differ": "moe_apply_probs_on_input",
    "tokens would choose among fewer experts than in the engine: log-probs would differ": """
        moe_router_topk_limited_devices""",
    "it updates a bias of routers, and they have none": """
        moe_router_bias_update_rate moe_router_quantile_balancing_ema""",
    "it is for Megatron's own tests, in which attention compares its norms over the ranks": "test_mode",
    "every weight has the rate of actor.optimizer, which follows its schedule": "decoupled_lr decoupled_min_lr",
    "the groups of ranks are made without": """
        num_distributed_optimizer_instances hybrid_context_parallel hierarchical_context_parallel_sizes
        pipeline_model_parallel_comm_backend gtp_weight_remat_size expert_gtp_weight_remat_size
        tensor_parallel_num_weight_shards expert_tensor_parallel_num_weight_shards""",
    "engines generate, not the actor": """
        flash_decode inference_rng_tracker use_inference_optimized_layers inference_fuse_tp_communication
        mlp_chunks_for_prefill inference_cuda_graph_scope inference_sampling_seed nccl_all_reduce_for_prefill
        inference_disable_triton_nvls_kernels inference_grouped_gemm_backend inference_moe_disable_fused_quant_kernels
        inference_moe_token_dispatcher_type moe_pad_experts_for_cuda_graph_inference""",
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
LEAST = {  # where a type allows less
    **{"moe_aux_loss_coeff": 0, "moe_z_loss_coeff": 0, "bucket_size": 1},
    **{"fp8_amax_history_len": 1, "cpu_offloading_num_layers": 1, "mlp_chunks_for_training": 1},
}
CHOICES = {  # where a type allows more
    # a2a+p2p wants groups of ranks that are not made; a list's layers are counted from 1 in Megatron-Core 0.16
    "cp_comm_type": ("p2p", "all_gather", "a2a"),
    "attention_backend": ("auto", "flash", "fused"),  # the others keep the scores of all pairs of tokens
}
FOR_EXPERTS = ("use_transformer_engine_op_fuser", "overlap_dispatch_backward_with_experts_wgrad")  # beside moe_...

_ATTENTION = "flash_attention_version attention_backend cp_comm_type"
_LAYERS = """
    bias_activation_fusion apply_rope_fusion moe_permute_fusion moe_router_fusion disable_parameter_transpose_cache
    activation_func_fp8_input_store cpu_offloading fine_grained_activation_offloading tp_only_amax_red
    use_transformer_engine_op_fuser bias_dropout_fusion symmetric_ar_type
    fused_residual_rmsnorm overlap_dispatch_backward_with_experts_wgrad"""
_PREFIXES = ("fp8_", "cpu_offloading_")


def needs_transformer_engine(name: str) -> bool:
    """Whether Megatron's own layers, as they are built here, do nothing with a field."""
    return name in f"{_LAYERS} {_ATTENTION}".split() or name.startswith(_PREFIXES)


def needs_its_attention(name: str) -> bool:
    """Whether torch's attention (``actor.attention=torch``) does nothing with a field."""
    return name in _ATTENTION.split()
