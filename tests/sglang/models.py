"""Small models of every family as folders on disk, that SGLang can build on a CPU."""

import itertools
import json
import random
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from megatron_rl.resharding.layout import ParallelSizes
from megatron_rl.resharding.layouts.megatron import layout_violations
from tests.resharding.reference import hf_tensors

_COMMON: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "vocab_size": 203,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
    "max_position_embeddings": 256,
    "hidden_act": "silu",
    "torch_dtype": "bfloat16",
    "tie_word_embeddings": False,
    "initializer_range": 0.02,
}
_MOE = {"moe_intermediate_size": 32, "num_experts_per_tok": 2, "norm_topk_prob": True}
_ROUTED = _MOE | {
    "n_routed_experts": 4,
    "n_shared_experts": 2,
    "first_k_dense_replace": 1,
    "num_nextn_predict_layers": 1,
    "n_group": 2,
    "topk_group": 1,
    "routed_scaling_factor": 1.5,
}

MODELS: dict[str, dict[str, Any]] = {
    "qwen2": {"model_type": "qwen2", "architectures": ["Qwen2ForCausalLM"], "tie_word_embeddings": True},
    "qwen3_tied": {"model_type": "qwen3", "architectures": ["Qwen3ForCausalLM"], "tie_word_embeddings": True},
    "qwen3": {"model_type": "qwen3", "architectures": ["Qwen3ForCausalLM"]},
    "qwen3_one_group": {"model_type": "qwen3", "architectures": ["Qwen3ForCausalLM"], "num_key_value_heads": 1},
    "llama": {"model_type": "llama", "architectures": ["LlamaForCausalLM"]},
    "mistral": {"model_type": "mistral", "architectures": ["MistralForCausalLM"], "sliding_window": None},
    "qwen3_moe": _MOE
    | {
        "model_type": "qwen3_moe",
        "architectures": ["Qwen3MoeForCausalLM"],
        "num_experts": 4,
        "mlp_only_layers": [],
        "decoder_sparse_step": 1,
    },
    "glm4_moe": _ROUTED
    | {
        "model_type": "glm4_moe",
        "architectures": ["Glm4MoeForCausalLM"],
        "attention_bias": True,
        "use_qk_norm": True,
        "partial_rotary_factor": 0.5,
    },
    "deepseek_v3": _ROUTED
    | {
        "model_type": "deepseek_v3",
        "architectures": ["DeepseekV3ForCausalLM"],
        "q_lora_rank": 24,
        "kv_lora_rank": 32,
        "qk_rope_head_dim": 8,
        "qk_nope_head_dim": 16,
        "v_head_dim": 16,
        "num_key_value_heads": 4,
        "scoring_func": "sigmoid",
        "topk_method": "noaux_tc",
        "moe_layer_freq": 1,
        "attention_bias": False,
        "rope_scaling": {  # SGLang's rotary embedding on a CPU asks for one
            "type": "yarn",
            "factor": 2.0,
            "original_max_position_embeddings": 128,
            "beta_fast": 32,
            "beta_slow": 1,
            "mscale": 1.0,
            "mscale_all_dim": 1.0,
        },
    },
}


EXPERTS = [name for name, config in MODELS.items() if "moe_intermediate_size" in config]


def write_model(folder: Path, name: str, draw: random.Random) -> None:
    """A folder with random weights (bfloat16; the router's bias float32) and parallel sizes of a trainer."""
    config = _COMMON | MODELS[name]
    choices = (
        ParallelSizes(tensor, pipeline, data=2, expert=expert)
        for tensor, pipeline, expert in itertools.product((1, 2, 4), (1, 2), (1, 2, 4))
    )
    trainer = draw.choice([sizes for sizes in choices if not layout_violations(config, sizes)])
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "megatron.json").write_text(json.dumps(asdict(trainer)))
    tensors = {n: t if n.endswith("_bias") else t.to(torch.bfloat16) for n, t in hf_tensors(config, tags=False).items()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
