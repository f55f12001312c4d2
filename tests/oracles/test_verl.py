"""Credit, losses and gradients against verl's core_algos."""

import numpy as np
import pytest
import torch
from verl.trainer.config import AlgoConfig
from verl.trainer.ppo import core_algos
from verl.workers.config import ActorConfig

from megatron_rl.algorithms.algorithm import CreditBatch, Term
from megatron_rl.algorithms.config import AlgorithmConfig
from megatron_rl.algorithms.published import settled
from megatron_rl.algorithms.registry import make_algorithm
from megatron_rl.algorithms.terms.aggregation import token_weights
from megatron_rl.algorithms.terms.kl import token_kl
from megatron_rl.algorithms.terms.objectives import policy_loss
from megatron_rl.algorithms.terms.value import value_loss
from tests.oracles.batches import Ragged, Tokens

SEEDS = range(3)
MODES = ("token-mean", "seq-mean-token-mean", "seq-mean-token-sum", "seq-mean-token-sum-norm")


def credit(ragged: Ragged, **options) -> tuple[torch.Tensor, Tokens]:
    """Our advantages [n], and the batch with all columns."""
    tokens = Tokens(ragged)
    rewards, terms = ragged.rewards, {}
    if weights := options.pop("weights", None):
        terms = {name: Term(ragged.scores[name], np.full(len(rewards), weight)) for name, weight in weights.items()}
        rewards = sum(weight * ragged.scores[name] for name, weight in weights.items())
    make_algorithm(AlgorithmConfig(**options)).credit(CreditBatch([tokens], rewards, ragged.groups, terms))
    return tokens.columns["advantage"].double(), tokens


def theirs(ragged: Ragged, estimator: str, rewards: torch.Tensor | None = None, **more) -> torch.Tensor:
    function = core_algos.get_adv_estimator_fn(estimator)
    given = ragged.token_level(ragged.rewards) if rewards is None else rewards
    found, _ = function(token_level_rewards=given.clone(), response_mask=ragged.mask, index=ragged.groups, **more)
    return found.expand_as(ragged.mask)[ragged.mask.bool()]


@pytest.mark.parametrize("seed", SEEDS)
def test_credit(seed: int) -> None:
    ragged = Ragged(seed)
    near = dict(rtol=0, atol=1e-6)
    for name, estimator, more in (
        ("grpo", "grpo", {}),
        ("dr_grpo", "grpo", {"norm_adv_by_std_in_grpo": False}),
        ("rloo", "rloo", {}),
        ("reinforce_pp_baseline", "reinforce_plus_plus_baseline", {}),
        ("reinforce_pp", "reinforce_plus_plus", {"config": AlgoConfig(gamma=1.0)}),
    ):
        torch.testing.assert_close(credit(ragged, name=name)[0], theirs(ragged, estimator, **more), **near, msg=name)
    discounted = theirs(ragged, "reinforce_plus_plus", config=AlgoConfig(gamma=0.9))
    torch.testing.assert_close(credit(ragged, name="reinforce_pp", gamma=0.9)[0], discounted, **near)


@pytest.mark.parametrize("seed", SEEDS)
def test_kl_in_the_reward(seed: int) -> None:
    ragged = Ragged(seed)
    columns = ragged.padded
    scores = ragged.token_level(ragged.rewards)
    shaped = core_algos.compute_rewards(scores, columns["old_logprobs"], columns["ref_logprobs"], 0.3) * ragged.mask
    for name, estimator, more in (
        ("grpo", "grpo", {}),
        ("rloo", "rloo", {}),
        ("reinforce_pp", "reinforce_plus_plus", {"config": AlgoConfig(gamma=1.0)}),
    ):
        mine = credit(ragged, name=name, kl_coef=0.3, kl_in="reward")[0]
        torch.testing.assert_close(mine, theirs(ragged, estimator, shaped, **more), rtol=0, atol=1e-6, msg=name)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("weights", [{"right": 1.0, "format": 1.0}, {"right": 2.0, "format": 0.01}])
def test_gdpo(seed: int, weights: dict[str, float]) -> None:
    ragged = Ragged(seed)
    attention = torch.cat([torch.ones(len(ragged.mask), 1), ragged.mask], dim=1).long()
    found, _ = core_algos.compute_gdpo_outcome_advantage(
        ragged.token_level(ragged.rewards),
        ragged.mask,
        ragged.groups,
        config={"gdpo_reward_keys": list(weights), "gdpo_reward_weights": list(weights.values())},
        non_tensor_batch=ragged.scores,
        batch={"prompts": torch.zeros(len(ragged.mask), 1), "attention_mask": attention},
    )
    mine = credit(ragged, reward_normalization="each", weights=weights)[0]
    torch.testing.assert_close(mine, found[ragged.mask.bool()].double(), rtol=0, atol=2e-6)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(("gamma", "lam"), [(1.0, 1.0), (1.0, 0.95), (0.9, 0.5)])
