"""Sizes that options of precision and recomputation do not go with."""

from dataclasses import replace

import pytest

from megatron_rl.actor.config import ActorConfig
from megatron_rl.actor.megatron.shapes import check_shapes, widths
from megatron_rl.resharding.families.architecture import read_architecture
from tests.settings.foresight.shapes import MIXTURE, QWEN3_8B, QWEN3_235B

DENSE, EXPERTS, SMALL = (read_architecture(shape) for shape in (QWEN3_8B, QWEN3_235B, MIXTURE))


@pytest.mark.parametrize(
    ("arch", "actor", "words"),
    [
        (DENSE, dict(fp8="mxfp8", tensor_parallel=8), None),
        (SMALL, dict(fp8="tensorwise"), "multiplies in blocks of 16, and moe_intermediate_size / actor.expert_tensor"),
        (SMALL, dict(fp8="mxfp8"), "is 24: no parallel size changes that; use actor.fp8=none."),
        (replace(DENSE, hidden=1000), dict(fp8="tensorwise"), "hidden_size is 1000: no parallel size changes that"),
        (replace(DENSE, mlp_hidden=4880), dict(fp8="mxfp8"), "is 4880: use actor.fp8=tensorwise."),
        (DENSE, dict(fp8="blockwise", tensor_parallel=512), "lower the parallel size."),
        (EXPERTS, dict(fp8="mxfp8", expert_tensor_parallel=64), "in blocks of 32, and moe_intermediate_size"),
        (DENSE, dict(bf16_layers=1), "does nothing without actor.fp8"),
        (DENSE, dict(bf16_layers=1, fp8="delayed"), "does not go with actor.fp8=delayed"),
        (DENSE, dict(bf16_layers=1, fp8="tensorwise"), None),
        (DENSE, dict(bf16_layers=10, fp8="tensorwise", pipeline_parallel=4), "it can be 9 at most"),
        (DENSE, dict(bf16_layers=17, fp8="tensorwise"), None),
        (DENSE, dict(bf16_layers=18, fp8="tensorwise"), "which leaves none in FP8: it can be 17 at most"),
        (DENSE, dict(recompute="full", recompute_layers=6, pipeline_parallel=2), None),
        (DENSE, dict(recompute="full", recompute_layers=4, pipeline_parallel=4), "does not divide the 9 layers"),
        (
            DENSE,
            dict(recompute="full", recompute_layers=5),
            "does not divide the 36 layers of a pipeline stage's chunk: it can be 1, 2, 3, 4, 6, 9, 12, 18 or 36.",
        ),
        (DENSE, dict(recompute="full", recompute_layers=5, pipeline_parallel=36), "it can be 1."),
        (DENSE, dict(recompute="full", recompute_layers=4, recompute_method="block", pipeline_parallel=4), None),
        (DENSE, dict(megatron={"cp_comm_type": "a2a"}, context_parallel=3), "and 8 of keys and values"),
        (DENSE, dict(megatron={"cp_comm_type": "a2a"}, context_parallel=8), None),
        (DENSE, dict(megatron={"apply_wd_to_qk_layernorm": True}), None),
        (replace(DENSE, qk_norm=False), dict(megatron={"apply_wd_to_qk_layernorm": True}), "has no norms of queries"),
        (DENSE, dict(megatron={"mlp_chunks_for_training": 2}), None),
        (EXPERTS, dict(megatron={"mlp_chunks_for_training": 2}), "apart from their routing"),
        (
            DENSE,
            dict(
                recompute="full", recompute_layers=4, recompute_method="block", pipeline_parallel=4, virtual_pipeline=3
            ),
            "model chunk has 3 layers",
        ),
        (
            DENSE,
            dict(megatron={"moe_z_loss_coeff": 0.1}),
            "moe_z_loss_coeff does nothing, for the model has no experts",
        ),
        (DENSE, dict(megatron={"use_transformer_engine_op_fuser": True}), "the model has no experts"),
        (DENSE, dict(megatron={"overlap_grad_reduce": True}), None),
        (EXPERTS, dict(megatron={"moe_z_loss_coeff": 0.1}), None),
        (DENSE, dict(megatron={"offload_modules": ["core_attn", "attn_proj", "qkv_linear"]}), None),
        (DENSE, dict(megatron={"offload_modules": ["core_attn", "expert_fc1"]}), "has expert_fc1, and the model is no"),
        (DENSE, dict(megatron={"offload_modules": ["moe_act"]}), "has moe_act, and the model is no mixture of experts"),
        (DENSE, dict(megatron={"offload_modules": ["mlp_norm"]}), "has mlp_norm, which is no module of its own here"),
        (EXPERTS, dict(megatron={"offload_modules": ["expert_fc1", "moe_act", "mlp_norm"]}), None),
        (EXPERTS, dict(megatron={"offload_modules": ["attn_norm"]}), "has attn_norm, which is no module of its own"),
        (DENSE, dict(recompute="selective", recompute_modules=["moe"]), "is no mixture of experts"),
        (DENSE, dict(recompute="selective", recompute_modules=["core_attn", "layernorm"]), "norms of a dense model"),
        (EXPERTS, dict(recompute="selective", recompute_modules=["layernorm"]), None),
        (EXPERTS, dict(recompute="selective", recompute_modules=["mlp"]), "name moe instead"),
        (EXPERTS, dict(recompute="selective", recompute_modules=["moe_act"], fp8="delayed"), "use tensorwise"),
    ],
)
def test_sentences(arch: object, actor: dict, words: str | None) -> None:
    found = check_shapes(ActorConfig(**actor), arch)  # type: ignore[arg-type]
    assert len(found) == (words is not None) and all(str(words) in said for said in found)


def test_widths_of_a_rank() -> None:
    assert list(widths(ActorConfig(tensor_parallel=4), DENSE).values()) == [4096, 1024, 1536, 3072]
