"""Our Megatron shards through mbridge's export: its merging over ranks and its split into Hugging Face tensors.

mbridge is an independent description of the same layouts, for Transformer Engine's layers. The plan cuts a Hugging
Face model into shards; what mbridge would export from them must be that model, bit by bit.
"""

import re
from dataclasses import fields
from typing import Any, ClassVar

import pytest
import torch

from megatron_rl.resharding.execute import pull
from megatron_rl.resharding.layout import ParallelSizes
from megatron_rl.resharding.layouts.megatron import megatron_layout
from megatron_rl.resharding.layouts.transformers import files_layout
from megatron_rl.resharding.plan import make_plan
from tests.resharding.reference import Tensors, hf_tensors

DENSE: dict[str, Any] = {
    "model_type": "qwen3",
    "hidden_size": 8,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 2,
    "intermediate_size": 12,
    "vocab_size": 24,
    "num_hidden_layers": 4,
    "tie_word_embeddings": False,
}
EXPERTS = {"moe_intermediate_size": 4, "num_experts_per_tok": 2, "rope_theta": 1e4, "rope_parameters": None}
QWEN_MOE = DENSE | EXPERTS | {"model_type": "qwen3_moe", "num_experts": 4, "num_local_experts": 4}
SHARED = EXPERTS | {"n_routed_experts": 4, "n_shared_experts": 1, "first_k_dense_replace": 3}
GLM = DENSE | SHARED | {"model_type": "glm4_moe", "attention_bias": True, "use_qk_norm": True}
DEEPSEEK = DENSE | SHARED | {
    "model_type": "deepseek_v3",
    "num_hidden_layers": 61,
    "num_nextn_predict_layers": 1,
    "q_lora_rank": 6,
    "kv_lora_rank": 5,
    "qk_nope_head_dim": 2,
    "qk_rope_head_dim": 2,
    "v_head_dim": 3,
}  # fmt: skip
CASES = [
    (DENSE, dict(tensor=4, pipeline=2)),
    (DENSE | {"tie_word_embeddings": True}, dict(tensor=2)),
    (DENSE | {"model_type": "qwen2"}, dict(tensor=2)),
    (DENSE | {"model_type": "llama"}, dict(tensor=2, pipeline=2)),
    (QWEN_MOE, dict(tensor=2, pipeline=2, expert=2)),
    (QWEN_MOE, dict(tensor=4, expert=2, expert_tensor=2)),
    (GLM, dict(tensor=2, expert=2, pipeline=2)),
    (GLM | {"num_nextn_predict_layers": 1}, dict(tensor=2, expert=2)),
    (DEEPSEEK, dict(tensor=2, expert=2, pipeline=16, first_stage=4, last_stage=1)),
]


def bridge(config: dict[str, Any], sizes: ParallelSizes) -> Any:
    from mbridge.core.auto_bridge import _MODEL_REGISTRY
    from mbridge.core.parallel_states import ParallelStates
    from transformers import AutoConfig

    states = ParallelStates(
        tp_size=sizes.tensor, pp_size=sizes.pipeline, ep_size=sizes.expert, etp_size=sizes.expert_tensor, vpp_size=None
    )
    hf_config = AutoConfig.for_model(**config)
    hf_config.rope_theta, hf_config.rope_scaling = 1e4, None  # where transformers 4 had them
    family = _MODEL_REGISTRY[config["model_type"]]

    class Here(family):  # type: ignore[misc, valid-type]
        # a copy: a tied model changes it for the whole class
        _DIRECT_MAPPING: ClassVar[dict[str, str]] = dict(family._DIRECT_MAPPING)

        @staticmethod
        def TransformerConfigClass(**options: Any) -> Any:  # noqa: N802
            known = {field.name for field in fields(family.TransformerConfigClass)}
            return family.TransformerConfigClass(**{k: v for k, v in options.items() if k in known})

    return Here(hf_config, dtype=torch.float32, parallel_states=states)


def shards(hf: Tensors, config: dict[str, Any], sizes: ParallelSizes) -> list[Tensors]:
    """What our plan puts into every rank."""
    source = files_layout(config)
    destination = megatron_layout(config, sizes, fused_norms=True, grouped_experts=True)
    plan = make_plan(source, destination)
    ranks = []
    for rank, shard in enumerate(destination.ranks):
        flat = {name: torch.zeros(torch.Size(shape).numel()) for name, shape in shard.locals.items()}
        pull([plan.copies[i] for i in plan.copies_to(rank)], {(0, n): t.flatten() for n, t in hf.items()}, flat)
        ranks.append({name: flat[name].view(shape) for name, shape in shard.locals.items()})
    return ranks


def tensor_parallel(name: str) -> int | None:
    """The dimension that Megatron's layers mark as partitioned; None: the parameter is whole on every rank."""
    if "norm" in name or "router" in name or "_down_proj" in name:
        return None
    return 1 if "linear_proj" in name or "linear_fc2" in name else 0


def export(ranks: list[Tensors], sizes: ParallelSizes, made: Any) -> Tensors:
    """mbridge's export_weights, its collectives replaced by looking at the ranks."""
    found: Tensors = {}
    layer = 0
    for stage in range(sizes.pipeline):
        here = ranks[stage * sizes.stage : (stage + 1) * sizes.stage]
        for local, whole in here[0].items():
            name = local.removeprefix("0/")
            if inside := re.match(r"decoder\.layers\.(\d+)(.*)", name):
                name = f"decoder.layers.{layer + int(inside[1])}{inside[2]}"
            dim = tensor_parallel(name)
            param = torch.nn.Parameter(whole)
            param.tensor_model_parallel, param.partition_dim = dim is not None, dim  # type: ignore[attr-defined]
            if ".mlp.experts." in name:
                prefix, number = name.split(".weight")
                per_rank = made.config.num_moe_experts // sizes.expert
                for expert in range(sizes.expert):
                    first = expert * sizes.expert_tensor
                    parts = [rank[local] for rank in here[first : first + sizes.expert_tensor]]
                    one = f"{prefix}.weight{expert * per_rank + int(number)}"
                    names, tensors = made._weight_to_hf_format(one, made._weight_merge_across_tp(one, parts, param))
                    found |= zip(names, tensors, strict=True)
                continue
            merged = whole
            if dim is not None:
                merged = made._weight_merge_across_tp(name, [rank[local] for rank in here[: sizes.tensor]], param)
            found |= zip(*made._weight_to_hf_format(name, merged), strict=True)
        layer += len({local.split(".")[2] for local in here[0] if "/decoder.layers." in local})
    return found


@pytest.mark.parametrize(("config", "options"), CASES)
def test_mbridge_exports_the_model_that_the_plan_loaded(config: dict[str, Any], options: dict[str, int]) -> None:
    sizes = ParallelSizes(**options)
    hf = hf_tensors(config, tags=False)
    exported = export(shards(hf, config, sizes), sizes, bridge(config, sizes))
    copies = {name for name in exported if re.search(r"layers\.61\.(embed_tokens|shared_head\.head)", name)}
    assert {name for name in exported if name not in copies} == set(hf)
    for name, tensor in hf.items():
        assert torch.equal(exported[name], tensor), name
