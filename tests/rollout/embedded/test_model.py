"""The embedded engine's model against the trainer that it is attached to."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from megatron_rl.errors import InputError
from megatron_rl.resharding.layout import ParallelSizes
from megatron_rl.resharding.swap import SwapSource
from megatron_rl.rollout.embedded.model import TransformersEngine

Ready = tuple[TransformersEngine, SwapSource]


@pytest.fixture
def ready(models: dict[str, Any], trainer: Any, tmp_path: Path) -> Iterator[Ready]:
    """An engine of the Llama model, and a trainer of the same one."""
    model: PreTrainedModel = models["llama"][0]
    model.config.save_pretrained(tmp_path)
    engine = TransformersEngine(tmp_path, torch.bfloat16, max_running=2)
    ranks = trainer(model, ParallelSizes())  # whose memory is shared as long as it lives
    yield engine, ranks.source()
    engine.stop()


def test_the_same_rotary_embedding_is_attached(ready: Ready) -> None:
    engine, source = ready
    assert engine.attach(source).layout == engine.layout


@pytest.mark.parametrize(
    "changes",
    [
        {"rope_theta": 10001.0},
        {"factor": 4.0001},
        {"original_max_position_embeddings": 65},
        {"rope_type": "default"},
    ],
)
def test_another_rotary_embedding_is_refused(changes: dict[str, Any], ready: Ready) -> None:
    """No parameter shows it, so no hash would."""
    engine, source = ready
    other = json.loads(json.dumps(source.hf_config))
    other["rope_parameters"] |= changes
    wrong = SwapSource(other, source.sizes, False, False, source.memories)
    with pytest.raises(InputError, match=r"rotary embedding .* is not the one that the trainer computes"):
        engine.attach(wrong)
    assert engine.version == -1
    engine.attach(source)


def test_a_config_that_transformers_refuses_is_named(models: dict[str, Any], tmp_path: Path) -> None:
    config = models["llama"][0].config.to_dict() | {"pad_token_id": "none"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match=rf"transformers refuses {tmp_path}/config.json: .*pad_token_id"):
        TransformersEngine(tmp_path, torch.float32, max_running=2)
