import dataclasses
import math

import numpy as np
import pytest
import torch

from megatron_rl.algorithms.config import AlgorithmConfig
from megatron_rl.algorithms.published import settled
from megatron_rl.algorithms.terms.advantages import group_advantages
from megatron_rl.algorithms.terms.aggregation import token_weights
from megatron_rl.algorithms.terms.kl import token_kl
from megatron_rl.algorithms.terms.objectives import policy_loss, sft_loss


def options(**given) -> AlgorithmConfig:
    return settled(AlgorithmConfig(**given))


def random_batch(seed: int, tokens: int = 40) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)

    def normal() -> torch.Tensor:
        return torch.randn(tokens, generator=generator, dtype=torch.float64)

    logprobs = -normal().abs()
    return {
        "logprobs": logprobs,
        "old_logprobs": logprobs + 0.4 * normal(),
        "advantages": normal(),
        "weights": torch.rand(tokens, generator=generator, dtype=torch.float64) / tokens,
        "ref_logprobs": logprobs + 0.4 * normal(),
        "entropy": normal().abs(),
    }


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "clipped"),
    [(1.5, 1, -1.28, 1), (1.5, -1, 1.5, 0), (0.5, 1, -0.5, 0), (0.5, -1, 0.8, 1), (4.0, -1, 4.0, 0), (1.0, 1, -1, 0)],
)
def test_clip_higher_known_values(ratio: float, advantage: float, loss: float, clipped: float) -> None:
    old = torch.tensor([-2.0], dtype=torch.float64)
    value, metrics = policy_loss(
        old + math.log(ratio),
        old,
        torch.tensor([advantage], dtype=torch.float64),
        torch.ones(1, dtype=torch.float64),
        options(clip_low=0.2, clip_high=0.28),
    )
    assert value.item() == pytest.approx(loss, abs=1e-12)
    assert metrics["clip_fraction"].item() == clipped
    assert metrics["ratio"].item() == pytest.approx(ratio, abs=1e-12)


def one(surrogate: str, ratio: float, advantage: float, logprob: float = -0.5, **more) -> tuple[float, float, float]:
    """Loss, its gradient by the log-prob, and the clip fraction of a single token."""
    new = torch.tensor([logprob], dtype=torch.float64, requires_grad=True)
    ones = torch.ones(1, dtype=torch.float64)
    config = options(surrogate=surrogate, **more)
    loss, metrics = policy_loss(
        new, new.detach() - math.log(ratio), advantage * ones, ones, config, sequence_sum=lambda values: values
    )
    loss.backward()
    assert new.grad is not None
    return loss.item(), new.grad.item(), metrics["clip_fraction"].item()


def test_other_surrogates_known_values() -> None:
    clip = dict(clip_low=0.2, clip_high=0.28)
    assert one("clip", 4.0, -1.0, dual_clip=3.0, **clip) == pytest.approx((3.0, 0.0, 1.0))
    assert one("clip", 2.0, -1.0, dual_clip=3.0, **clip) == pytest.approx((2.0, 2.0, 0.0))
    assert one("clip", 0.5, -1.0, dual_clip=3.0, **clip) == pytest.approx((0.8, 0.0, 1.0))  # the other bound stays
    assert one("clip", 1.5, 1.0, dual_clip=3.0, **clip) == pytest.approx((-1.28, 0.0, 1.0))
    # -clip(r) A log p, whose gradient is -clip(r) A
    assert one("cispo", 3.0, 1.0, **clip) == pytest.approx((0.64, -1.28, 1.0))
    assert one("cispo", 0.5, -1.0, clip_low=1.0, clip_high=4.0) == pytest.approx((-0.25, 0.5, 0.0))
    assert one("policy_gradient", 3.0, 2.0) == pytest.approx((1.0, -2.0, 0.0))


