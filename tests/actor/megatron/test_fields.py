"""The installed Megatron-Core's fields against its dataclasses, and what check says of ``actor.megatron``."""

import dataclasses
import subprocess
import sys
import typing

import pytest
import torch
from megatron.core.distributed import DistributedDataParallelConfig
from megatron.core.optimizer import OptimizerConfig
from megatron.core.transformer import TransformerConfig
from megatron.core.transformer.enums import AttnBackend

from megatron_rl.actor.config import ActorConfig
from megatron_rl.actor.megatron.check import check_megatron
from megatron_rl.actor.megatron.fields import OPTIMIZER, REDUCTION, TRANSFORMER, fields
from megatron_rl.actor.megatron.given import given, readable_refusals
from megatron_rl.actor.megatron.owned import INSTEAD, REFUSED
from megatron_rl.cli import main
from megatron_rl.errors import InputError
from megatron_rl.settings.load import load, options
from megatron_rl.system import machine

CLASSES = {TRANSFORMER: TransformerConfig, OPTIMIZER: OptimizerConfig, REDUCTION: DistributedDataParallelConfig}
# Where Megatron-Core 0.16.1 or 0.19.2 reads them they do something here, alone or beside what needs.py names.
EFFECTIVE = """
    activation_func_fp8_input_store activation_offload_fraction align_param_gather apply_rope_fusion
    apply_wd_to_qk_layernorm attention_backend batch_p2p_sync bias_activation_fusion bias_dropout_fusion
    bucket_size check_for_large_grads check_for_nan_in_grad clone_scatter_output_in_embedding config_logger_dir
    cp_comm_type cpu_offloading cpu_offloading_activations cpu_offloading_double_buffering
    cpu_offloading_num_layers cpu_offloading_retain_pinned_cpu_buffers cpu_offloading_weights
    deallocate_pipeline_outputs delta_offload_bytes_across_pp_ranks deterministic_mode
    disable_bf16_reduced_precision_matmul disable_parameter_transpose_cache disable_symmetric_registration
    fine_grained_activation_offloading fine_grained_offloading_max_inflight_offloads flash_attention_version
    fp8_amax_compute_algo fp8_amax_history_len fp8_margin fp8_wgrad fused_residual_rmsnorm
    grad_norm_skip_threshold microbatch_group_size_per_vp_stage min_offloaded_tensor_size mlp_chunks_for_training
    moe_aux_loss_coeff moe_deepep_num_sms moe_enable_deepep moe_flex_dispatcher_backend
    moe_flex_dispatcher_num_sms moe_hybridep_num_blocks_permute moe_hybridep_num_blocks_unpermute
    moe_hybridep_num_sms moe_hybridep_num_sms_preprocessing moe_hybridep_pad_uneven_dispatch_inputs
    moe_ncclep_static_shape moe_ncclep_zero_copy moe_permute_fusion moe_permute_fusion_into_hybridep
    moe_router_dtype moe_router_fusion moe_router_load_balancing_type moe_router_padding_for_fp8
    moe_router_padding_for_quantization moe_token_dispatcher_type moe_z_loss_coeff nccl_ub offload_modules
    overlap_cpu_optimizer_d2h_h2d overlap_dispatch_backward_with_experts_wgrad overlap_grad_reduce
    overlap_p2p_comm_warmup_flush overlap_param_gather pad_buckets_for_high_nccl_busbw
    param_name_patterns_for_fp32_local_accumulation pin_cpu_grads pin_cpu_params
    reduce_scatter_with_fp32_accumulation symmetric_ar_type tp_only_amax_red use_transformer_engine_op_fuser"""


