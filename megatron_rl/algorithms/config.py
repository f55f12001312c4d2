"""Options of the objective."""

from dataclasses import dataclass, field

from megatron_rl.data.sets.config import SetConfig
from megatron_rl.option import choice, number


@dataclass
class AlgorithmConfig:
    """What is learned from a rollout. Options that are null or auto are the algorithm's own: docs/algorithms.md."""

    name: str = "grpo"  # which algorithm: docs/algorithms.md lists them; or the dotted path of a class of yours
    std: str = choice("sample", "population")  # of a group, or of the batch's tokens: sample (n-1) | population (n)
    std_eps: float = number(1e-6, above=0)  # added to a group's standard deviation
    reward_normalization: str = choice("sum", "each")  # each: a term at a time, then whitened (GDPO); sum: their sum
    gamma: float = number(1.0, least=0, most=1)  # discount of later tokens' rewards (reinforce_pp, ppo)
    gae_lambda: float = number(0.95, least=0, most=1)  # of generalised advantage estimation (ppo)
    surrogate: str = choice("auto", "clip", "gspo", "cispo", "policy_gradient")  # what is made of ratio and advantage
    clip_low: float | None = number(None, least=0, most=1)  # ratio >= 1 - clip_low
    clip_high: float | None = number(None, least=0)  # ratio <= 1 + clip_high
    dual_clip: float = number(0.0, least=0)  # above 1: bounds the loss where the advantage is negative; 0: it does not
    aggregation: str = choice(
        "auto", "token-mean", "seq-mean-token-mean", "seq-mean-token-sum", "seq-mean-token-sum-norm"
    )  # of the tokens' losses
    aggregation_length: int = number(0, least=0)  # seq-mean-token-sum-norm divides by it; 0: rollout.max_new_tokens
    truncated: str = choice("keep", "mask")  # completions that were cut off; mask: nothing is learned of them
    kl_coef: float = number(0.0, least=0)  # weight of the KL term; 0: no reference policy is kept
    kl_coefs: dict[str, float] = field(default_factory=dict)  # data source -> its own kl_coef
    kl_in: str = choice("auto", "loss", "reward")  # reward: subtracted, estimator k1, from each token's reward
    kl_estimator: str = choice("k1", "k2", "k3", "k3+", default="k3")  # in the loss; k3+: k3's value, k2's gradient
    entropy_coef: float = 0.0  # weight of the entropy bonus (added to the objective); of either sign
    hint_coef: float = number(0.0, least=0)  # a hint's token is imitated with so much of the weight of a drawn one
    teacher: str = ""  # distillation: Hugging Face folder of a model with the policy's vocabulary, of any architecture
    minibatches: int = number(1, least=1)  # optimiser steps per pass over the rollout, each on its own prompts
    epochs: int = number(1, least=1)  # passes over the rollout
    correction: str = choice("none", "truncated", "masked")  # engine-actor mismatch: truncated TIS, masked IcePop, MIS
    correction_level: str = choice("token", "sequence", "geometric")  # sequence: product; geometric: mean, masked only
    correction_low: float = number(0.0, least=0, most=1)  # least importance ratio actor / engine
    correction_high: float = number(2.0, least=1)  # largest; level geometric wants both near 1
    bypass: bool = False  # take the engine's log-probs as the old ones: clipping then bounds the mismatch too
    mismatch_limit: float = number(0.1, least=0)  # nats a token of engine_kl_k3, a mean (maxima grow); 0: no limit
    mismatch_action: str = choice("warn", "stop")  # above the limit: warn (at each step) | stop (end the run)
    reference_ema: float = number(
        0.0, least=0, most=0.9999999
    )  # what a step leaves of it, the rest is policy; 0: fixed
    reference_every: int = number(0, least=0)  # the policy becomes the reference after every so many steps; 0: never

    @property
    def moves_reference(self) -> bool:
        """Whether the reference follows the policy."""
        return self.reference_ema > 0 or self.reference_every > 0

    @property
    def uses_reference(self) -> bool:
        """Whether there is a KL to a reference policy."""
        return self.kl_coef > 0 or any(coef > 0 for coef in self.kl_coefs.values())


@dataclass
class SFTConfig:
    """Supervised fine-tuning, before every other stage: on the task's own targets, or on rows of its own."""

    steps: int = number(0, least=0)  # optimiser steps; 0: none
    batch_size: int = number(32, least=1)  # examples per step
    prompt_weight: float = number(0.0, least=0)  # loss weight of prompt tokens (targets weigh 1)
    data: SetConfig = field(default_factory=SetConfig)  # empty path: the task's targets