@pytest.mark.parametrize(("advantage", "loss", "gradient"), [(1.0, -1.0004, 0.0), (-1.0, 1.105171, 1.105171)])
def test_gspo_has_one_ratio_for_a_sequence(advantage: float, loss: float, gradient: float) -> None:
    """Log-ratios .1, -.1, .3: s = exp(.1); the sequence's gradient goes evenly through its tokens."""
    d = torch.tensor([0.1, -0.1, 0.3], dtype=torch.float64)
    new = torch.tensor([-0.5, -1.0, -0.2], dtype=torch.float64, requires_grad=True)
    ones = torch.ones(3, dtype=torch.float64)
    config = options(name="gspo")
    value, metrics = policy_loss(
        new, new.detach() - d, advantage * ones, ones / 3, config, sequence_sum=lambda v: v.sum().expand(3)
    )
    value.backward()
    assert value.item() == pytest.approx(loss, abs=1e-6)
    assert new.grad is not None and new.grad.tolist() == pytest.approx([gradient / 3] * 3, abs=1e-6)
    assert metrics["ratio"].item() == pytest.approx(1.105171, abs=1e-6)


@pytest.mark.parametrize("name", ["grpo", "gspo", "cispo"])
def test_on_policy_all_surrogates_have_the_gradient_of_reinforce(name: str) -> None:
    batch = random_batch(5)
    new = batch["logprobs"].requires_grad_()
    config = options(name=name, clip_low=0.2, clip_high=0.2)
    loss, metrics = policy_loss(
        new,
        new.detach(),
        batch["advantages"],
        batch["weights"],
        config,
        sequence_sum=lambda v: v.view(4, 10).sum(1).repeat_interleave(10),
    )
    loss.backward()
    assert new.grad is not None and torch.allclose(new.grad, -batch["weights"] * batch["advantages"], atol=1e-15)
    assert metrics["clip_fraction"].item() == 0


@pytest.mark.parametrize("name", ["grpo", "dapo", "cispo", "ppo"])
@pytest.mark.parametrize("estimator", ["k1", "k2", "k3"])
def test_gradients_equal_finite_differences(name: str, estimator: str) -> None:
    """In float64, away from the kinks. CISPO's ratio is a constant of its loss: there the old log-probs move along."""
    config = options(name=name, kl_coef=0.3, kl_in="loss", kl_estimator=estimator, entropy_coef=-0.01, dual_clip=3.0)
    config = dataclasses.replace(config, dual_clip=0.0) if name == "cispo" else config
    batch = random_batch(6)
    new = batch.pop("logprobs")

    def value(logprobs: torch.Tensor) -> torch.Tensor:
        old = batch["old_logprobs"] + (logprobs - new).detach() if name == "cispo" else batch["old_logprobs"]
        return policy_loss(logprobs, **batch | {"old_logprobs": old}, config=config)[0]

    leaf = new.clone().requires_grad_()
    value(leaf).backward()
    assert leaf.grad is not None
    for i in range(len(new)):
        step = torch.zeros_like(new)
        step[i] = 1e-6
        slope = (value(new + step) - value(new - step)) / 2e-6
        assert leaf.grad[i].item() == pytest.approx(slope.item(), abs=1e-8)


def test_sums_are_reported_as_means() -> None:
    """With weights that are no means, metrics are averaged by share; the loss is what the weights say."""
    batch = random_batch(7)
    share = torch.full((40,), 1 / 40, dtype=torch.float64)
    loss, metrics = policy_loss(**batch | {"weights": torch.ones(40)}, config=options(kl_coef=0.1), share=share)
    alike, expected = policy_loss(**batch | {"weights": share}, config=options(kl_coef=0.1))
    assert loss.item() == pytest.approx(40 * alike.item())
    for name in ("ratio", "clip_fraction", "kl", "entropy"):
        assert metrics[name].item() == pytest.approx(expected[name].item())
    assert metrics["policy_loss"].item() == pytest.approx(40 * expected["policy_loss"].item())


