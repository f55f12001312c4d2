"""Tiny random models of every family the engine serves."""

import os
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig, PreTrainedModel

from megatron_rl.resharding.execute import flat, pull
from megatron_rl.resharding.layout import ParallelSizes
from megatron_rl.resharding.layouts.megatron import megatron_layout
from megatron_rl.resharding.layouts.transformers import transformers_layout
from megatron_rl.resharding.plan import make_plan
from megatron_rl.resharding.swap import SwapSource, merge_hashes, owned_hashes
from megatron_rl.resharding.transports.shared_memory import publish

VOCABULARY = 101

SHAPE: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 48,
    "max_position_embeddings": 256,
    "initializer_range": 0.15,  # wide: attention and distribution are far from uniform
}

FAMILIES: dict[str, dict[str, Any]] = {
    "qwen2": {"model_type": "qwen2", "tie_word_embeddings": True},
    "qwen3": {"model_type": "qwen3", "head_dim": 16, "tie_word_embeddings": True},
    "qwen3_untied": {"model_type": "qwen3", "head_dim": 8, "num_key_value_heads": 4, "tie_word_embeddings": False},
    "qwen3_moe": {
        "model_type": "qwen3_moe",
        "head_dim": 8,
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 24,
        "decoder_sparse_step": 1,
        "norm_topk_prob": True,
        "tie_word_embeddings": False,
    },
    "llama": {
        "model_type": "llama",
        "num_key_value_heads": 1,
        "tie_word_embeddings": False,
        "rope_parameters": {
            "rope_type": "llama3",
            "rope_theta": 10000.0,
            "factor": 4.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 64,
        },
    },
}


def configuration(family: str) -> PretrainedConfig:
    options = SHAPE | FAMILIES[family]
    return AutoConfig.for_model(options.pop("model_type"), **options)


def build(family: str, seed: int = 0) -> PreTrainedModel:
    torch.manual_seed(seed)
    return AutoModelForCausalLM.from_config(configuration(family)).eval()


@pytest.fixture(scope="session")
def models() -> dict[str, tuple[PreTrainedModel, PreTrainedModel]]:
    """Per family: the model that decodes, and the same weights behind transformers' own attention."""
    return {family: (build(family), build(family)) for family in FAMILIES}


@pytest.fixture(scope="session")
def qwen3(models: dict[str, tuple[PreTrainedModel, PreTrainedModel]]) -> PreTrainedModel:
    return models["qwen3"][0]


class Trainer:
    """Ranks that own a model in Megatron's layout, all of them in this process."""

    def __init__(self, model: PreTrainedModel, sizes: ParallelSizes) -> None:
        self.hf_config = model.config.to_dict()
        self.sizes = sizes
        self.layout = megatron_layout(self.hf_config, sizes)
        self.ranks = [{name: torch.zeros(shape) for name, shape in shard.locals.items()} for shard in self.layout.ranks]
        self.memories = [publish(parameters) for parameters in self.ranks]
        self.plan = make_plan(self.layout, transformers_layout(self.hf_config))
        self.load(model)

    def load(self, model: PreTrainedModel) -> None:
        """Cut the model's weights into the ranks' memory."""
        plan = make_plan(transformers_layout(self.hf_config), self.layout)
        sources = {(0, name): flat(parameter) for name, parameter in model.named_parameters()}
        for rank, parameters in enumerate(self.ranks):
            copies = [plan.copies[index] for index in plan.copies_to(rank)]
            pull(copies, sources, {name: flat(parameter) for name, parameter in parameters.items()})

    def source(self) -> SwapSource:
        return SwapSource(self.hf_config, self.sizes, False, False, self.memories)

    def hashes(self) -> np.ndarray:
        return merge_hashes(self.plan, [owned_hashes(self.plan, rank, own) for rank, own in enumerate(self.ranks)])


@pytest.fixture
def trainer() -> type[Trainer]:
    return Trainer
