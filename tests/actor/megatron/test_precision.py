"""FP8 recipes and recomputation as Megatron-Core takes them; what a rank without Transformer Engine says."""

import sys

import pytest
import torch
from megatron.core.enums import Fp8Recipe
from megatron.core.fp8_utils import get_fp8_align_size
from megatron.core.transformer import TransformerConfig

from megatron_rl.actor.config import ActorConfig
from megatron_rl.actor.megatron.assumed import assumed_transformer_engine
from megatron_rl.actor.megatron.shapes import BLOCK
from megatron_rl.actor.model import _precision, _recomputation, transformer_config
from megatron_rl.actor.optimizer import optimizer_config
from megatron_rl.actor.trainer import _FP8
from megatron_rl.errors import InputError
from megatron_rl.resharding.families.architecture import read_architecture
from megatron_rl.system import machine
from tests.settings.foresight.shapes import MIXTURE, SMALL

SHAPE = dict(num_layers=8, hidden_size=64, num_attention_heads=4, bf16=True, params_dtype=torch.bfloat16)


@pytest.mark.parametrize("fp8", BLOCK)
def test_every_recipe_builds(fp8: str) -> None:
    count = 0 if fp8 == "delayed" else 2
    found = TransformerConfig(**SHAPE, **_precision(ActorConfig(fp8=fp8, bf16_layers=count), te=True))
    assert found.fp8_recipe == fp8 and found.fp8 == ("e4m3" if fp8 in ("blockwise", "mxfp8") else "hybrid")
    assert found.first_last_layers_bf16 == (count > 0)
    assert (
        not found.fp8_param
        and TransformerConfig(**SHAPE, **_precision(ActorConfig(fp8=fp8, fp8_weights=True), te=True)).fp8_param
    )
    if count:
        assert (found.num_layers_at_start_in_bf16, found.num_layers_at_end_in_bf16) == (2, 2)


@pytest.mark.parametrize("fp8", BLOCK)
def test_lengths_are_padded_to_what_its_products_want(fp8: str) -> None:
    assert _FP8.get(fp8, 16) == get_fp8_align_size(Fp8Recipe(fp8)) and _FP8.get("none", 16) == 1


def test_no_rank_computes_in_bfloat16_instead() -> None:
    with pytest.raises(InputError, match=r"actor.fp8=tensorwise needs Transformer Engine's layers"):
        transformer_config(read_architecture(SMALL), ActorConfig(fp8="tensorwise"), torch.bfloat16)


def test_recomputation() -> None:
    plain = TransformerConfig(**SHAPE, **_recomputation(ActorConfig()))
    assert plain.recompute_granularity is None
    block = ActorConfig(recompute="full", recompute_method="block", recompute_layers=3)
    found = TransformerConfig(**SHAPE, **_recomputation(block))
    assert (found.recompute_granularity, found.recompute_method, found.recompute_num_layers) == ("full", "block", 3)
    some = ActorConfig(recompute="selective", recompute_modules=["mlp", "core_attn"])
    found = TransformerConfig(**SHAPE, **_recomputation(some))
    assert found.recompute_granularity == "selective" and found.recompute_modules == ["mlp", "core_attn"]


def test_fields_reach_the_model_and_conflicts_are_told() -> None:
    arch = read_architecture(SMALL)
    found = transformer_config(arch, ActorConfig(megatron={"deterministic_mode": True}), torch.float32)
    assert found.deterministic_mode
    with pytest.raises(InputError, match=r"Megatron-Core .* does not take these options .*moe_aux_loss_coeff"):
        wrong = {"moe_router_load_balancing_type": ["aux_loss", "seq_aux_loss"]}
        transformer_config(arch, ActorConfig(megatron=wrong), torch.float32)


@pytest.mark.skipif(machine.installed("transformer-engine") is not None, reason="it is itself where it is installed")
def test_transformer_engine_taken_for_granted() -> None:
    """Configurations of a GPU's layers are made where it is missing, and everything is as before behind that."""
    arch, dtype = read_architecture(MIXTURE), torch.bfloat16
    moe = ActorConfig(fp8="tensorwise", recompute="selective", recompute_modules=["moe_act"], moments="bfloat16")
    with assumed_transformer_engine():
        found = transformer_config(arch, moe, dtype, te=True)
        assert found.moe_permute_fusion and found.apply_rope_fusion and found.fp8_recipe == "tensorwise"
        assert optimizer_config(moe.optimizer, moe, dtype).exp_avg_dtype == dtype
        with pytest.raises(InputError, match="overlap_moe_expert_parallel_comm is only supported with expert"):
            transformer_config(arch, ActorConfig(megatron={"overlap_moe_expert_parallel_comm": True}), dtype, te=True)
    assert "transformer_engine" not in sys.modules
    with pytest.raises(InputError, match="is not available"):
        transformer_config(arch, ActorConfig(), dtype, te=True)
