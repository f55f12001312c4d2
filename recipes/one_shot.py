"""1-shot RLVR (Wang et al. 2025, arXiv 2504.20571): GRPO on one example, repeated to the batch.

Settings are the paper's. Its entropy *loss* has the coefficient -0.001, which is a bonus of +0.001 here.
"""

from megatron_rl.actor.config import ActorConfig, ModelConfig, OptimizerConfig
from megatron_rl.algorithms.config import AlgorithmConfig, SFTConfig
from megatron_rl.config import Config, RunConfig
from megatron_rl.data.config import DataConfig
from megatron_rl.evaluation.config import EvaluationConfig
from megatron_rl.rewards.config import RewardsConfig
from megatron_rl.rollout.config import RolloutConfig
from recipes._machines import SMALL_QWEN3, on_cpu, on_gpus


def qwen2_5_math_1_5b() -> Config:
    """1-shot RLVR on Qwen2.5-Math-1.5B, 8 GPUs; set model.path, data.path and the accuracies to rank by."""
    return on_gpus(_published("one_shot_qwen2_5_math_1_5b", "Qwen/Qwen2.5-Math-1.5B"), tensor=1, data=8)


def tiny() -> Config:
    """One sum teaches a small model to work sums out instead of guessing: on a CPU in two minutes, nothing to set."""
    config = on_cpu(_published("one_shot_tiny", ""))
    config.model = ModelConfig(architecture=SMALL_QWEN3 | {"vocab_size": 40}, dtype="float32")
    config.data = DataConfig(task="stepwise_sums", max_prompt_tokens=8, repeat_to_batch=1)
    config.rewards = RewardsConfig(terms={"exact_answer": 1.0}, args={"exact_answer": {"form": "boxed"}}, workers=1)
    config.rollout.prompts_per_step, config.rollout.max_new_tokens, config.rollout.temperature = 16, 24, 1.0
    config.actor.optimizer = OptimizerConfig(lr=5e-5, beta2=0.95, warmup_steps=5)
    config.sft = SFTConfig(steps=600, batch_size=64)
    config.sft_optimizer = OptimizerConfig(
        lr=3e-3, beta2=0.95, weight_decay=0.1, warmup_steps=20, decay="cosine", min_lr_ratio=0.1
    )
    config.evaluation = EvaluationConfig(prompts=256)
    return config


def tiny16() -> Config:
    """The same with sixteen sums."""
    config = tiny()
    config.run.name, config.data.repeat_to_batch = "one_shot_tiny16", 16
    return config


def _published(name: str, model: str) -> Config:
    return Config(
        run=RunConfig(name=name, steps=2000, save_every=100),
        model=ModelConfig(path=model),
        data=DataConfig(
            task="prompt_answer", prompt="auto", max_prompt_tokens=1024, bad_rows="drop", repeat_to_batch=1
        ),
        rollout=RolloutConfig(prompts_per_step=128, group_size=8, max_new_tokens=3072, temperature=0.6),
        rewards=RewardsConfig(terms={"math_answer": 1.0}, workers=4),
        algorithm=AlgorithmConfig(
            kl_coef=0.001,
            entropy_coef=0.001,
            minibatches=8,  # of 128 completions: 8 updates of a rollout
            correction="truncated",  # TIS, C = 2: bfloat16 engines and actors differ by a few percent on some tokens
        ),
        actor=ActorConfig(optimizer=OptimizerConfig(lr=1e-6, weight_decay=0.01)),
        evaluation=EvaluationConfig(prompts=500),
    )
