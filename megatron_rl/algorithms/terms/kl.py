"""Estimators of KL(policy || reference) on tokens sampled from the policy (http://joschu.net/blog/kl-approx.html)."""

import torch

ESTIMATORS = ("k1", "k2", "k3", "k3+")


def token_kl(logprobs: torch.Tensor, ref_logprobs: torch.Tensor, estimator: str) -> torch.Tensor:
    """Per-token KL estimate, same shape and dtype as ``logprobs``; with d = logprobs - ref_logprobs:

    k1 = d: unbiased, high variance, can be negative. k2 = d^2 / 2: biased, never negative; on-policy its gradient
    is that of the KL. k3 = exp(-d) - 1 + d: unbiased, low variance, never negative. As verl's core_algos does, k3
    clamps d to +-20 and its value to 10, so a token beyond either bound has no KL gradient. k3+ has k3's value and
    k2's gradient, which the expected gradient of k3 is not.
    """
    if estimator == "k3+":
        k2 = token_kl(logprobs, ref_logprobs, "k2")
        return k2 - k2.detach() + token_kl(logprobs, ref_logprobs, "k3").detach()
    d = logprobs - ref_logprobs
    if estimator == "k1":
        return d
    if estimator == "k2":
        return d.square() / 2
    if estimator == "k3":
        d = d.clamp(-20.0, 20.0)
        # expm1 keeps the digits that exp(-d) - 1 loses near 0; rounding may leave -1 ulp, hence the lower bound.
        return (torch.expm1(-d) + d).clamp(0.0, 10.0)
    raise ValueError(f"the KL estimator is {estimator!r}; it must be one of {', '.join(ESTIMATORS)}")
