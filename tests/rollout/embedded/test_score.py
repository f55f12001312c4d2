"""Log-probabilities of given tokens against one plain forward of each text."""

import numpy as np
import pytest
import torch

from megatron_rl.errors import InputError
from megatron_rl.rollout.embedded.generate import generate
from megatron_rl.rollout.embedded.score import score
from megatron_rl.rollout.protocol import Given, Request, Sampling


def texts(shapes: list[tuple[int, int]]) -> list[Given]:
    rng = np.random.default_rng(0)
    return [Given(rng.integers(0, 101, length).tolist(), scored) for length, scored in shapes]


@pytest.mark.parametrize("family", ["qwen2", "qwen3", "qwen3_untied", "qwen3_moe", "llama"])
def test_they_are_those_of_a_plain_forward(models, family):
    model, reference = models[family]
    given = texts([(9, 3), (200, 1), (2, 1), (17, 16), (9, 8), *[(60, 5)] * 40])
    for each, found in zip(given, score(model, given), strict=True):
        with torch.no_grad():
            scores = reference(torch.tensor([each.tokens])).logits[0, -each.scored - 1 : -1].double().log_softmax(-1)
        wanted = torch.tensor(each.tokens[-each.scored :])
        expected = scores.gather(1, wanted[:, None])[:, 0].numpy()
        assert np.abs(np.array(found.logprobs) - expected).max() <= 1e-5
        assert found.greedy == bool((scores.argmax(-1) == wanted).all())


def test_what_is_decoded_greedily_is_greedy(qwen3):
    prompts = [each.tokens for each in texts([(5, 1), (30, 1), (11, 1)])]
    drawn = generate(qwen3, [Request(tokens, [0]) for tokens in prompts], Sampling(8, temperature=0))
    given = [Given([*tokens, *own.tokens], 8) for tokens, (own,) in zip(prompts, drawn, strict=True)]
    for found, (own,) in zip(score(qwen3, given), drawn, strict=True):
        assert found.greedy and found.logprobs == pytest.approx(own.logprobs, abs=1e-5)
    other = [Given([*each.tokens[:-1], (each.tokens[-1] + 1) % 101], 8) for each in given]
    assert not any(found.greedy for found in score(qwen3, other))


@pytest.mark.parametrize("given", [Given([1, 2], 2), Given([1, 2], 0), Given([1, 101], 1), Given([-1, 2], 1)])
def test_bad_texts(qwen3, given):
    with pytest.raises(InputError, match="text 0 has 2 tokens"):
        score(qwen3, [given])
