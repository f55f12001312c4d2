"""Tiny random Hugging Face models of every family, with shapes that every sharding of the tests divides."""

from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedConfig, Qwen2Config, Qwen3Config, Qwen3MoeConfig

SIZES = dict(
    hidden_size=64,
    intermediate_size=96,
    num_hidden_layers=4,
    num_attention_heads=4,
    num_key_value_heads=2,
    vocab_size=99,  # tensor parallelism pads it
    max_position_embeddings=128,
    initializer_range=0.08,
)
CONFIGS: dict[str, PreTrainedConfig] = {
    "qwen3": Qwen3Config(**SIZES, head_dim=24, tie_word_embeddings=True),
    "qwen3_untied": Qwen3Config(**SIZES, head_dim=16, tie_word_embeddings=False),
    "qwen3_six_layers": Qwen3Config(**SIZES | {"num_hidden_layers": 6}, head_dim=16, tie_word_embeddings=True),
    "qwen2": Qwen2Config(**SIZES, tie_word_embeddings=True),
    "llama": LlamaConfig(
        **SIZES,
        tie_word_embeddings=False,
        rope_parameters={
            "rope_type": "llama3",
            "rope_theta": 5e5,
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 32,
        },
    ),
    "qwen3_moe": Qwen3MoeConfig(
        **SIZES, head_dim=16, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=48, norm_topk_prob=True
    ),
}

QWEN3 = {  # a config.json of the least that can be said
    "model_type": "qwen3",
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "rope_theta": 10000.0,
}


def write_model(name: str, folder: Path) -> torch.nn.Module:
    """Save a random model (norms and biases random too) and return it in eval mode, fp32."""
    torch.manual_seed(sum(map(ord, name)))
    model = AutoModelForCausalLM.from_config(CONFIGS[name], attn_implementation="eager").float().eval()
    for parameter_name, p in model.named_parameters():
        if p.dim() == 1:
            torch.nn.init.normal_(p, mean=0.0 if "bias" in parameter_name else 1.0, std=0.2)
    model.save_pretrained(folder)
    return model
