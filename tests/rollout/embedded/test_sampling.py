"""The counter-based uniforms and the inverse CDF against references in plain Python and numpy."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from megatron_rl.rollout.embedded.sampling import draw, uniforms
from megatron_rl.rollout.protocol import Sampling

MASK = (1 << 64) - 1


def splitmix(state: int, index: int) -> int:
    """Output ``index`` of a SplitMix64 generator, in Python's integers."""
    return mix((state + (index + 1) * 0x9E3779B97F4A7C15) & MASK)


def mix(z: int) -> int:
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
    return z ^ (z >> 31)


def test_the_reference_is_splitmix64():
    # first outputs for state 1234567, as published with the algorithm's reference implementations
    assert [splitmix(1234567, index) for index in range(3)] == [
        6457827717110365317,
        3203168211198807973,
        9817491932198370423,
    ]


@given(st.lists(st.tuples(st.integers(0, 2**63 - 1), st.integers(0, 2**31)), min_size=1, max_size=8))
@settings(max_examples=50, deadline=None)
def test_uniforms_are_splitmix64(pairs):
    seeds, positions = (torch.tensor(column, dtype=torch.int64) for column in zip(*pairs, strict=True))
    expected = [(splitmix(mix(seed), position) >> 12) * 2.0**-52 for seed, position in pairs]
    assert uniforms(seeds, positions).tolist() == expected


def test_uniforms_are_uniform_and_uncorrelated():
    seeds = torch.arange(2000).repeat_interleave(50)
    positions = torch.arange(50).repeat(2000)
    numbers = uniforms(seeds, positions).reshape(2000, 50).numpy()
    assert numbers.min() >= 0 and numbers.max() < 1
    assert stats.kstest(numbers.ravel(), "uniform").pvalue > 1e-3
    for neighbours in ((numbers[1:], numbers[:-1]), (numbers[:, 1:], numbers[:, :-1])):
        assert abs(np.corrcoef(neighbours[0].ravel(), neighbours[1].ravel())[0, 1]) < 4 / np.sqrt(100_000)


def counts(logits: list[float], sampling: Sampling, rows: int = 20_000) -> np.ndarray:
    tokens, _ = draw(torch.tensor(logits).repeat(rows, 1), torch.arange(rows), torch.zeros(rows).long(), sampling)
    return np.bincount(tokens.numpy(), minlength=len(logits))


def softmax(logits: np.ndarray) -> np.ndarray:
    weights = np.exp(logits - logits.max())
    return weights / weights.sum()


LOGITS = [0.3, -1.0, 2.0, 0.0, 1.5, -0.5, -4.0, 1.0]


@pytest.mark.parametrize(
    ("options", "kept"),
    [
        ({}, range(8)),
        ({"temperature": 0.5}, range(8)),
        ({"temperature": 2.0}, range(8)),
        ({"top_k": 3}, [2, 4, 7]),
        ({"top_p": 0.65}, [2, 4]),  # the probabilities are .412, .250, .152, …
        ({"top_p": 0.67}, [2, 4, 7]),
        ({"top_k": 3, "top_p": 0.8}, [2, 4]),  # of what top-k left: .506, .307, .186
        ({"top_p": 1e-9}, [2]),
        ({"top_k": 100}, range(8)),
    ],
)
def test_frequencies_follow_the_distribution(options, kept):
    expected = softmax(np.array(LOGITS) / options.get("temperature", 1.0))
    expected[[token for token in range(8) if token not in kept]] = 0
    expected /= expected.sum()
    seen = counts(LOGITS, Sampling(1, **options))
    assert (seen[expected == 0] == 0).all()
    if len(kept) > 1:
        assert stats.chisquare(seen[expected > 0], expected[expected > 0] * seen.sum()).pvalue > 1e-3


def test_logprobs_ignore_the_truncation():
    logits = torch.randn(64, 300, generator=torch.Generator().manual_seed(0)) * 3
    seeds, positions = torch.arange(64), torch.arange(64)
    tokens, logprobs = draw(logits, seeds, positions, Sampling(1, temperature=0.6, top_k=5, top_p=0.9))
    expected = (logits.double() / 0.6).log_softmax(-1).gather(1, tokens[:, None])[:, 0]
    assert (logprobs - expected).abs().max() <= 2e-6


def test_nucleus_of_a_large_vocabulary():
    """The nucleus is the same whether it lies in the first candidates or beyond them."""
    generator = torch.Generator().manual_seed(0)
    peaked = torch.randn(4, 5000, generator=generator) * 4
    flat = torch.randn(4, 5000, generator=generator) * 0.1
    seeds, positions = torch.arange(4) + 11, torch.zeros(4).long()
    sampling = Sampling(1, top_p=0.9)
    alone = torch.cat([draw(rows, seeds, positions, sampling)[0] for rows in (peaked, flat)])
    together = draw(torch.cat([peaked, flat]), seeds.repeat(2), positions.repeat(2), sampling)[0]
    assert alone.tolist() == together.tolist()
    for rows in (peaked, flat):
        ordered, order = rows.double().softmax(-1).sort(descending=True)
        sizes = (ordered.cumsum(-1) - ordered < 0.9).sum(-1).tolist()
        many = draw(rows.repeat(100, 1), torch.arange(400), torch.zeros(400).long(), sampling)[0].reshape(100, 4)
        for row, size in enumerate(sizes):
            assert set(many[:, row].tolist()) <= set(order[row, :size].tolist())


def test_ties_at_the_cutoff_are_all_kept():
    seen = counts([1.0, 1.0, 1.0, -3.0], Sampling(1, top_k=2))
    assert (seen[:3] > 6000).all() and seen[3] == 0


def test_greedy_takes_the_most_likely_token():
    logits = torch.tensor([[0.0, 3.0, 1.0], [5.0, 3.0, 1.0]])
    tokens, logprobs = draw(logits, torch.tensor([1, 2]), torch.tensor([0, 0]), Sampling(1, temperature=0.0))
    assert tokens.tolist() == [1, 0]
    assert torch.allclose(logprobs, logits.log_softmax(-1)[[0, 1], [1, 0]], atol=1e-6)


def test_impossible_tokens_are_never_drawn():
    logits = [-torch.inf, 0.0, -torch.inf, 0.0, -torch.inf]
    seen = counts(logits, Sampling(1))
    assert seen[[0, 2, 4]].tolist() == [0, 0, 0] and seen.sum() == 20_000
