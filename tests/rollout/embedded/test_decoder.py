"""The decoding step of our own against transformers' modules, and the weights that it reads."""

from copy import deepcopy

import pytest
import torch

from megatron_rl.rollout.embedded import decoder
from megatron_rl.rollout.embedded.generate import generate
from megatron_rl.rollout.embedded.true_on_policy import replace_layers
from megatron_rl.rollout.protocol import Request, Sampling

DENSE = ["qwen2", "qwen3", "qwen3_untied", "llama"]


def requests(lengths: list[int], group: int) -> list[Request]:
    return [Request([(7 * n + i) % 101 for i in range(n)], [100 * n + seed for seed in range(group)]) for n in lengths]


@pytest.mark.parametrize("family", DENSE)
@pytest.mark.parametrize("lengths", [[6, 6], [3, 17, 8]], ids=["equal", "padded"])
@pytest.mark.parametrize("onednn", [False, True])
def test_equals_the_modules(models, monkeypatch, family, lengths, onednn):
    """With rows enough for either library's products, and all of them dropped, one after the other."""
    model = deepcopy(models[family][0])
    monkeypatch.setattr(decoder, "_ONEDNN", onednn and torch.backends.mkldnn.is_available())
    batch, sampling = requests(lengths, 16), Sampling(12, stop_tokens=tuple(range(12)))
    own = generate(model, batch, sampling)
    monkeypatch.setattr(decoder, "FAMILIES", ())
    assert not decoder.knows(model)
    theirs = generate(model, batch, sampling)
    for one, other in zip([c for group in own for c in group], [c for group in theirs for c in group], strict=True):
        assert one.tokens == other.tokens
        assert torch.tensor(one.logprobs).sub(torch.tensor(other.logprobs)).abs().max() <= 1e-5


def test_equals_the_modules_in_bfloat16(models):
    """To that dtype's rounding: a first token's log-probs, of which hardly any differs."""
    model = deepcopy(models["qwen3"][0]).bfloat16()
    (own,) = generate(model, requests([9], 40), Sampling(2))
    expected = []
    for completion in own:
        with torch.no_grad():
            logits = model(torch.tensor([[*requests([9], 1)[0].tokens, *completion.tokens[:1]]])).logits[0, -1]
        expected.append(logits.float().log_softmax(-1)[completion.tokens[1]].item())
    gap = torch.tensor([completion.logprobs[1] for completion in own]) - torch.tensor(expected)
    assert gap.abs().max() < 0.1 and gap.abs().median() < 0.02


def test_weights_become_views_of_one_and_stay_the_parameters(models):
    model = deepcopy(models["qwen2"][0])
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    decoder.stack_weights(model)
    assert all(torch.equal(parameter, before[name]) for name, parameter in model.named_parameters())
    attention = model.model.layers[1].self_attn
    parts = [attention.q_proj, attention.k_proj, attention.v_proj]
    weight, bias = decoder.stack(parts)
    assert weight.data_ptr() == attention.q_proj.weight.data_ptr()  # the second time nothing moves
    assert torch.equal(weight, torch.cat([part.weight for part in parts]))
    assert bias is not None and torch.equal(bias, torch.cat([part.bias for part in parts]))
    with torch.no_grad():
        attention.k_proj.weight.fill_(3.0)
    assert weight[len(attention.q_proj.weight)].eq(3).all()
    copy = deepcopy(model)
    assert copy.model.layers[1].self_attn.q_proj.weight.data_ptr() != weight.data_ptr()
    assert decoder.stack([copy.model.layers[1].self_attn.q_proj])[0].eq(weight[: len(attention.q_proj.weight)]).all()


def test_layers_that_compute_otherwise_are_left_to_transformers(models):
    assert all(decoder.knows(models[family][0]) for family in DENSE)
    assert not decoder.knows(models["qwen3_moe"][0])
    model = deepcopy(models["qwen3"][0])
    replace_layers(model)
    assert not decoder.knows(model)
