"""Layouts against the parameters of real Megatron-Core models, and the messages of sizes that do not fit."""

import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from megatron_rl.errors import InputError
from megatron_rl.resharding.families import canonical_tensors, family
from megatron_rl.resharding.families.architecture import padded_vocabulary
from megatron_rl.resharding.families.table import dimensions
from megatron_rl.resharding.layout import ParallelSizes
from megatron_rl.resharding.layouts.megatron import layout_violations, megatron_layout
from megatron_rl.resharding.layouts.transformers import files_layout, transformers_layout
from tests.conftest import PATIENCE, ROOT

DENSE: dict[str, Any] = {
    "model_type": "qwen3",
    "hidden_size": 32,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "intermediate_size": 48,
    "vocab_size": 61,
    "num_hidden_layers": 4,
    "tie_word_embeddings": False,
    "hidden_act": "silu",
}
TIED = DENSE | {"tie_word_embeddings": True}
QWEN2 = DENSE | {"model_type": "qwen2"}
LLAMA = DENSE | {"model_type": "llama"}
MOE = DENSE | {"model_type": "qwen3_moe", "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
REAL = [
    (DENSE, dict()),
    (TIED, dict(tensor_parallel=2)),
    (TIED, dict(tensor_parallel=2, pipeline_parallel=2, data_parallel=2)),
    (TIED, dict(pipeline_parallel=2, virtual_pipeline=2, context_parallel=2)),
    (QWEN2, dict(tensor_parallel=2, pipeline_parallel=4)),
    (TIED, dict(pipeline_parallel=2, first_stage=3)),
    (DENSE | {"num_hidden_layers": 9}, dict(pipeline_parallel=4, first_stage=2, last_stage=1, tensor_parallel=2)),
    (DENSE | {"num_hidden_layers": 6}, dict(pipeline_parallel=2, last_stage=2, virtual_pipeline=2)),
    (LLAMA, dict(tensor_parallel=4)),  # more ranks than query groups
    (MOE, dict(tensor_parallel=2, expert_parallel=2, pipeline_parallel=2)),
    (MOE, dict(tensor_parallel=2, expert_tensor_parallel=2)),
    (MOE, dict(data_parallel=4, expert_parallel=2, expert_tensor_parallel=2)),
    (MOE, dict(expert_parallel=4, data_parallel=2, context_parallel=2, pipeline_parallel=2, virtual_pipeline=2)),
]


SCRIPT = Path(__file__).parent / "real_models.py"


@pytest.fixture(scope="module")
def real_models() -> list[list[Any]]:
    """What real ranks build for each of REAL: first, middle and last rank."""
    worlds = [parallel_sizes(options).world for _, options in REAL]
    cases = [(*case, [0, world // 2, world - 1], world) for case, world in zip(REAL, worlds, strict=True)]
    env = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-W", "ignore", str(SCRIPT)]
    done = subprocess.run(command, input=json.dumps(cases), env=env, capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(done.stdout.splitlines()[-1])


def parallel_sizes(options: dict[str, int]) -> ParallelSizes:
    return ParallelSizes(**{key.removesuffix("_parallel").removesuffix("_pipeline"): n for key, n in options.items()})


@pytest.mark.parametrize("case", range(len(REAL)))
def test_real_models_have_these_parameters_layers_and_experts(case: int, real_models: list[list[Any]]) -> None:
    config, options = REAL[case]
    sizes = parallel_sizes(options)
    assert layout_violations(config, sizes) == []
    layout = megatron_layout(config, sizes)
    for rank, real in zip((0, sizes.world // 2, sizes.world - 1), real_models[case], strict=True):
        assert {name: tuple(shape) for name, shape in real["shapes"].items()} == layout.ranks[rank].locals
        norms = {s.local: s.tensor for s in layout.ranks[rank].segments if s.local.endswith("input_layernorm.weight")}
        expected = {
            f"{place}.input_layernorm.weight": f"model.layers.{n}.input_layernorm.weight"
            for place, n in real["layers"].items()
        }
        assert norms == expected
        if "num_experts" in config:
            local = config["num_experts"] // sizes.expert
            held = {int(s.tensor.split(".")[5]) for s in layout.ranks[rank].segments if ".experts." in s.tensor}
            assert held == set(range(real["expert_rank"] * local, (real["expert_rank"] + 1) * local))


@pytest.mark.parametrize("config", [TIED, DENSE, QWEN2, LLAMA, MOE, MOE | {"mlp_only_layers": [1]}])
def test_names_and_shapes_are_those_of_transformers(config: dict[str, Any]) -> None:
    from transformers import AutoConfig, AutoModelForCausalLM

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**config))
    expected = {name: tuple(p.shape) for name, p in model.named_parameters()}
    assert transformers_layout(config).ranks[0].locals == expected
    assert {name: spec.shape for name, spec in canonical_tensors(config).items()} == files_layout(config).ranks[
        0
    ].locals


def test_transformer_engine_names() -> None:
    """gpt_layer_specs fuses both norms of a dense layer; of an expert layer only the first."""
    names = megatron_layout(
        MOE | {"mlp_only_layers": [0], "num_hidden_layers": 2},
        ParallelSizes(expert=2, data=2),
        fused_norms=True,
        grouped_experts=True,
    ).ranks[1]
    assert "0/decoder.layers.0.mlp.linear_fc1.layer_norm_weight" in names.locals
    assert "0/decoder.layers.1.self_attention.linear_qkv.layer_norm_weight" in names.locals
    assert "0/decoder.layers.1.pre_mlp_layernorm.weight" in names.locals
    assert names.locals["0/decoder.layers.1.mlp.experts.linear_fc1.weight1"] == (32, 32)
    gate = next(s for s in names.segments if s.local.endswith("linear_fc1.weight1"))
    assert gate.tensor == "model.layers.1.mlp.experts.3.gate_proj.weight"


def test_vocabulary_padding() -> None:
    assert [padded_vocabulary(151936, n) for n in (1, 8, 3)] == [151936, 151936, 151938]
    layout = megatron_layout(TIED | {"vocab_size": 5}, ParallelSizes(tensor=4))
    rows = [[(s.start[0], s.shape[0]) for s in r.segments if "embed" in s.tensor] for r in layout.ranks]
    assert rows == [[(0, 2)], [(2, 2)], [(4, 1)], []]
    assert [sum(p.size for p in r.padding) for r in layout.ranks] == [0, 0, 32, 64]


def test_every_violation_at_once() -> None:
    config = DENSE | {"num_attention_heads": 32, "num_key_value_heads": 8, "num_hidden_layers": 36}
    assert layout_violations(config, ParallelSizes(tensor=3, pipeline=5, virtual=2, expert=2, expert_tensor=7)) == [
        "actor.tensor_parallel=3 does not divide num_attention_heads=32; 1, 2, 4, 8, 16, 32 do.",
        "actor.tensor_parallel=3 and num_key_value_heads=8 do not divide each other; 1, 2, 4, 8, 16, 32 do.",
        "actor.pipeline_parallel x actor.virtual_pipeline = 5 x 2 does not divide num_hidden_layers=36; "
        "1, 2, 3, 4, 6, 9, 12, 18, 36 do. Or set actor.first_stage=6, actor.last_stage=6.",
        "actor.expert_parallel=2, but qwen3 has no experts; use 1.",
        "actor.expert_tensor_parallel=7, but qwen3 has no experts; use 1.",
    ]
    stage = "the ranks of one pipeline stage, tensor_parallel x context_parallel x data_parallel"
    assert layout_violations(MOE, ParallelSizes(expert=3, expert_tensor=5, data=3)) == [
        "actor.expert_parallel=3 does not divide num_experts=4; 1, 2, 4 do.",
        "actor.expert_tensor_parallel=5 does not divide moe_intermediate_size=16; 1, 2, 4, 8, 16 do.",
        f"actor.expert_parallel x actor.expert_tensor_parallel = 3 x 5 does not divide {stage}=3; 1, 3 do.",
    ]
    assert layout_violations(MOE, ParallelSizes(expert=2)) == [
        f"actor.expert_parallel=2 does not divide {stage}=1; 1 does."
    ]
    assert layout_violations(DENSE, ParallelSizes(tensor=2, virtual=2, first_stage=3)) == [
        "actor.virtual_pipeline=2 needs actor.pipeline_parallel > 1.",
        "actor.first_stage=3 needs actor.pipeline_parallel > 1.",
    ]
    assert layout_violations(DENSE, ParallelSizes(pipeline=4, first_stage=2, last_stage=2)) == [
        "actor.first_stage=2 and actor.last_stage=2 leave layers that cannot be divided evenly over the other stages "
        "and their chunks (num_hidden_layers=4, actor.pipeline_parallel=4); actor.first_stage=1, actor.last_stage=1 "
        "would do."
    ]
    assert layout_violations(DENSE, ParallelSizes(pipeline=5)) == [
        "actor.pipeline_parallel=5 does not divide num_hidden_layers=4; 1, 2, 4 do."
    ]
    assert layout_violations(DENSE, ParallelSizes(tensor=0, data=-1, first_stage=-3)) == [
        "actor.tensor_parallel=0 is not positive.",
        "actor.data_parallel=-1 is not positive.",
        "actor.first_stage=-3 is negative.",
    ]


@pytest.mark.parametrize("virtual", [1, 2, 3])
def test_every_other_number_of_layers_that_is_proposed_fits(virtual: int) -> None:
    for layers in range(1, 100):
        for pipeline in range(2, 10):
            sizes = ParallelSizes(pipeline=pipeline, virtual=virtual)
            for said in layout_violations(DENSE | {"num_hidden_layers": layers}, sizes):
                ends = re.findall(r"_stage=(\d+)", said)
                if layers % virtual or layers < pipeline * virtual:
                    assert not ends
                    continue
                first, last = map(int, ends)
                proposed = replace(sizes, first_stage=first, last_stage=last)
                assert layout_violations(DENSE | {"num_hidden_layers": layers}, proposed) == []
                assert abs(first - last) <= virtual


def test_families() -> None:
    assert family(LLAMA).architecture == "LlamaForCausalLM"
    with pytest.raises(
        InputError,
        match=r"model_type='mamba'.*known are deepseek_v3, glm4_moe, llama, mistral, qwen2, qwen3, qwen3_moe",
    ):
        family({"model_type": "mamba"})
    with pytest.raises(InputError, match="attention_bias=True; qwen3 is supported with False only"):
        family(DENSE | {"attention_bias": True})
    with pytest.raises(InputError, match="no hidden_size"):
        canonical_tensors({k: v for k, v in DENSE.items() if k != "hidden_size"})
    with pytest.raises(InputError, match="num_attention_heads=4, not a multiple of num_key_value_heads=3"):
        canonical_tensors(DENSE | {"num_key_value_heads": 3})
    with pytest.raises(InputError, match="no head_dim"):  # which hidden_size / num_attention_heads would make 0
        canonical_tensors(LLAMA | {"hidden_size": 3, "head_dim": None})


def test_sizes_that_config_json_leaves_out() -> None:
    sparse = {k: v for k, v in LLAMA.items() if k not in ("head_dim", "num_key_value_heads")} | {"head_dim": None}
    assert dimensions(family(sparse), sparse) == {
        "hidden": 32,
        "heads": 4,
        "groups": 4,
        "head_dim": 8,
        "q": 32,
        "kv": 32,
        "mlp": 48,
        "vocabulary": 61,
        "layers": 4,
        "experts": 0,
    }
