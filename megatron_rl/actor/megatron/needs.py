"""Fields of Megatron-Core's configurations that do something only beside other options. Imports no torch."""

from collections.abc import Callable

from megatron_rl.actor.config import ActorConfig

_FIELDS = {  # what another field of actor.megatron turns on
    "cpu_offloading": """
        cpu_offloading_num_layers cpu_offloading_activations cpu_offloading_weights cpu_offloading_double_buffering
        cpu_offloading_retain_pinned_cpu_buffers""",
    "cpu_offloading_num_layers": "cpu_offloading",
    "fine_grained_activation_offloading": """
        offload_modules min_offloaded_tensor_size activation_offload_fraction delta_offload_bytes_across_pp_ranks
        fine_grained_offloading_max_inflight_offloads""",
    "offload_modules": "fine_grained_activation_offloading",
    "overlap_param_gather": "align_param_gather",
    "nccl_ub": "disable_symmetric_registration",
}

_Test = Callable[[ActorConfig, str], bool]  # of the actor's options and model.dtype
_OPTIONS: tuple[tuple[str, _Test, str], ...] = (  # what they need, in words; whether it is there; the fields
    (
        "actor.fp8",
        lambda config, _: config.fp8 != "none",
        """disable_parameter_transpose_cache tp_only_amax_red moe_router_padding_for_fp8
        moe_router_padding_for_quantization""",
    ),
    (  # fp8_utils.get_fp8_recipe gives them to that recipe alone
        "actor.fp8=delayed",
        lambda config, _: config.fp8 == "delayed",
        "fp8_margin fp8_amax_history_len fp8_amax_compute_algo fp8_wgrad",
    ),
    ("model.dtype=bfloat16", lambda _, dtype: dtype == "bfloat16", "disable_bf16_reduced_precision_matmul"),
    (
        "actor.optimizer_on_host",
        lambda config, _: config.optimizer_on_host > 0,
        "overlap_cpu_optimizer_d2h_h2d pin_cpu_grads pin_cpu_params",
    ),
    (
        "actor.gradients=bfloat16",
        lambda config, _: config.gradients == "bfloat16",
        "reduce_scatter_with_fp32_accumulation param_name_patterns_for_fp32_local_accumulation",
    ),
    ("actor.context_parallel > 1", lambda config, _: config.context_parallel > 1, "cp_comm_type"),
    ("actor.pipeline_parallel > 1", lambda config, _: config.pipeline_parallel > 1, "deallocate_pipeline_outputs"),
    (
        "actor.pipeline_parallel > 1 and actor.virtual_pipeline=1",  # batch_p2p_comm
        lambda config, _: config.pipeline_parallel > 1 and config.virtual_pipeline == 1,
        "batch_p2p_sync",
    ),
    (
        "actor.virtual_pipeline > 1",  # only that schedule calls param_sync_func
        lambda config, _: config.virtual_pipeline > 1,
        "microbatch_group_size_per_vp_stage align_param_gather",
    ),
    ("actor.sequence_parallel", lambda config, _: config.sequence_parallel, "clone_scatter_output_in_embedding"),
    (
        "actor.tensor_parallel > 1 and actor.sequence_parallel=false",  # else nothing is summed over all ranks
        lambda config, _: config.tensor_parallel > 1 and not config.sequence_parallel,
        "symmetric_ar_type",
    ),
    (
        "actor.megatron.moe_token_dispatcher_type=flex",
        lambda config, _: config.megatron.get("moe_token_dispatcher_type") == "flex",
        """moe_enable_deepep moe_flex_dispatcher_backend moe_flex_dispatcher_num_sms moe_deepep_num_sms
        moe_hybridep_num_sms moe_hybridep_num_sms_preprocessing moe_hybridep_num_blocks_permute
        moe_hybridep_num_blocks_unpermute moe_hybridep_pad_uneven_dispatch_inputs moe_permute_fusion_into_hybridep
        moe_ncclep_static_shape moe_ncclep_zero_copy""",
    ),
    (  # chunks need not be a multiple of what FP8 multiplies
        "actor.fp8=none",
        lambda config, _: config.fp8 == "none",
        "mlp_chunks_for_training",
    ),
    # actor.asleep resizes their memory, which then comes from elsewhere than what is registered
    ("actor.asleep=false", lambda config, _: not config.asleep, "nccl_ub"),
)


def lacks(name: str, config: ActorConfig, dtype: str) -> str:
    """What a field needs and is not given, as options to set; empty where it has all."""
    for other, names in _FIELDS.items():
        if name in names.split() and not config.megatron.get(other):
            return f"actor.megatron.{other}"
    for words, there, names in _OPTIONS:
        if name in names.split() and not there(config, dtype):
            return words
    return ""
