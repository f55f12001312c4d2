"""Social-R1 (arXiv 2603.09249): GRPO on multiple-choice social questions, the whole reasoning rewarded.

Step count, learning rate, KL weight and group size are those of the SocialR1-4B model card; batch, mini-batch and
lengths, which it does not give, those of the authors' run script. Where the two disagree the card is followed (the
script has 300 steps, learning rate 1e-6 and a KL weight of 0.001).
"""

from megatron_rl.actor.config import ActorConfig, ModelConfig, OptimizerConfig
from megatron_rl.algorithms.config import AlgorithmConfig
from megatron_rl.config import Config, RunConfig
from megatron_rl.data.config import DataConfig
from megatron_rl.evaluation.config import EvaluationConfig
from megatron_rl.rewards.config import RewardsConfig
from megatron_rl.rollout.config import RolloutConfig
from recipes._machines import on_cpu, on_gpus


def qwen3_4b() -> Config:
    """Social-R1 on Qwen3-4B, 8 x A100-80G; set model.path (its folder) and data.path (questions)."""
    return on_gpus(_card("social_r1_qwen3_4b", "Qwen/Qwen3-4B"), tensor=2, data=4)


def qwen3_8b() -> Config:
    """Social-R1 on Qwen3-8B, 8 x A100-80G; set model.path (its folder) and data.path (questions)."""
    return on_gpus(_card("social_r1_qwen3_8b", "Qwen/Qwen3-8B"), tensor=4, data=2)


def tiny() -> Config:
    """The Social-R1 job on a CPU in minutes; set model.path (tools/make_tiny_model.py) and data.path."""
    config = on_cpu(_card("social_r1_tiny", ""), steps=10)
    config.rollout.prompts_per_step, config.rollout.max_new_tokens = 8, 64
    config.algorithm.minibatches = 2
    return config


def _card(name: str, model: str) -> Config:
    return Config(
        run=RunConfig(name=name, steps=600, save_every=50),
        model=ModelConfig(path=model),
        data=DataConfig(task="multiple_choice", max_prompt_tokens=1024),
        rollout=RolloutConfig(
            prompts_per_step=64,
            group_size=5,
            max_new_tokens=3072,
        ),
        rewards=RewardsConfig(terms={"social_r1": 1.0}, workers=4),
        algorithm=AlgorithmConfig(
            kl_coef=0.04,
            minibatches=4,  # of 16 prompts
            correction="truncated",  # TIS, C = 2: bfloat16 engines and actors differ by a few percent on some tokens
        ),
        actor=ActorConfig(optimizer=OptimizerConfig(lr=5e-7)),
        evaluation=EvaluationConfig(prompts=512),
    )
