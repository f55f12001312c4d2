"""Options of the objective."""

from dataclasses import dataclass, field

from megatron_rl.data.sets.config import SetConfig
from megatron_rl.option import choice, number


@dataclass
class AlgorithmConfig:
    """GRPO: group-normalised advantages, PPO clipping, KL to the reference policy in the loss."""

    advantage: str = choice("grpo")  # grpo: (r - mean) / (std + eps) inside each group
    std: str = choice("sample", "population")  # sample (n-1) | population (n)
    std_eps: float = number(1e-6, above=0)  # added to the standard deviation
    clip_low: float = number(0.2, least=0, most=1)  # ratio >= 1 - clip_low
    clip_high: float = number(0.2, least=0)  # ratio <= 1 + clip_high
    aggregation: str = choice("token-mean", "seq-mean-token-mean")  # of the tokens' losses
    kl_coef: float = number(0.0, least=0)  # weight of the KL term; 0: no reference policy is kept
    kl_estimator: str = choice("k1", "k2", "k3", default="k3")  # of the KL term, a token
    entropy_coef: float = 0.0  # weight of the entropy bonus (added to the objective)
    minibatches: int = number(1, least=1)  # optimiser steps per pass over the rollout, each on its own prompts
    epochs: int = number(1, least=1)  # passes over the rollout
    correction: str = choice("none", "truncated", "masked")  # engine-actor mismatch: truncated TIS, masked IcePop, MIS
    correction_level: str = choice("token", "sequence", "geometric")  # sequence: product; geometric: mean, masked only
    correction_low: float = number(0.0, least=0, most=1)  # least importance ratio actor / engine
    correction_high: float = number(2.0, least=1)  # largest; level geometric wants both near 1
    bypass: bool = False  # take the engine's log-probs as the old ones: clipping then bounds the mismatch too
    mismatch_limit: float = number(0.1, least=0)  # nats a token of engine_kl_k3, a mean (maxima grow); 0: no limit
    mismatch_action: str = choice("warn", "stop")  # above the limit: warn (at each step) | stop (end the run)


@dataclass
class SFTConfig:
    """Supervised fine-tuning, before every other stage: on the task's own targets, or on rows of its own."""

    steps: int = number(0, least=0)  # optimiser steps; 0: none
    batch_size: int = number(32, least=1)  # examples per step
    prompt_weight: float = number(0.0, least=0)  # loss weight of prompt tokens (targets weigh 1)
    data: SetConfig = field(default_factory=SetConfig)  # empty path: the task's targets