def test_generalised_advantages(seed: int, gamma: float, lam: float) -> None:
    ragged = Ragged(seed)
    values = ragged.padded["values"] * ragged.mask
    mine, tokens = credit(ragged, name="ppo", gamma=gamma, gae_lambda=lam)
    advantages, returns = core_algos.compute_gae_advantage_return(
        ragged.token_level(ragged.rewards), values, ragged.mask, gamma, lam
    )
    torch.testing.assert_close(mine, advantages[ragged.mask.bool()], rtol=0, atol=1e-6)
    torch.testing.assert_close(tokens.columns["returns"].double(), returns[ragged.mask.bool()], rtol=0, atol=1e-6)


def actor(mode: str, low: float, high: float, c: float) -> ActorConfig:
    made = ActorConfig(
        strategy="fsdp",
        rollout_n=4,
        ppo_micro_batch_size_per_gpu=1,
        clip_ratio_low=low,
        clip_ratio_high=high,
        clip_ratio_c=c,
        loss_agg_mode=mode,
    )
    made.global_batch_info.update(loss_scale_factor=7)
    return made


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("surrogate", ["clip", "gspo", "cispo"])
def test_loss_and_gradient(surrogate: str, mode: str, seed: int) -> None:
    ragged, (low, high) = Ragged(seed), (0.2, 0.28) if surrogate != "gspo" else (0.01, 0.02)
    loss_of = core_algos.get_policy_loss_fn({"clip": "vanilla"}.get(surrogate, surrogate))
    leaf = ragged.padded["logprobs"].clone().requires_grad_()
    verl, measured = loss_of(
        old_log_prob=ragged.padded["old_logprobs"],
        log_prob=leaf,
        advantages=ragged.padded["advantage"],
        response_mask=ragged.mask,
        loss_agg_mode=mode,
        config=actor(mode, low, high, 3.0),
        rollout_is_weights=ragged.padded["factor"],
    )
    verl.backward()

    tokens = Tokens(ragged)
    weights = torch.from_numpy(np.repeat(token_weights(ragged.lengths, mode, 7), ragged.lengths))
    mine = ragged.flat("logprobs").requires_grad_()
    options = dict(surrogate=surrogate, clip_low=low, clip_high=high, dual_clip=3.0 if surrogate == "clip" else 0.0)
    loss, metrics = policy_loss(
        mine,
        ragged.flat("old_logprobs"),
        ragged.flat("advantage"),
        weights,
        settled(AlgorithmConfig(**options)),
        correction=ragged.flat("factor"),
        sequence_sum=tokens.sequence_sum,
        share=torch.full_like(weights, 1 / len(weights)),
    )
    loss.backward()
    assert loss.item() == pytest.approx(verl.item(), rel=1e-6, abs=1e-6)
    torch.testing.assert_close(mine.grad, leaf.grad[ragged.mask.bool()], rtol=1e-6, atol=1e-9)
    bounded = measured["actor/pg_clipfrac"] + measured["actor/pg_clipfrac_lower"]
    assert metrics["clip_fraction"].item() == pytest.approx(bounded, abs=1e-6) and bounded > 0


@pytest.mark.parametrize("estimator", ["k1", "k2", "k3", "k3+"])
def test_kl_and_its_gradient(estimator: str) -> None:
    ragged = Ragged(0)
    leaf, mine = (ragged.flat("logprobs").requires_grad_() for _ in range(2))
    verl = core_algos.kl_penalty(leaf, ragged.flat("ref_logprobs"), estimator)
    ours = token_kl(mine, ragged.flat("ref_logprobs"), estimator)
    torch.testing.assert_close(ours, verl, rtol=0, atol=1e-9)
    verl.sum().backward()
    ours.sum().backward()
    torch.testing.assert_close(mine.grad, leaf.grad, rtol=0, atol=1e-9)


@pytest.mark.parametrize("seed", SEEDS)
def test_value_loss(seed: int) -> None:
    ragged = Ragged(seed)
    leaf, mine = ragged.padded["values"].clone().requires_grad_(), ragged.flat("values").requires_grad_()
    old, returns = ragged.padded["values"] + ragged.padded["advantage"] / 5, ragged.padded["factor"]
    verl, fraction = core_algos.compute_value_loss(leaf, returns, old, ragged.mask, 0.2)
    verl.backward()
    inside = ragged.mask.bool()
    weights = torch.full_like(mine.detach(), 1 / len(mine))
    loss, metrics = value_loss(mine, old[inside], returns[inside], weights, 0.2)
    loss.backward()
    assert loss.item() == pytest.approx(verl.item(), rel=1e-9)
    assert metrics["value_clip_fraction"].item() == pytest.approx(fraction.item(), abs=1e-9)
    torch.testing.assert_close(mine.grad, leaf.grad[inside], rtol=0, atol=1e-12)
