"""InfiAlign (arXiv 2508.05496): imitation of selected solutions, then DPO on pairs, from a base model for mathematics.

The abstract gives the order of the stages, the base model and the number of rows; its repository is not there. Rates,
batches, passes and beta are ours: those that are usual for a model of 7 B.
"""

from megatron_rl.actor.config import ActorConfig, ModelConfig, OptimizerConfig
from megatron_rl.algorithms.config import SFTConfig
from megatron_rl.algorithms.pairs.config import PreferenceConfig
from megatron_rl.config import Config, RunConfig
from megatron_rl.data.config import DataConfig
from megatron_rl.data.sets.config import SetConfig
from megatron_rl.evaluation.config import EvaluationConfig
from megatron_rl.rewards.config import RewardsConfig
from recipes._machines import on_gpus, sums_then_preferring_on_cpu

ROWS = 92_000  # to imitate


def qwen2_5_math_7b() -> Config:
    """InfiAlign on Qwen2.5-Math-7B, 8 GPUs; set model.path, sft.data.path (solutions), preference.data.path (pairs)."""
    return on_gpus(_stages("infialign_qwen2_5_math_7b", "Qwen/Qwen2.5-Math-7B"), tensor=4, data=2)


def tiny() -> Config:
    """Both stages on a CPU in two minutes, on generated sums from random weights; nothing to set."""
    return sums_then_preferring_on_cpu(_stages("infialign_tiny", ""))


def _stages(name: str, model: str) -> Config:
    return Config(
        run=RunConfig(name=name, steps=0, save_every=200),
        model=ModelConfig(path=model),
        data=DataConfig(task="math_problems", max_prompt_tokens=1024),
        rewards=RewardsConfig(terms={"math_answer": 1.0}),
        sft=SFTConfig(steps=3 * ROWS // 64, batch_size=64, data=SetConfig(max_tokens=8192, bad_rows="drop")),
        sft_optimizer=OptimizerConfig(lr=1e-5, warmup_steps=100, decay="cosine"),
        preference=PreferenceConfig(
            steps=300, batch_size=64, beta=0.1, data=SetConfig(max_tokens=8192, bad_rows="drop")
        ),
        preference_optimizer=OptimizerConfig(lr=5e-7, warmup_steps=30, decay="cosine"),
        actor=ActorConfig(),
        evaluation=EvaluationConfig(prompts=512),
    )
