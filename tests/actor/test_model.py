"""Which layers a model is made of, and what is said where their attention is missing."""

import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from megatron.core.models.gpt import GPTModel

from megatron_rl.actor import accelerator
from megatron_rl.actor.micro_batch import PackedSequences
from megatron_rl.actor.model import PolicyModel, transformer_engine
from megatron_rl.actor.modules.layers import PackedRotary
from megatron_rl.errors import InputError


def test_float32_is_computed_without_tf32(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("transformer_engine", "transformer_engine.pytorch"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    assert not transformer_engine(torch.bfloat16)  # no GPU
    monkeypatch.setattr(accelerator, "on_gpu", lambda: True)
    assert transformer_engine(torch.bfloat16) and not transformer_engine(torch.float32)


def test_one_that_cannot_be_imported_is_not_passed_over(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Built for another torch, it ends the run; where there is none, Megatron's own layers compute."""
    monkeypatch.setattr(accelerator, "on_gpu", lambda: True)
    assert not transformer_engine(torch.bfloat16)
    (tmp_path / "transformer_engine").mkdir()
    (tmp_path / "transformer_engine" / "__init__.py").write_text("raise ImportError('x.so: undefined symbol: _Z')")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(InputError, match=r"cannot be used, it was built for another torch than .*undefined symbol"):
        transformer_engine(torch.bfloat16)


def test_missing_fused_attention_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    def none(*args: object, **kwargs: object) -> None:
        raise ValueError("No dot product attention backend is available for the provided inputs.")

    monkeypatch.setattr(GPTModel, "forward", none)
    model = PolicyModel.__new__(PolicyModel)
    torch.nn.Module.__init__(model)
    model.rotary_pos_emb = PackedRotary(torch.ones(1), torch.float32)
    packed = PackedSequences()
    with pytest.raises(InputError, match=r"neither cuDNN's .* nor flash-attn .*set actor.attention=torch"):
        model(*torch.zeros(2, 1, 1, dtype=torch.int64), packed_seq_params=packed)
