"""The whole loop in minutes on a laptop: a small Qwen3 learns to see through false beliefs."""

from megatron_rl.actor.config import ActorConfig, ModelConfig, OptimizerConfig
from megatron_rl.algorithms.config import AlgorithmConfig, SFTConfig
from megatron_rl.config import Config, RunConfig
from megatron_rl.data.config import DataConfig
from megatron_rl.evaluation.config import EvaluationConfig
from megatron_rl.rewards.config import RewardsConfig
from megatron_rl.rollout.config import EmbeddedConfig, RolloutConfig
from megatron_rl.system import machine
from recipes._machines import SMALL_QWEN3

QWEN3_454K = SMALL_QWEN3 | {  # 453,696 parameters
    "vocab_size": 80,  # 77 words, rounded up
    "max_position_embeddings": 128,
}


def quickstart() -> Config:
    """Sally-Anne false belief, generated: warm start and GRPO from random weights in minutes, 2 CPU ranks."""
    return Config(
        run=RunConfig(name="quickstart", steps=40, resume="never"),
        model=ModelConfig(architecture=dict(QWEN3_454K), dtype="float32"),
        data=DataConfig(task="false_belief", max_prompt_tokens=38),
        rollout=RolloutConfig(
            prompts_per_step=16,
            group_size=8,
            max_new_tokens=48,
            embedded=EmbeddedConfig(true_on_policy=not machine.gpus()),
        ),
        rewards=RewardsConfig(terms={"answer_in_format": 1.0, "format": 0.2}, workers=1),
        algorithm=AlgorithmConfig(kl_coef=0.04, epochs=2),
        actor=ActorConfig(
            tensor_parallel=min(2, len(machine.gpus()) or 2),
            optimizer=OptimizerConfig(
                lr=3e-4, beta2=0.95, clip_grad=1.0, warmup_steps=5, decay="linear", min_lr_ratio=0.1
            ),
        ),
        sft=SFTConfig(steps=600, batch_size=32, prompt_weight=0.1),
        sft_optimizer=OptimizerConfig(
            lr=3e-3, beta2=0.95, weight_decay=0.1, clip_grad=1.0, warmup_steps=20, decay="cosine", min_lr_ratio=0.1
        ),
        evaluation=EvaluationConfig(every=10, prompts=256),
    )
