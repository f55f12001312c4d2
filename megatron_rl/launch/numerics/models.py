"""Random models of a shape, as Hugging Face folders: weights of a size that makes every part of a model count."""

import copy
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from megatron_rl.config import Config
from megatron_rl.data.tokenizer import write_word_tokenizer
from megatron_rl.launch.numerics.shape import Shape
from megatron_rl.resharding.families import canonical_tensors, with_scalar_head

_LOGITS = 0.64  # standard deviation of the logits of a model with tied embeddings
_SPREAD = 0.2  # of norms around 1, and of biases around 0


def write_models(shape: Shape, folder: Path) -> Config:
    """Write the policy, another model of its shape and one with a scalar head; returns the configuration to run.

    Its reference, its teacher and the models of a contrast are the other one: a term that measures to them is not 0.
    """
    config = copy.deepcopy(shape.config)
    scalar = with_scalar_head(shape.architecture)
    for number, (name, hf_config) in enumerate(
        (("model", shape.architecture), ("other", shape.architecture), ("scalar", scalar))
    ):
        write_model(folder / name, hf_config, config.run.seed + number)
    config.model.architecture = {}
    config.model.path = str(folder / ("scalar" if config.reward_model.steps else "model"))
    config.critic.path = str(folder / "scalar")
    if config.algorithm.teacher:
        config.algorithm.teacher = str(folder / "other")
    if config.preference.loss == "cdpo":
        config.preference.positive, config.preference.negative = str(folder / "other"), str(folder / "model")
    config.preference.reference = str(folder / "other")
    return config


def write_model(folder: Path, hf_config: Mapping[str, Any], seed: int) -> None:
    """A folder with the model's config.json, a tokenizer and random weights, float32."""
    generator = torch.Generator().manual_seed(seed)
    spread = _LOGITS / float(hf_config["hidden_size"]) ** 0.5
    tensors = {}
    for name, spec in canonical_tensors(hf_config).items():
        values = torch.randn(spec.shape, generator=generator)
        if len(spec.shape) > 1:
            tensors[name] = values * spread
        else:
            tensors[name] = values * _SPREAD + (0.0 if name.endswith("bias") else 1.0)
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(dict(hf_config)), encoding="utf-8")
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    write_word_tokenizer(folder, ["<s>", "</s>", "<pad>"], "<s>", "</s>", "<pad>")