def test_loss_and_gradient_match_the_formula_written_token_by_token() -> None:
    config = options(clip_low=0.2, clip_high=0.28, kl_coef=0.3, kl_estimator="k3", entropy_coef=0.05)
    batch = random_batch(0)
    logprobs = batch["logprobs"].requires_grad_()
    entropy = batch["entropy"].requires_grad_()
    loss, metrics = policy_loss(**batch, config=config)
    loss.backward()
    assert logprobs.grad is not None and entropy.grad is not None

    expected, clipped, gradient = 0.0, 0.0, []
    columns = ("logprobs", "old_logprobs", "advantages", "weights", "ref_logprobs", "entropy")
    for new, old, advantage, weight, ref, h in zip(*(batch[name].tolist() for name in columns), strict=True):
        r, d = math.exp(new - old), new - ref
        bounded = min(max(r, 0.8), 1.28)
        surrogate = min(r * advantage, bounded * advantage)
        expected += weight * (-surrogate + 0.3 * (math.exp(-d) - 1 + d) - 0.05 * h)
        is_clipped = bounded * advantage < r * advantage
        clipped += weight * is_clipped
        gradient.append(weight * ((0.0 if is_clipped else -advantage * r) + 0.3 * (1 - math.exp(-d))))
    assert clipped > 0
    assert loss.item() == pytest.approx(expected, abs=1e-12)
    assert metrics["clip_fraction"].item() == pytest.approx(clipped, abs=1e-12)
    assert logprobs.grad.tolist() == pytest.approx(gradient, abs=1e-12)
    assert entropy.grad.tolist() == pytest.approx((-0.05 * batch["weights"]).tolist(), abs=1e-12)


def test_the_loss_is_the_sum_of_its_reported_terms() -> None:
    batch = random_batch(1)
    config = options(kl_coef=0.04, entropy_coef=-0.001)
    loss, metrics = policy_loss(**batch, config=config)
    total = metrics["policy_loss"] + 0.04 * metrics["kl"] + 0.001 * metrics["entropy"]
    assert loss.item() == pytest.approx(total.item(), abs=1e-12)
    assert metrics["loss"].item() == loss.item()
    assert metrics["kl"].item() == pytest.approx(
        (batch["weights"] * token_kl(batch["logprobs"], batch["ref_logprobs"], "k3")).sum().item(), abs=1e-12
    )
    assert not any(metric.requires_grad for metric in metrics.values())


def test_loss_gradient_and_metrics_add_up_over_micro_batches() -> None:
    batch = random_batch(2)
    config = options(kl_coef=0.04, entropy_coef=0.01)
    whole_logprobs = batch["logprobs"].clone().requires_grad_()
    whole, metrics = policy_loss(**{**batch, "logprobs": whole_logprobs}, config=config)
    whole.backward()

    parts_logprobs = batch["logprobs"].clone().requires_grad_()
    total, totals = 0.0, dict.fromkeys(metrics, 0.0)
    for rows in torch.randperm(40, generator=torch.Generator().manual_seed(3)).split([1, 7, 0, 20, 12]):
        part = {name: column[rows] for name, column in {**batch, "logprobs": parts_logprobs}.items()}
        loss, part_metrics = policy_loss(**part, config=config)
        loss.backward()
        total += loss.item()
        totals = {name: totals[name] + part_metrics[name].item() for name in totals}
    assert total == pytest.approx(whole.item(), abs=1e-12)
    assert totals == pytest.approx({name: metric.item() for name, metric in metrics.items()}, abs=1e-12)
    assert parts_logprobs.grad is not None and whole_logprobs.grad is not None
    assert torch.allclose(parts_logprobs.grad, whole_logprobs.grad, atol=1e-15)


