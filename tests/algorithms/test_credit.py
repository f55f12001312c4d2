"""What every algorithm gives credit for, token by token: known values and the formulas written out."""

from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from megatron_rl.algorithms.algorithm import CreditBatch, Term
from megatron_rl.algorithms.config import AlgorithmConfig
from megatron_rl.algorithms.registry import make_algorithm
from megatron_rl.algorithms.terms.advantages import group_advantages, leave_one_out
from megatron_rl.algorithms.terms.returns import generalised_advantages, rewards_to_go


@dataclass
class Tokens:
    """A micro-batch of the only rank."""

    lengths: torch.Tensor
    samples: torch.Tensor
    columns: dict[str, torch.Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.totals = self.lengths
        self.columns.setdefault("weight", torch.ones(int(self.lengths.sum())))

    def sequence_sum(self, values: torch.Tensor) -> torch.Tensor:
        return torch.cat([part.sum().expand(len(part)) for part in values.split(self.lengths.tolist())])

    def whole(self, values: torch.Tensor) -> torch.Tensor:
        return torch.nn.utils.rnn.pad_sequence(values.split(self.lengths.tolist()), batch_first=True)

    def own(self, whole: torch.Tensor) -> torch.Tensor:
        return torch.cat([row[:length] for row, length in zip(whole, self.lengths.tolist(), strict=True)])


def credited(name: str, rewards: list[float], groups: list[int], lengths: list[int], **more) -> list[list[float]]:
    """The advantages of each sample's tokens; one sequence of each sample, in two micro-batches, last ones first."""
    terms, columns = more.pop("terms", {}), more.pop("columns", {})
    batches, half = [], len(rewards) // 2
    for chosen in (range(half, len(rewards)), range(half)):
        own = {c: torch.cat([torch.tensor(values[i]) for i in chosen]).float() for c, values in columns.items()}
        batches.append(Tokens(torch.tensor([lengths[i] for i in chosen]), torch.tensor(list(chosen)), own))
    algorithm = make_algorithm(AlgorithmConfig(name=name, **more))
    weighted = {term: Term(np.array(scores), np.array(weights)) for term, (scores, weights) in terms.items()}
    means = algorithm.credit(CreditBatch(batches, np.array(rewards, dtype=np.float64), np.array(groups), weighted))
    found: list[list[float]] = [[] for _ in rewards]
    for batch in batches:
        parts = batch.columns["advantage"].split(batch.lengths.tolist())
        for sample, part in zip(batch.samples.tolist(), parts, strict=True):
            found[sample] = part.tolist()
    assert means.tolist() == pytest.approx([np.mean(f) if f else 0.0 for f in found], abs=1e-6)
    return found


def test_each_token_gets_its_samples_advantage_wherever_it_lies() -> None:
    """Two groups whose samples lie mixed in two micro-batches, one sequence of them without a trained token."""
    batches = [
        Tokens(torch.tensor([2, 1, 0]), torch.tensor([5, 0, 3])),
        Tokens(torch.tensor([3, 1, 2]), torch.tensor([2, 1, 4])),
    ]
    rewards = np.array([1.0, 0.0, 0.25, 0.0, 0.5, 0.75])
    groups = np.array([0, 0, 1, 0, 1, 1])
    credit = make_algorithm(AlgorithmConfig()).credit(CreditBatch(batches, rewards, groups))
    # (r - mean) / (std + 1e-6), std of n - 1: {1, 0, 0}: 1/sqrt(3); {.25, .5, .75}: .25
    s = 3**-0.5
    expected = [2 / 3 / (s + 1e-6), -1 / 3 / (s + 1e-6), -0.25 / 0.250001, -1 / 3 / (s + 1e-6), 0.0, 0.25 / 0.250001]
    assert credit == pytest.approx(expected, abs=1e-12)
    assert batches[0].columns["advantage"].tolist() == pytest.approx([expected[5]] * 2 + [expected[0]])
    of_second = [expected[2]] * 3 + [expected[1]] + [expected[4]] * 2
    assert batches[1].columns["advantage"].tolist() == pytest.approx(of_second)
    assert batches[1].columns["advantage"].dtype == torch.float32


@pytest.mark.parametrize(
    ("name", "options", "rewards", "expected"),
    [
        ("grpo", {}, [1, 0, 0, 0], [1.499997, -0.499999, -0.499999, -0.499999]),
        ("grpo", {"std": "population"}, [1, 0, 0, 0], [1.732047, -0.577349, -0.577349, -0.577349]),
        ("grpo", {}, [1, 1, 0, 0], [0.866024, 0.866024, -0.866024, -0.866024]),
        ("grpo", {}, [0.25, 0.5, 0.75, 0.5], [-1.224739, 0, 1.224739, 0]),
        ("grpo", {"std": "population"}, [0.25, 0.5, 0.75, 0.5], [-1.414206, 0, 1.414206, 0]),
        ("grpo", {}, [0.3, 0.3, 0.3, 0.3], [0, 0, 0, 0]),
        ("dapo", {}, [1, 1, 0, 0], [0.866024, 0.866024, -0.866024, -0.866024]),
        ("dr_grpo", {}, [1, 0, 0, 0], [0.75, -0.25, -0.25, -0.25]),
        ("rloo", {}, [1, 1, 0, 0], [0.666667, 0.666667, -0.666667, -0.666667]),
        ("reinforce_pp", {}, [1, 1, -1], [0.577350, 0.577350, -1.154701]),
        ("reinforce_pp", {"std": "population"}, [1, 1, -1], [0.707107, 0.707107, -1.414214]),
        # r - mean = .75, -.25 x 3: population variance .1875, unbiased .25
        ("reinforce_pp_baseline", {}, [1, 0, 0, 0], [1.5, -0.5, -0.5, -0.5]),
        ("reinforce_pp_baseline", {"std": "population"}, [1, 0, 0, 0], [1.732051, -0.577350, -0.577350, -0.577350]),
    ],
)
def test_known_values(name: str, options: dict, rewards: list[float], expected: list[float]) -> None:
    found = credited(name, rewards, [0] * len(rewards), [1] * len(rewards), **options)
    assert [value for [value] in found] == pytest.approx(expected, abs=1e-6)


def test_gdpo_hears_a_reward_that_the_sum_hides() -> None:
    """methods: two groups of two with rewards (0,0),(1,0) and (0,0),(1,1)."""
    one = [1.0] * 4
    terms = {"first": ([0.0, 1.0, 0.0, 1.0], one), "second": ([0.0, 0.0, 0.0, 1.0], one)}
    sums = [0.0, 1.0, 0.0, 2.0]
    alike = credited("grpo", sums, [0, 0, 1, 1], [1] * 4, terms=terms)
    assert [v for [v] in alike] == pytest.approx([-0.707106, 0.707106, -0.707106, 0.707106], abs=1e-6)
    each = credited("grpo", sums, [0, 0, 1, 1], [1] * 4, terms=terms, reward_normalization="each")
    assert [v for [v] in each] == pytest.approx([-0.547722, 0.547722, -1.095445, 1.095445], abs=1e-5)


def test_gdpo_weighs_what_it_has_compared() -> None:
    """A weight is not divided out with the standard deviation; one of 0 has no say, one below 0 turns the order."""
    scores, groups, rng = (
        {"right": [0.0, 1.0, 1.0, 3.0], "form": [0.5, 0.2, 0.9, 0.1]},
        [0, 0, 0, 0],
        np.random.default_rng(0),
    )
    for _ in range(20):
        weights = {term: rng.choice([0.0, 1.0, 0.01, 5.0, -2.0], rng.choice([1, 4])) * np.ones(4) for term in scores}
        compared = sum(
            weights[term] * (np.array(s) - np.mean(s)) / (np.std(s, ddof=1) + 1e-6) for term, s in scores.items()
        )
        expected = (compared - compared.mean()) / np.sqrt(compared.var(ddof=1) + 1e-8)
        terms = {term: (s, weights[term]) for term, s in scores.items()}
        sums = sum(weights[term] * np.array(s) for term, s in scores.items()).tolist()
        found = credited("grpo", sums, groups, [1] * 4, terms=terms, reward_normalization="each")
        assert [value for [value] in found] == pytest.approx(expected.tolist(), abs=1e-6)


def test_grpo_is_deaf_where_the_sum_is_constant() -> None:
    """To parts that differ, which GDPO hears with weights 1 and 2."""
    terms = {"first": ([0.0, 1.0], [1.0] * 2), "second": ([1.0, 0.5], [2.0] * 2)}
    assert credited("grpo", [2.0, 2.0], [0, 0], [1] * 2, terms=terms) == [[0.0], [0.0]]
    each = credited("grpo", [2.0, 2.0], [0, 0], [1] * 2, terms=terms, reward_normalization="each")
    assert [value for [value] in each] == pytest.approx([0.707107, -0.707107], abs=1e-6)


def test_rewards_to_go_are_discounted_and_whitened_over_all_tokens() -> None:
    rewards, lengths, gamma = [1.0, -2.0, 0.5], [3, 1, 4], 0.9
    returns = [[r * gamma ** (n - 1 - t) for t in range(n)] for r, n in zip(rewards, lengths, strict=True)]
    flat = np.concatenate(returns)
    expected = [(np.array(r) - flat.mean()) / flat.std(ddof=1) for r in returns]
    found = credited("reinforce_pp", rewards, [0, 1, 2], lengths, gamma=gamma)
    for mine, right in zip(found, expected, strict=True):
        assert mine == pytest.approx(right.tolist(), abs=1e-6)


LOGPROBS = {
    "old_logprobs": [[-0.5, -1.0], [-0.2], [-1.5, -0.1, -0.3], [-0.7]],
    "ref_logprobs": [[-0.6, -0.8], [-0.9], [-1.0, -0.4, -0.3], [-0.2]],
}


def test_a_kl_in_the_reward_is_subtracted_before_anything_else() -> None:
    rewards, lengths, beta = [1.0, 0.0, 0.0, 1.0], [2, 1, 3, 1], 0.5
    kl = [np.subtract(o, r) for o, r in zip(LOGPROBS["old_logprobs"], LOGPROBS["ref_logprobs"], strict=True)]
    per_token = [-beta * k for k in kl]
    for k, r in zip(per_token, rewards, strict=True):
        k[-1] += r
    whole = np.array([k.sum() for k in per_token])
    options = {"kl_coef": beta, "kl_in": "reward", "columns": LOGPROBS}
    found = credited("rloo", rewards, [0, 0, 1, 1], lengths, **options)
    expected = [whole[0] - whole[1], whole[1] - whole[0], whole[2] - whole[3], whole[3] - whole[2]]
    assert [f[0] for f in found] == pytest.approx(expected, abs=1e-6)
    found = credited("grpo", rewards, [0, 0, 1, 1], lengths, **options)
    assert [f[0] for f in found][:2] == pytest.approx(group_advantages(whole[None, :2])[0].tolist(), abs=1e-6)
    to_go = [np.cumsum(k[::-1])[::-1] for k in per_token]
    flat = np.concatenate(to_go)
    found = credited("reinforce_pp", rewards, [0, 0, 1, 1], lengths, **options)
    assert np.concatenate(found) == pytest.approx((flat - flat.mean()) / flat.std(ddof=1), abs=1e-6)
    # a column of coefficients, per data source, in place of the one
    mine = {"kl_coef": 9.0, "kl_in": "reward", "columns": LOGPROBS | {"kl_coef": [[beta] * n for n in lengths]}}
    assert credited("reinforce_pp", rewards, [0, 0, 1, 1], lengths, **mine) == found


def test_rewards_of_single_tokens_are_added() -> None:
    columns = {"token_reward": [[0.5, 0.0], [0.0], [0.0, 0.25, 0.0], [0.0]]}
    found = credited("dr_grpo", [0.0, 0.0, 0.0, 1.0], [0, 0, 1, 1], [2, 1, 3, 1], columns=columns)
    assert [f[0] for f in found] == pytest.approx([0.25, -0.25, -0.375, 0.375])
    to_go = np.array([0.5, 0.0, 0.0, 0.25, 0.25, 0.0, 1.0])
    found = credited("reinforce_pp", [0.0, 0.0, 0.0, 1.0], [0, 0, 1, 1], [2, 1, 3, 1], columns=columns)
    assert np.concatenate(found) == pytest.approx((to_go - to_go.mean()) / to_go.std(ddof=1), abs=1e-6)


@pytest.mark.parametrize(("lam", "expected"), [(0.95, [0.46575, 0.385, 0.3]), (1.0, [0.5, 0.4, 0.3])])
def test_generalised_advantages_known_values(lam: float, expected: list[float]) -> None:
    rewards = torch.tensor([[0.0, 0.0, 1.0, 0.0]], dtype=torch.float64)  # the last place is behind the end
    values = torch.tensor([[0.5, 0.6, 0.7, 0.0]], dtype=torch.float64)
    assert generalised_advantages(rewards, values, 1.0, lam)[0].tolist() == pytest.approx([*expected, 0.0], abs=1e-9)


def test_ppo_whitens_advantages_and_keeps_returns() -> None:
    values = [[0.5, 0.6, 0.7], [0.1], [0.2, 0.3]]
    rewards, lengths = [1.0, 0.0, -1.0], [3, 1, 2]
    batch = Tokens(
        torch.tensor(lengths), torch.arange(3), {"values": torch.tensor([v for of_one in values for v in of_one])}
    )
    algorithm = make_algorithm(AlgorithmConfig(name="ppo"))
    assert algorithm.needs == {"value"}
    algorithm.credit(CreditBatch([batch], np.array(rewards), np.arange(3)))
    gae, raw = [], []
    for v, r in zip(values, rewards, strict=True):
        deltas = [after - now for now, after in pairwise([*v, r])]
        running, found = 0.0, []
        for d in reversed(deltas):
            running = d + 0.95 * running
            found.insert(0, running)
        gae += found
        raw += [a + b for a, b in zip(found, v, strict=True)]
    gae = np.array(gae)
    assert batch.columns["returns"].tolist() == pytest.approx(raw, abs=1e-6)
    assert batch.columns["advantage"].tolist() == pytest.approx((gae - gae.mean()) / gae.std(ddof=1), abs=1e-6)


@given(st.lists(st.floats(-5, 5), min_size=2, max_size=9), st.floats(0, 1), st.floats(0, 1))
def test_properties(rewards: list[float], gamma: float, lam: float) -> None:
    """RLOO is n / (n - 1) x Dr. GRPO, a shift of the rewards changes nothing, and with lambda 1 GAE is return - V."""
    n = len(rewards)
    plain = [f[0] for f in credited("dr_grpo", rewards, [0] * n, [1] * n)]
    assert leave_one_out(np.array(rewards)).tolist() == pytest.approx([n / (n - 1) * p for p in plain], abs=1e-5)
    shifted = [f[0] for f in credited("grpo", [r + 3 for r in rewards], [0] * n, [1] * n)]
    assert shifted == pytest.approx([f[0] for f in credited("grpo", rewards, [0] * n, [1] * n)], abs=1e-3)
    r = torch.tensor([rewards], dtype=torch.float64)
    values = r.flip(1) / 2
    advantages = generalised_advantages(r, values, gamma, 1.0)
    assert torch.allclose(advantages, rewards_to_go(r, gamma) - values, atol=1e-9)


def test_a_completion_that_stands_alone_is_worth_nothing_by_comparison() -> None:
    found = credited("grpo", [5.0, 1.0, 0.0], [7, 0, 0], [2, 1, 1])
    assert found[0] == [0.0, 0.0] and found[1][0] == pytest.approx(0.707106, abs=1e-6)


@pytest.mark.parametrize(
    ("options", "needs"),
    [
        ({}, set()),  # one mini-batch: the first update's own log-probs are the old ones
        ({"minibatches": 2}, {"old"}),
        ({"minibatches": 2, "bypass": True}, set()),
        ({"kl_coef": 0.1}, {"reference"}),
        ({"kl_coefs": {"maths": 0.001}}, {"reference"}),
        ({"kl_coef": 0.1, "name": "rloo"}, {"reference", "old"}),  # a KL in the reward has to be known before
        ({"kl_coef": 0.1, "name": "rloo", "kl_in": "loss"}, {"reference"}),
        ({"name": "reinforce_pp"}, set()),
        ({"name": "ppo", "minibatches": 4}, {"value", "old"}),
    ],
)
def test_nothing_is_scored_that_is_not_needed(options: dict, needs: set[str]) -> None:
    assert make_algorithm(AlgorithmConfig(**options)).needs == needs


def test_the_kl_to_a_teacher_is_told_without_that_to_the_reference() -> None:
    """Which is a part of the credit with kl_in=reward."""
    rng = np.random.default_rng(3)
    old, teacher, reference = (torch.from_numpy(-rng.random(5)).float() for _ in range(3))
    columns = {"old_logprobs": old, "teacher_logprobs": teacher, "ref_logprobs": reference, "weight": torch.ones(5) / 5}
    batch = Tokens(torch.tensor([2, 3]), torch.tensor([0, 1]), columns)
    options = AlgorithmConfig(name="distillation", teacher="there", kl_coef=0.5, kl_in="reward")
    algorithm = make_algorithm(options)
    algorithm.credit(CreditBatch([batch], np.zeros(2), np.arange(2)))
    torch.testing.assert_close(batch.columns["advantage"], teacher - old - 0.5 * (old - reference))
    _, metrics = algorithm.loss(batch, old.clone().requires_grad_(), torch.zeros(5))
    torch.testing.assert_close(metrics["teacher_kl"], (old - teacher).mean())
