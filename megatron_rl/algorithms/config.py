"""Options of the objective."""

from dataclasses import dataclass


@dataclass
class AlgorithmConfig:
    """GRPO: group-normalised advantages, PPO clipping, KL to the reference policy in the loss."""

    advantage: str = "grpo"  # grpo: (r - mean) / (std + eps) inside each group
    std: str = "sample"  # sample (n-1) | population (n)
    std_eps: float = 1e-6  # added to the standard deviation
    clip_low: float = 0.2  # ratio >= 1 - clip_low
    clip_high: float = 0.2  # ratio <= 1 + clip_high
    aggregation: str = "token-mean"  # token-mean | seq-mean-token-mean
    kl_coef: float = 0.0  # weight of the KL term; 0: no reference policy is kept
    kl_estimator: str = "k3"  # k1 | k2 | k3
    entropy_coef: float = 0.0  # weight of the entropy bonus (added to the objective)
    minibatches: int = 1  # optimiser steps per pass over the rollout, each on its own prompts
    epochs: int = 1  # passes over the rollout
    correction: str = "none"  # engine-actor mismatch: none | truncated (TIS) | masked (IcePop, MIS: 0 beyond bounds)
    correction_level: str = "token"  # token | sequence (product) | geometric (mean; masked only: seq-mask-tis)
    correction_low: float = 0.0  # least importance ratio actor / engine
    correction_high: float = 2.0  # largest; level geometric wants both near 1
    bypass: bool = False  # take the engine's log-probs as the old ones: clipping then bounds the mismatch too
    mismatch_limit: float = 0.1  # nats a token of engine_kl_k3, a mean: maxima grow with the batch; 0: no limit
    mismatch_action: str = "warn"  # above the limit: warn (at each step) | stop (end the run)


@dataclass
class SFTConfig:
    """Supervised warm start on the task's own targets, before the first RL step."""

    steps: int = 0  # optimiser steps; 0: none
    batch_size: int = 32  # examples per step
    prompt_weight: float = 0.0  # loss weight of prompt tokens (targets weigh 1)