def test_on_policy_is_the_policy_gradient() -> None:
    batch = random_batch(4)
    logprobs = batch["logprobs"].requires_grad_()
    loss, metrics = policy_loss(logprobs, logprobs.detach(), batch["advantages"], batch["weights"], options())
    loss.backward()
    assert metrics["ratio"].item() == pytest.approx(batch["weights"].sum().item(), abs=1e-15)
    assert metrics["clip_fraction"].item() == 0
    assert logprobs.grad is not None
    assert torch.allclose(logprobs.grad, -batch["weights"] * batch["advantages"], atol=1e-15)
    assert "kl" not in metrics and "entropy" not in metrics


def test_gradient_ascent_on_a_bandit_finds_the_rewarded_arm() -> None:
    logits = torch.zeros(4, requires_grad=True)
    optimizer = torch.optim.SGD([logits], lr=2.0)
    generator = torch.Generator().manual_seed(0)
    weights = torch.from_numpy(token_weights([1] * 32, "token-mean")).float()
    for _ in range(15):
        arms = torch.multinomial(logits.softmax(0), 32, replacement=True, generator=generator)
        rewards = (arms == 2).double().numpy().reshape(4, 8)
        advantages = torch.from_numpy(group_advantages(rewards)).float().flatten()
        old = logits.log_softmax(0)[arms].detach()
        for _ in range(2):
            loss, _ = policy_loss(logits.log_softmax(0)[arms], old, advantages, weights, options())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    assert logits.softmax(0)[2].item() > 0.95


def test_a_token_without_weight_changes_nothing_however_far_its_ratio() -> None:
    logprobs = torch.tensor([-1.0, -1.0], requires_grad=True)
    loss, metrics = policy_loss(
        logprobs,
        torch.tensor([-1.0, -1e4]),
        torch.tensor([1.0, 1.0]),
        torch.tensor([1.0, 0.0]),
        options(kl_coef=0.1),
        ref_logprobs=torch.tensor([-1.0, -1e4]),
    )
    loss.backward()
    assert loss.item() == -1.0
    assert metrics["kl"].item() == 0.0
    assert logprobs.grad is not None and logprobs.grad.tolist() == [-1.0, 0.0]


def test_what_is_only_reported_has_no_gradient() -> None:
    logprobs = torch.zeros(2, requires_grad=True)
    entropy = torch.ones(2, requires_grad=True)
    old, ones, config = torch.zeros(2), torch.ones(2), options()
    loss, metrics = policy_loss(logprobs, old, ones, ones / 2, config, ref_logprobs=-ones, entropy=entropy)
    loss.backward()
    assert entropy.grad is None
    assert logprobs.grad is not None and logprobs.grad.tolist() == [-0.5, -0.5]
    assert metrics["entropy"].item() == 1.0
    assert metrics["kl"].item() == pytest.approx(0.36787944)


def test_a_coefficient_without_its_input_is_refused() -> None:
    zeros = torch.zeros(2)
    with pytest.raises(ValueError, match="reference log-probs"):
        policy_loss(zeros, zeros, zeros, zeros, options(kl_coef=0.1))
    with pytest.raises(ValueError, match="entropy"):
        policy_loss(zeros, zeros, zeros, zeros, options(entropy_coef=0.1))


def test_sft_loss_is_the_cross_entropy() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(6, 11, generator=generator, requires_grad=True)
    targets = torch.tensor([1, 4, 10, 0, 3, 3])
    weights = torch.from_numpy(token_weights([4, 2], "token-mean").repeat([4, 2])).float()
    loss, metrics = sft_loss(logits.log_softmax(-1)[torch.arange(6), targets], weights)
    expected = torch.nn.functional.cross_entropy(logits, targets)
    assert loss.item() == pytest.approx(expected.item(), abs=1e-6)
    assert metrics["loss"].item() == loss.item()
    assert np.allclose(
        torch.autograd.grad(loss, logits)[0].numpy(), torch.autograd.grad(expected, logits)[0].numpy(), atol=1e-7
    )
