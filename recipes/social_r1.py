"""Social-R1 (arXiv 2603.09249): GRPO on multiple-choice social questions, the whole reasoning rewarded.

Step count, learning rate, KL weight and group size are those of the SocialR1-4B model card; batch, mini-batch and
lengths, which it does not give, those of the authors' run script. Where the two disagree the card is followed (the
script has 300 steps, learning rate 1e-6 and a KL weight of 0.001). Structure and content are scored by rules unless
``rewards.args.social_r1`` names a judge and a reward model. ``social_monitors`` has the weight 0: curves alone.
"""

from megatron_rl.actor.config import ActorConfig, ModelConfig, OptimizerConfig
from megatron_rl.algorithms.config import AlgorithmConfig, SFTConfig
from megatron_rl.algorithms.pairs.config import RewardModelConfig
from megatron_rl.config import Config, RunConfig
from megatron_rl.data.config import DataConfig
from megatron_rl.evaluation.config import EvaluationConfig
from megatron_rl.rewards.config import RewardsConfig
from megatron_rl.rollout.config import RolloutConfig
from recipes._machines import SMALL_QWEN3, on_cpu, on_gpus


def qwen3_4b() -> Config:
    """Social-R1 on Qwen3-4B, 8 x A100-80G; set model.path (its folder) and data.path (questions)."""
    return on_gpus(_card("social_r1_qwen3_4b", "Qwen/Qwen3-4B"), tensor=2, data=4)


def qwen3_8b() -> Config:
    """Social-R1 on Qwen3-8B, 8 x A100-80G; set model.path (its folder) and data.path (questions)."""
    return on_gpus(_card("social_r1_qwen3_8b", "Qwen/Qwen3-8B"), tensor=4, data=2)


def baseline_outcome() -> Config:
    """Its baseline: the same GRPO on Qwen3-4B, only form and answer rewarded; set model.path and data.path."""
    config = on_gpus(_card("social_r1_baseline_outcome", "Qwen/Qwen3-4B"), tensor=2, data=4)
    config.rewards.args["social_r1"] = {"variant": "outcome"}
    return config


def baseline_sft() -> Config:
    """Its baseline: imitation on Qwen3-4B; set model.path and data.path (questions with a column target)."""
    config = on_gpus(_card("social_r1_baseline_sft", "Qwen/Qwen3-4B"), tensor=2, data=4)
    config.run.steps = 0
    config.sft = SFTConfig(steps=33, batch_size=64)  # three epochs of 700 questions
    config.sft_optimizer = OptimizerConfig(lr=1e-5, warmup_steps=3, decay="cosine")
    return config


def reward_model() -> Config:
    """The reward model of the content, from Qwen3-4B; set model.path and reward_model.data.path (pairs)."""
    return _pairs(on_gpus(_card("social_r1_reward_model", "Qwen/Qwen3-4B"), tensor=2, data=4), steps=312, lr=1e-5)


def tiny_reward_model() -> Config:
    """The same on a CPU; set model.path (tools/make_tiny_model.py) and reward_model.data.path (pairs)."""
    return _pairs(on_cpu(_card("social_r1_tiny_reward_model", "")), steps=60, lr=1e-3)


def tiny() -> Config:
    """The Social-R1 job on a CPU in three minutes: generated situations, from random weights; nothing to set."""
    config = on_cpu(_card("social_r1_tiny", ""))
    config.model = ModelConfig(architecture=SMALL_QWEN3 | {"vocab_size": 144}, dtype="float32")
    config.data = DataConfig(task="staged_situations", max_prompt_tokens=32)
    config.rollout.prompts_per_step, config.rollout.max_new_tokens = 24, 112
    config.algorithm.minibatches = 2
    config.actor.optimizer = OptimizerConfig(lr=2e-4, beta2=0.95, warmup_steps=3)
    config.sft = SFTConfig(steps=600, batch_size=24, prompt_weight=0.1)
    config.sft_optimizer = OptimizerConfig(
        lr=3e-3, beta2=0.95, weight_decay=0.1, warmup_steps=20, decay="cosine", min_lr_ratio=0.1
    )
    config.evaluation = EvaluationConfig(prompts=128)
    return config


def tiny_rows() -> Config:
    """The same job on questions of a file; set model.path (tools/make_tiny_model.py) and data.path."""
    config = on_cpu(_card("social_r1_tiny_rows", ""))
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
        rewards=RewardsConfig(terms={"social_r1": 1.0, "social_monitors": 0.0}, workers=4),
        algorithm=AlgorithmConfig(
            kl_coef=0.04,
            minibatches=4,  # of 16 prompts
            correction="truncated",  # TIS, C = 2: bfloat16 engines and actors differ by a few percent on some tokens
        ),
        actor=ActorConfig(optimizer=OptimizerConfig(lr=5e-7)),
        evaluation=EvaluationConfig(prompts=512),
    )


def _pairs(config: Config, steps: int, lr: float) -> Config:
    """The run of a reward model alone: one epoch of 20,000 pairs is 312 steps."""
    config.run.steps = 0
    config.reward_model = RewardModelConfig(steps=steps, batch_size=64 if config.rollout.engine == "sglang" else 16)
    config.reward_model_optimizer = OptimizerConfig(lr=lr, warmup_steps=steps // 10, decay="cosine")
    return config
