"""Shapes and configurations whose numbers are worked out in these tests."""

from typing import Any

from megatron_rl.config import Config
from megatron_rl.rollout.config import SGLangConfig

QWEN3_8B: dict[str, Any] = {
    "model_type": "qwen3",
    "architectures": ["Qwen3ForCausalLM"],
    "vocab_size": 151936,
    "hidden_size": 4096,
    "intermediate_size": 12288,
    "num_hidden_layers": 36,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "max_position_embeddings": 40960,
    "rope_theta": 1000000.0,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": False,
}
QWEN3_235B: dict[str, Any] = QWEN3_8B | {  # Qwen3-235B-A22B
    "model_type": "qwen3_moe",
    "architectures": ["Qwen3MoeForCausalLM"],
    "moe_intermediate_size": 1536,
    "num_hidden_layers": 94,
    "num_attention_heads": 64,
    "num_key_value_heads": 4,
    "num_experts": 128,
    "num_experts_per_tok": 8,
    "norm_topk_prob": True,
    "decoder_sparse_step": 1,
    "mlp_only_layers": [],
}
SMALL: dict[str, Any] = QWEN3_8B | {
    "vocab_size": 90,
    "hidden_size": 32,
    "intermediate_size": 80,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "tie_word_embeddings": True,
}
LLAMA: dict[str, Any] = SMALL | {"model_type": "llama", "architectures": ["LlamaForCausalLM"]}
QWEN2: dict[str, Any] = {**SMALL, "model_type": "qwen2", "architectures": ["Qwen2ForCausalLM"], "head_dim": 8}
MIXTURE: dict[str, Any] = SMALL | {
    **{"model_type": "qwen3_moe", "architectures": ["Qwen3MoeForCausalLM"], "moe_intermediate_size": 24},
    **{"num_experts": 8, "num_experts_per_tok": 2, "norm_topk_prob": True, "tie_word_embeddings": False},
}


def of_8b() -> Config:
    """One GPU that trains 8B and serves it, in turns: 32 prompts x 8 completions of up to 2,048 tokens."""
    config = Config()
    config.model.path = "Qwen3-8B"
    config.data.task, config.data.max_prompt_tokens = "prompt_answer", 1024
    config.rewards.terms = {"exact_answer": 1.0}
    config.rollout.prompts_per_step, config.rollout.group_size, config.rollout.max_new_tokens = 32, 8, 2048
    config.rollout.engine = "sglang"
    config.rollout.sglang = SGLangConfig(colocated=True)
    return config


def of_235b() -> Config:
    """Eight nodes of eight GPUs."""
    config = of_8b()
    config.model.path = "Qwen3-235B-A22B"
    config.rollout.engines, config.rollout.sglang.tensor_parallel = 8, 8
    config.rollout.prompts_per_step, config.rollout.max_new_tokens = 128, 8192
    actor = config.actor
    actor.tensor_parallel, actor.sequence_parallel, actor.pipeline_parallel = 4, True, 2
    actor.expert_parallel, actor.data_parallel, actor.recompute = 32, 8, "full"
    config.launch.nodes = 8
    return config
