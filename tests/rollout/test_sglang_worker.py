"""What a worker of an SGLang server says about its model."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from transformers import AutoConfig

from megatron_rl.resharding.families.architecture import differences
from megatron_rl.rollout.sglang.worker import Weights
from tests.actor.models import QWEN3


def said(folder: Path, **as_started: Any) -> dict[str, Any]:
    """The answer of a worker whose server read this folder and overrode these keys."""
    config = AutoConfig.from_pretrained(folder)
    for key, value in as_started.items():
        setattr(config, key, value)
    model: Any = SimpleNamespace(config=config)
    return Weights(model, 0).config()


def test_the_folders_config_is_said_with_the_rotary_embedding_that_serves(tmp_path: Path) -> None:
    """Sizes that SGLang pads on a CPU are not; an override of the rotary embedding is."""
    (tmp_path / "config.json").write_text(json.dumps(QWEN3))
    assert differences(QWEN3, said(tmp_path)) == ""
    assert differences(QWEN3, said(tmp_path, num_attention_heads=8, vocab_size=128)) == ""
    other = {"rope_type": "default", "rope_theta": 2e4}
    assert differences(QWEN3, said(tmp_path, rope_parameters=other)) == "another rotary embedding"


def test_without_a_folder_all_is_what_the_server_made(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(QWEN3))
    config = AutoConfig.from_pretrained(tmp_path)
    config.name_or_path = "gone"
    model: Any = SimpleNamespace(config=config)
    assert differences(QWEN3, Weights(model, 0).config()) == ""
