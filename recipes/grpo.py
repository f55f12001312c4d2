"""GRPO on prompts and answers of your own, of no paper: usual settings, to be changed by options.

Rows are those of ``data.task=prompt_answer`` (or ``multiple_choice``, where options are compared by their letter); the
reward is 1 for the right answer, as a box, an ``<answer>`` or the last number gives it.
"""

from megatron_rl.actor.config import ActorConfig, ModelConfig, OptimizerConfig
from megatron_rl.algorithms.config import AlgorithmConfig
from megatron_rl.config import Config, RunConfig
from megatron_rl.data.config import DataConfig
from megatron_rl.evaluation.config import EvaluationConfig
from megatron_rl.rewards.config import RewardsConfig
from megatron_rl.rollout.config import RolloutConfig
from recipes._machines import on_cpu, on_gpus


def gpus() -> Config:
    """GRPO on prompts and answers of yours, 8 GPUs of one machine; set model.path and data.path."""
    return on_gpus(_usual("grpo"), tensor=1, data=8)


def tiny() -> Config:
    """The same on a CPU, to try rows and rewards out; set model.path (tools/make_tiny_model.py) and data.path."""
    config = on_cpu(_usual("grpo_tiny"))
    config.actor.optimizer = OptimizerConfig(lr=1e-4, beta2=0.95, warmup_steps=2)
    config.sft_optimizer = OptimizerConfig(  # of a warm start, which random weights need
        lr=3e-3, beta2=0.95, weight_decay=0.1, warmup_steps=20, decay="cosine", min_lr_ratio=0.1
    )
    config.rollout.prompts_per_step, config.rollout.max_new_tokens = 8, 64
    return config


def _usual(name: str) -> Config:
    return Config(
        run=RunConfig(name=name, steps=200, save_every=20),
        model=ModelConfig(path=""),
        data=DataConfig(task="prompt_answer", max_prompt_tokens=1024),
        rollout=RolloutConfig(prompts_per_step=64, group_size=8, max_new_tokens=2048),
        rewards=RewardsConfig(terms={"exact_answer": 1.0}, workers=4),
        algorithm=AlgorithmConfig(
            minibatches=2,  # of 32 prompts
            correction="truncated",  # TIS, C = 2: bfloat16 engines and actors differ by a few percent on some tokens
        ),
        actor=ActorConfig(optimizer=OptimizerConfig(lr=1e-6)),
        evaluation=EvaluationConfig(prompts=256),
    )
