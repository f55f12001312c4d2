"""FP8 rollouts: a sharded bfloat16 actor fills a real SGLang model of block-quantised weights."""

import json
import os
import random
import secrets
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.torch import load_file

from megatron_rl.resharding.layouts.fp8 import QUANTISATION
from megatron_rl.rollout.sglang.servers.process import environment
from megatron_rl.system.channel import KEY
from tests.sglang import models

RANKS = Path(__file__).parent / "fp8_ranks.py"
# Tensor-parallel boundaries of the trainer cut tiles: a rank has 64 rows of keys and 192 of the gate. No padding, which
# is the dummy weights' own until SGLang loads others.
SIZES = {"hidden_size": 256, "intermediate_size": 384, "head_dim": 64, "vocab_size": 256}


def test_a_sharded_actor_fills_an_engine_of_fp8_weights(
    run_ranks: Callable[..., None], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(models.MODELS, "fp8", models.MODELS["qwen3"] | SIZES)
    folder, engine, out = (tmp_path / name for name in ("model", "engine", "out"))
    models.write_model(folder, "fp8", random.Random(0))
    engine.mkdir()
    out.mkdir()
    config = json.loads((folder / "config.json").read_text())
    (engine / "config.json").write_text(json.dumps(config | {"quantization_config": QUANTISATION}))
    for key, value in environment(threads=1, workers=1, key=None).items():
        monkeypatch.setenv(key, value)
    monkeypatch.setenv(KEY, secrets.token_hex(16))
    run_ranks(RANKS, 2, folder, engine, out)
    seen = json.loads((out / "seen.json").read_text())
    assert [each["differing"] for each in seen] == [[], []]
    assert all(each["metrics"]["replicas_differ"] == 0 for each in seen)
    before, after = (load_file(out / str(version) / "model.safetensors") for version in range(2))
    assert all(not before[name].equal(after[name]) for name in before)  # every tensor changed between the swaps
    whole = sum(t.numel() * t.element_size() for t in before.values())
    assert 0.5 < seen[0]["metrics"]["swap_bytes"] / whole < 0.75  # weights of one byte; embedding and head of two
    assert os.path.getsize(out / "0" / "model.safetensors") > whole
