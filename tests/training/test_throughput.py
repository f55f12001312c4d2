"""Model FLOPs against public counts and against torch's own counter."""

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForCausalLM

from megatron_rl.actor import accelerator
from megatron_rl.actor.rows import TrainingRow
from megatron_rl.resharding.families.architecture import read_architecture
from megatron_rl.settings.foresight.work import head_flops, layer_flops, row_flops
from megatron_rl.training import throughput
from megatron_rl.training.throughput import peak_flops, prompt_flops, update_flops
from tests.actor.models import CONFIGS

QWEN3 = dict(
    model_type="qwen3",
    num_attention_heads=32,
    num_key_value_heads=8,
    head_dim=128,
    num_hidden_layers=36,
    vocab_size=151936,
    rms_norm_eps=1e-6,
    rope_theta=1e6,
    max_position_embeddings=40960,
)
SIZES = {"4b": (2560, 9728, True), "8b": (4096, 12288, False)}


@pytest.mark.parametrize(("size", "length", "gflop"), [("4b", 4096, 27.6), ("4b", 16384, 38.5), ("8b", 4096, 49.0)])
def test_of_real_shapes(size: str, length: int, gflop: float) -> None:
    """GFLOP a token by Megatron's count, as published beside throughputs, to a percent."""
    hidden, mlp, tied = SIZES[size]
    arch = read_architecture(QWEN3 | dict(hidden_size=hidden, intermediate_size=mlp, tie_word_embeddings=tied))
    assert row_flops(arch, length, length) / length / 1e9 == pytest.approx(gflop, rel=0.01)


@pytest.mark.parametrize("name", ["qwen3", "qwen2", "llama"])
def test_equals_what_torch_counts(name: str) -> None:
    """Of a forward and backward pass of transformers' model, which computes masked scores and rotary angles, too."""
    model = AutoModelForCausalLM.from_config(CONFIGS[name], attn_implementation="eager")
    arch, length = read_architecture(CONFIGS[name].to_dict()), 24
    hidden = model.model.embed_tokens(torch.arange(length)[None]).detach().requires_grad_()
    with FlopCounterMode(display=False) as counter:
        model(inputs_embeds=hidden).logits.sum().backward()
    masked = 3 * arch.layers * 2 * arch.heads * arch.head_dim * length * length
    assert row_flops(arch, length, length) + masked + arch.head_dim * length == counter.get_total_flops()


def test_of_experts_those_that_are_used_and_of_rows_what_is_trained() -> None:
    arch = read_architecture(CONFIGS["qwen3_moe"].to_dict())
    body = 4 * (64 * (2 * 64 + 2 * 32) + 3 * 64 * 48 * 2 + 64 * 4)
    assert row_flops(arch, 10, 4) == 3 * (10 * (2 * body + 4 * 2 * 64 * 10) + 4 * 2 * 64 * 99)
    weight = np.array([1, 0, 0, 1, 1], dtype=np.float32)  # nothing predicts the first token
    rows = [TrainingRow(np.arange(5), {"weight": weight}), TrainingRow(np.arange(3), {"weight": weight[:3]})]
    assert update_flops(arch, rows) == row_flops(arch, 4, 2) + row_flops(arch, 2, 0)


def test_what_is_spared_of_a_prompt_is_what_its_completions_do_not_need() -> None:
    """Every token once through the layers; the squares of attention from the prompt's end on."""
    arch = read_architecture(CONFIGS["qwen3"].to_dict())
    prompt, lengths = 7, (9, 12, 20)
    rows = [TrainingRow(np.arange(n + 1), {"weight": (np.arange(n + 1) > prompt) * 1.0}, prompt) for n in lengths]
    once = prompt + sum(n - prompt for n in lengths)
    squares = prompt**2 + sum(n**2 - prompt**2 for n in lengths)
    attention = 2.0 * arch.layers * arch.heads * arch.head_dim * squares
    trained = sum(n - prompt for n in lengths)
    expected = 3 * (once * layer_flops(arch) + attention + trained * head_flops(arch))
    assert update_flops(arch, rows) - prompt_flops(arch, [prompt, prompt]) == expected


def test_peaks(monkeypatch: pytest.MonkeyPatch) -> None:
    assert 1e8 < peak_flops(torch.float32) < 1e15  # measured
    monkeypatch.setattr(accelerator, "on_gpu", lambda: True)
    monkeypatch.setattr(throughput, "_measured", lambda dtype: 1.0)
    for name, peak in (("NVIDIA H100 80GB HBM3", 989e12), ("NVIDIA H100 PCIe", 756e12), ("NVIDIA X1", 1.0)):
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda name=name: name)
        assert peak_flops(torch.bfloat16) == peak
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA H100 80GB HBM3")
    assert peak_flops(torch.float32) == 67e12