def said(fields: dict, dtype: str = "bfloat16", **actor: object) -> list[str]:
    return check_megatron(ActorConfig(megatron=fields, **actor), dtype)  # type: ignore[arg-type]


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine with a GPU, of which Transformer Engine is taken for granted."""
    monkeypatch.setattr(machine, "gpus", lambda: (80 << 30,))
    monkeypatch.setattr(machine, "elsewhere", lambda: True)


@pytest.mark.parametrize("name", CLASSES)
def test_the_same_fields_as_the_dataclass(name: str) -> None:
    real = {field.name for field in dataclasses.fields(CLASSES[name]) if not field.name.startswith("_")}
    assert {field.name for field in fields().values() if name in field.classes} == real


@pytest.mark.parametrize("name", CLASSES)
def test_every_default_is_of_its_type(name: str) -> None:
    """But for a few None that Megatron declares otherwise, and what text cannot name."""
    for field in dataclasses.fields(CLASSES[name]):
        value, read = field.default, fields().get(field.name)
        if read is None or not read.settable or value is None or value is dataclasses.MISSING:
            continue
        if value == float("inf"):  # options are finite numbers
            continue
        value = str(value).removeprefix("torch.") if isinstance(value, torch.dtype) else value
        value = value.name if isinstance(value, AttnBackend) else value
        assert read.takes(list(value) if isinstance(value, tuple) else value), field.name


def test_reading_them_imports_no_torch() -> None:
    code = (
        "import sys; from megatron_rl.actor.megatron import check, fields, shapes; assert len(fields.fields()) > 200; "
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_what_is_set_elsewhere_names_options_that_there_are() -> None:
    for name, instead in INSTEAD.items():
        keys = [word.strip("(),") for word in instead.split() if word.startswith(("actor.", "model.", "rollout."))]
        assert keys and all(key.partition("=")[0] in options() for key in keys), name
    assert not set(INSTEAD) & set(REFUSED)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"moe_aux_los_coeff": 0.1}, ["has no such field", "did you mean moe_aux_loss_coeff"]),
        ({"zzz": 1}, ["has no such field", "list what there is"]),
        ({"moe_aux_loss_coeff": "much"}, ["is 'much'; it takes a number or a list"]),
        ({"overlap_grad_reduce": 1}, ["is 1; it takes true or false"]),
        ({"bucket_size": True}, ["is true; it takes a whole number or null"]),
        ({"moe_router_dtype": "fp16"}, ["it takes fp32 or fp64 or null"]),
        ({"tensor_model_parallel_size": 2}, ["use actor.tensor_parallel."]),
        ({"lr": 1e-3}, ["use actor.optimizer.lr."]),
        ({"optimizer_offload_fraction": 0.5}, ["use actor.optimizer_on_host."]),
        ({"layernorm_epsilon": 1e-3}, ["config.json"]),
        ({"fp8_param": True}, ["use actor.fp8_weights."]),
        ({"reuse_grad_buf_for_mxfp8_param_ag": True}, ["weights in mxfp8"]),
        ({"fp4": "e2m1"}, ["FP4 is not among the precisions here: use actor.fp8."]),
        ({"cuda_graph_impl": "local"}, ["one shape, and packed micro-batches differ in length and number"]),
        ({"cuda_graph_warmup_steps": 5}, ["one shape"]),
        ({"moe_router_force_load_balancing": True}, ["drawn anew in every pass"]),
        ({"moe_expert_capacity_factor": 1.0}, ["would be dropped, and engines drop none"]),
        ({"moe_token_dropping": True}, ["would be dropped"]),
        ({"moe_apply_probs_on_input": True}, ["engines weigh what they give"]),
        ({"moe_router_topk_limited_devices": 2}, ["fewer experts than in the engine"]),
        ({"test_mode": True}, ["Megatron's own tests"]),
        ({"moe_router_bias_update_rate": 0.1}, ["they have none"]),
        (
            {"moe_router_load_balancing_type": "nonsense"},
            ["is 'nonsense'; it can be aux_loss, global_aux_loss or none."],
        ),
        ({"moe_router_load_balancing_type": "seq_aux_loss"}, ["none (seq_aux_loss: it balances each sequence, and"]),
        ({"moe_router_load_balancing_type": ["aux_loss", "sinkhorn"]}, ["or none (sinkhorn: it chooses other experts"]),
        ({"moe_aux_loss_coeff": -0.1}, ["is -0.1; it must be 0 or more."]),
        ({"moe_aux_loss_coeff": [0.1, -1]}, ["is [0.1, -1]; it must be 0 or more."]),
        ({"moe_aux_loss_coeff": 0.1}, ["does nothing without actor.megatron.moe_router_load_balancing_type"]),
        ({"moe_z_loss_coeff": -1}, ["is -1; it must be 0 or more."]),
        ({"bucket_size": -5}, ["is -5; it must be 1 or more."]),
        ({"timers": "x"}, ["a function or an object"]),
        ({"apply_rope_fusion": True}, ["computes nothing in Megatron's own layers", "without a GPU"]),
        ({"fp8_margin": 1}, ["without a GPU"]),
        ({"tp_comm_overlap": True}, ["needs buffers of one shape", "differ in length"]),
        ({"tp_comm_overlap_ag": False}, ["needs buffers of one shape"]),
        ({"use_ring_exchange_p2p": True}, ["which torch does not have"]),
        ({"qk_clip": True}, ["clip_qk, and the actor does not"]),
        ({"qk_clip_threshold": 50.0}, ["clip_qk"]),
        ({"log_max_attention_logit": True}, ["clip_qk"]),
        ({"fp8_quantizer_factory": "a.b"}, ["a recipe of your own"]),
        ({"fp8_dot_product_attention": True}, ["no kernels that train packed sequences"]),
        ({"muon_momentum": 0.9}, ["the optimiser is AdamW"]),
        ({"sgd_momentum": 0.9}, ["the optimiser is AdamW"]),
        ({"mamba_head_dim": 64}, ["no model here has such layers"]),
        ({"hierarchical_context_parallel_sizes": [2, 2]}, ["groups of ranks are made without"]),
        ({"overlap_cpu_optimizer_d2h_h2d": True}, ["is of use only with actor.optimizer_on_host"]),
        ({"fp32_residual_connection": True}, ["only under autocast"]),
        ({"init_method_std": 0.1}, ["draws are never used"]),
        ({"overlap_moe_expert_parallel_comm": True}, ["the actor's forward step does not make"]),
        ({"num_microbatches_with_partial_activation_checkpoints": 1}, ["an argument more"]),
        ({"moe_deepep_num_sms": 20}, ["only with actor.megatron.moe_token_dispatcher_type=flex"]),
        ({"align_param_gather": True}, ["only with actor.megatron.overlap_param_gather"]),
        ({"reduce_scatter_with_fp32_accumulation": True}, ["only with actor.gradients=bfloat16"]),
        ({"deallocate_pipeline_outputs": True}, ["only with actor.pipeline_parallel > 1"]),
        ({"min_offloaded_tensor_size": 5}, ["only with actor.megatron.fine_grained_activation_offloading"]),
    ],
)
def test_sentences(given: dict, words: list[str]) -> None:
    (sentence,) = said(given)
    assert sentence.startswith(f"actor.megatron.{next(iter(given))}") and all(word in sentence for word in words)


def test_what_passes() -> None:
    given = {"moe_aux_loss_coeff": 0.01, "moe_router_load_balancing_type": ["aux_loss", "global_aux_loss"]}
    given |= {"overlap_grad_reduce": True, "bucket_size": None, "apply_wd_to_qk_layernorm": True}
    assert said(given) == []
    assert len(said({"nothing_like_it": 1, "lr": 1.0, "overlap_grad_reduce": "yes"})) == 3  # each one, at once


def test_transformer_engines_fields_on_a_gpu(gpu: None) -> None:
    assert said({"apply_rope_fusion": False, "attention_backend": "flash"}) == []
    (sentence,) = said({"apply_rope_fusion": True}, "float32")
    assert "in float32" in sentence
    (sentence,) = said({"attention_backend": "flash"}, attention="torch")
    assert "nothing in torch's attention" in sentence


@pytest.mark.parametrize(
    ("fields", "words", "cure"),
    [
        ({"cp_comm_type": "nonsense"}, "is 'nonsense'; it can be p2p, all_gather or a2a.", None),
        ({"cp_comm_type": "a2a+p2p"}, "it can be p2p, all_gather or a2a.", None),
        ({"cp_comm_type": "a2a"}, "only with actor.context_parallel > 1", dict(context_parallel=2)),
        ({"attention_backend": "unfused"}, "it can be auto, flash or fused.", None),
        ({"fp8_margin": 1}, "only with actor.fp8=delayed", dict(fp8="delayed")),
        ({"fp8_amax_compute_algo": "least"}, "it takes most_recent or max", None),
        ({"disable_parameter_transpose_cache": True}, "only with actor.fp8:", dict(fp8="tensorwise")),
        ({"deterministic_mode": True}, "needs NVTE_ALLOW_NONDETERMINISTIC_ALGO=0", dict(attention="torch")),
        ({"symmetric_ar_type": "one_shot"}, "only with actor.tensor_parallel > 1", dict(tensor_parallel=2)),
        ({"fine_grained_activation_offloading": True}, "only with actor.megatron.offload_modules", None),
        ({"cpu_offloading": True}, "only with actor.megatron.cpu_offloading_num_layers", None),
        ({"cpu_offloading": True, "cpu_offloading_num_layers": 2}, None, None),
        ({"pin_cpu_grads": False}, "only with actor.optimizer_on_host", dict(optimizer_on_host=0.5)),
        ({"batch_p2p_sync": False}, "only with actor.pipeline_parallel > 1", dict(pipeline_parallel=2)),
    ],
)
def test_what_needs_another_option(gpu: None, fields: dict, words: str | None, cure: dict | None) -> None:
    found = said(fields)
    assert len(found) == (words is not None) and all(str(words) in each for each in found)
    assert cure is None or said(fields, **cure) == []


def test_every_field_that_is_accepted_is_known() -> None:
    """What a newer Megatron-Core brings must be read before it is let through: this list, and what needs another."""
    passing = {name for name, field in fields().items() if field.settable} - set(INSTEAD) - set(REFUSED)
    assert passing <= set(EFFECTIVE.split()), passing - set(EFFECTIVE.split())


def test_without_transformer_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "gpus", lambda: (80 << 30,))
    monkeypatch.setattr(machine, "installed", lambda package: None if package == "transformer-engine" else "1.0")
    (sentence,) = said({"apply_rope_fusion": True})
    assert "without Transformer Engine" in sentence


def test_values_as_megatron_has_them() -> None:
    """A name that two configurations have goes to both."""
    options = {"overlap_param_gather": True, "attention_backend": "flash", "moe_z_loss_coeff": 0.1, "sgd_momentum": 0.5}
    assert given(options, TRANSFORMER) == {"attention_backend": AttnBackend.flash, "moe_z_loss_coeff": 0.1}
    assert given(options, OPTIMIZER) == {"overlap_param_gather": True, "sgd_momentum": 0.5}
    assert given(options, REDUCTION) == {"overlap_param_gather": True}
    assert given({"params_dtype": "bfloat16"}, OPTIMIZER) == {"params_dtype": torch.bfloat16}


def test_the_command_line() -> None:
    overrides = ["actor.megatron.moe_z_loss_coeff=1e-3", "actor.megatron.moe_router_dtype=fp32"]
    config, problems = load("quickstart", overrides)
    assert not problems and config.actor.megatron == {"moe_z_loss_coeff": 1e-3, "moe_router_dtype": "fp32"}
    assert typing.get_origin(options()["actor.megatron"]) is dict


@pytest.mark.usefixtures("forked_look")
def test_fields_that_do_not_go_together(capsys: pytest.CaptureFixture[str]) -> None:
    """Megatron's own words, before anything is started; and with them all that is wrong elsewhere."""
    given = "actor.megatron.overlap_p2p_comm_warmup_flush=true"
    assert main(["check", "quickstart", given, "actor.asleep=true"]) == 2
    said = capsys.readouterr().out
    assert "does not take these options" in said and "only compatible with overlap_p2p_comm" in said
    assert f"({given})" in said and "or leave actor.asleep false." in said
    assert "actor.asleep=true makes room for engines on the trainer's own GPUs, and there are none" in said


def test_an_assertion_without_words_is_shown() -> None:
    given = {"fine_grained_activation_offloading": True, "bucket_size": 5}
    words = r"\(actor.megatron.fine_grained_activation_offloading=true\): .*it wants: self.offload_modules is not None"
    with pytest.raises(InputError, match=words), readable_refusals(given, TRANSFORMER):
        TransformerConfig(num_layers=1, hidden_size=8, num_attention_heads=1, fine_grained_activation_offloading=True)
