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
from megatron_rl.actor.megatron.given import given
from megatron_rl.actor.megatron.owned import INSTEAD, REFUSED
from megatron_rl.cli import main
from megatron_rl.settings.load import load, options
from megatron_rl.system import machine

CLASSES = {TRANSFORMER: TransformerConfig, OPTIMIZER: OptimizerConfig, REDUCTION: DistributedDataParallelConfig}


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
        ({"tp_comm_overlap": True}, ["without a GPU"]),
        ({"fp8_margin": 1}, ["without a GPU"]),
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
    assert said({"tp_comm_overlap": True, "attention_backend": "flash"}) == []
    (sentence,) = said({"tp_comm_overlap": True}, "float32")
    assert "in float32" in sentence
    (sentence,) = said({"attention_backend": "flash"}, attention="torch")
    assert "nothing in torch's attention" in sentence


def test_without_transformer_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "gpus", lambda: (80 << 30,))
    monkeypatch.setattr(machine, "installed", lambda package: None if package == "transformer-engine" else "1.0")
    (sentence,) = said({"tp_comm_overlap": True})
    assert "without Transformer Engine" in sentence


def test_values_as_megatron_has_them() -> None:
    """A name that two configurations have goes to both."""
    options = {"overlap_param_gather": True, "attention_backend": "flash", "moe_z_loss_coeff": 0.1, "sgd_momentum": 0.5}
    assert given(options, TRANSFORMER) == {"attention_backend": AttnBackend.flash, "moe_z_loss_coeff": 0.1}
    assert given(options, OPTIMIZER) == {"overlap_param_gather": True, "sgd_momentum": 0.5}
    assert given(options, REDUCTION) == {"overlap_param_gather": True}
    assert given({"params_dtype": "bfloat16"}, OPTIMIZER) == {"params_dtype": torch.bfloat16}


def test_the_command_line() -> None:
    overrides = ["actor.megatron.moe_z_loss_coeff=1e-3", "actor.megatron.align_param_gather=true"]
    config, problems = load("quickstart", overrides)
    assert not problems and config.actor.megatron == {"moe_z_loss_coeff": 1e-3, "align_param_gather": True}
    assert typing.get_origin(options()["actor.megatron"]) is dict


@pytest.mark.usefixtures("forked_look")
def test_fields_that_do_not_go_together(capsys: pytest.CaptureFixture[str]) -> None:
    """Megatron's own words, before anything is started; and with them all that is wrong elsewhere."""
    given = "actor.megatron.overlap_p2p_comm_warmup_flush=true"
    assert main(["check", "quickstart", given, "actor.asleep=true"]) == 2
    said = capsys.readouterr().out
    assert "does not take these options" in said and "only compatible with overlap_p2p_comm" in said
    assert "actor.asleep=true makes room for engines on the trainer's own GPUs, and there are none" in said
