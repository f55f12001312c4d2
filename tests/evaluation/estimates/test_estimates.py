"""Estimates equal brute force."""

import random
from collections import Counter
from itertools import combinations, product
from math import comb

import numpy as np
import pytest

from megatron_rl.evaluation.estimates.intervals import bootstrap, compare, mcnemar
from megatron_rl.evaluation.estimates.sampling import avg_at_k, pass_at_k
from megatron_rl.evaluation.estimates.selection import select
from megatron_rl.evaluation.estimates.votes import EMPTY, best_of_n, majority, reduce_steps, weighted


def test_pass_at_k_is_the_share_of_subsets_with_a_right_one():
    for samples in range(1, 8):
        for right in range(samples + 1):
            verdicts = [True] * right + [False] * (samples - right)
            for k in range(1, samples + 1):
                subsets = list(combinations(verdicts, k))
                assert pass_at_k(samples, right, k) == pytest.approx(sum(map(any, subsets)) / len(subsets), abs=1e-12)


def test_pass_at_one_is_the_mean():
    assert pass_at_k(8, 3, 1) == pytest.approx(avg_at_k([1, 1, 1, 0, 0, 0, 0, 0])) == 0.375
    assert pass_at_k(1000, 1, 1000) == 1


@pytest.mark.parametrize("bad", [(3, 4, 1), (3, 1, 0), (3, 1, 4), (3, -1, 1)])
def test_pass_at_k_of_nothing(bad):
    with pytest.raises(ValueError, match="is not defined"):
        pass_at_k(*bad)


def test_majority_is_the_most_common_and_ties_go_to_the_first():
    for answers in product("ABC", repeat=5):
        counts = Counter(answers)
        best = next(a for a in answers if counts[a] == max(counts.values()))
        place = majority(answers)
        assert answers[place] == best
        assert place == answers.index(best)


def test_weighted_votes_and_best_of_n():
    rng = random.Random(0)
    for _ in range(500):
        n = rng.randint(1, 8)
        answers, scores = [rng.choice("AB-") for _ in range(n)], [rng.choice([-1.0, 0.25, 0.5, 2.0]) for _ in range(n)]
        sums = {a: sum(s for b, s in zip(answers, scores, strict=True) if b == a) for a in answers}
        best = max(sums.values())
        assert answers[weighted(answers, scores)] == next(a for a in answers if sums[a] == best)
        place = best_of_n(scores)
        assert scores[place] == max(scores) and max(scores) not in scores[:place]


def test_equal_weights_are_a_majority_vote():
    for answers in product("AB", repeat=4):
        assert weighted(answers, [0.5] * 4) == majority(answers)


def test_steps_of_a_process_reward_model():
    steps = [0.5, 0.25, 0.75]
    assert [reduce_steps(steps, how) for how in ("min", "last", "average")] == [0.25, 0.75, 0.5]
    assert reduce_steps([], "min") == EMPTY == -1


def test_a_bootstrap_of_few_values_is_that_of_all_resamples():
    values = [0.0, 1.0, 1.0]
    everything = [np.mean(draw) for draw in product(values, repeat=3)]
    low, high = np.quantile(everything, [0.025, 0.975], method="inverted_cdf")
    found = bootstrap(values, draws=200_000)
    assert found.mean == pytest.approx(2 / 3)
    assert (found.low, found.high) == pytest.approx((low, high), abs=1e-9)


def test_a_bootstrap_is_reproducible_and_has_the_width_of_the_normal_interval():
    values = [1.0] * 300 + [0.0] * 700
    found = bootstrap(values, seed=3)
    assert found == bootstrap(values, seed=3)
    half = 1.96 * np.sqrt(0.3 * 0.7 / 1000)
    assert found.high - found.mean == pytest.approx(half, abs=0.003)
    assert found.mean - found.low == pytest.approx(half, abs=0.003)
    assert bootstrap([1.0] * 5) == (1, 1, 1)
    with pytest.raises(ValueError, match="nothing"):
        bootstrap([])


def test_mcnemar_is_a_sum_over_all_tables_as_unlikely():
    for a in range(8):
        for b in range(8):
            n = a + b
            chance = [comb(n, i) / 2**n for i in range(n + 1)]
            brute = sum(p for p in chance if p <= chance[a] + 1e-12)
            assert mcnemar(a, b) == pytest.approx(brute)
    assert mcnemar(1, 9) == pytest.approx(0.021484375)
    assert mcnemar(0, 0) == 1
    assert 0 <= mcnemar(3000, 100) < 1e-200


def test_two_models_on_the_same_questions():
    first, second = [1, 1, 0, 0, 1], [1, 0, 1, 1, 1]
    found = compare(first, second)
    assert found.difference.mean == pytest.approx(0.2)
    assert (found.only_first, found.only_second) == (1, 2)
    assert found.p_value == mcnemar(1, 2) == 1
    same = compare(first, first)
    assert same.difference == (0, 0, 0) and same.p_value == 1
    with pytest.raises(ValueError):
        compare([1], [1, 0])


def test_what_scores_select():
    """Against the rules written out: of several answers and steps."""
    rng = random.Random(5)
    for _ in range(300):
        n = rng.randint(1, 6)
        answers = [rng.choice("AB") for _ in range(n)]
        correct = [float(answer == "A") for answer in answers]
        scores = [[rng.choice([0.1, 0.4, 0.9]) for _ in range(rng.randint(0, 3))] for _ in range(n)]
        found = select(answers, correct, scores, steps=True)
        for how, reduce in (("min", min), ("last", lambda s: s[-1]), ("average", lambda s: sum(s) / len(s))):
            single = [reduce(s) if s else -1.0 for s in scores]
            best = next(i for i in range(n) if single[i] == max(single))
            sums = {a: sum(s for b, s in zip(answers, single, strict=True) if a == b) for a in dict.fromkeys(answers)}
            voted = max(sums, key=lambda a: sums[a])
            assert found[f"prm_{how}_best_of_n"] == correct[best]
            assert found[f"prm_{how}_weighted_vote"] == float(voted == "A")
    assert select(["A", "B", "B"], [1, 0, 0], [[0.9], [0.5], [0.6]], steps=False) == {
        "best_of_n": 1,
        "weighted_vote": 0,
    }
