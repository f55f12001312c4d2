"""SuperCorrect (arXiv 2410.09008): imitation of a teacher's hierarchical thoughts, then DPO on its corrections.

A row to imitate has a target of steps with their key points, a generalised form and the answer (``TARGET``). A row to
compare goes on from the student's steps before its first wrong one (``prefix``): chosen is the teacher's correction,
rejected the student's own step. The teacher's texts are data, made elsewhere. Rates, batches and passes are ours.
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

TARGET = "<Step> {step} <Key> {key} </Key> </Step> <Generalized> {general} </Generalized> <Answer> {answer} </Answer>"
ROWS, PAIRS = 100_000, 10_000


def qwen2_5_math_7b() -> Config:
    """SuperCorrect on Qwen2.5-Math-7B-Instruct, 8 GPUs; set model.path, sft.data.path and preference.data.path."""
    return on_gpus(_stages("supercorrect_qwen2_5_math_7b", "Qwen/Qwen2.5-Math-7B-Instruct"), tensor=4, data=2)


def tiny() -> Config:
    """Both stages on a CPU in two minutes, on generated sums from random weights; nothing to set."""
    config = sums_then_preferring_on_cpu(_stages("supercorrect_tiny", ""))
    config.data.sums.compare = "steps"
    return config


def _stages(name: str, model: str) -> Config:
    return Config(
        run=RunConfig(name=name, steps=0, save_every=200),
        model=ModelConfig(path=model),
        data=DataConfig(task="math_problems", max_prompt_tokens=1024),
        rewards=RewardsConfig(terms={"math_answer": 1.0}),
        sft=SFTConfig(steps=3 * ROWS // 64, batch_size=64, data=SetConfig(max_tokens=4096, bad_rows="drop")),
        sft_optimizer=OptimizerConfig(lr=1e-5, warmup_steps=100, decay="cosine"),
        preference=PreferenceConfig(
            steps=3 * PAIRS // 64, batch_size=64, beta=0.1, data=SetConfig(max_tokens=4096, bad_rows="drop")
        ),
        preference_optimizer=OptimizerConfig(lr=1e-6, warmup_steps=30, decay="cosine"),
        actor=ActorConfig(),
        evaluation=EvaluationConfig(prompts=512),
    )
