"""On-policy distillation (GKD, arXiv 2306.13649; thinkingmachines.ai/blog/on-policy-distillation, tinker-cookbook).

The student draws, and learns from each token's log-prob under the teacher. Prompts a step, rank and rate of the adapter
are those of the cookbook's run for reasoning, which starts from a student that has imitated; four completions a prompt,
lengths and 150 steps are ours.
"""

from megatron_rl.actor.config import ActorConfig, LoRAConfig, ModelConfig, OptimizerConfig
from megatron_rl.algorithms.config import AlgorithmConfig
from megatron_rl.config import Config, RunConfig
from megatron_rl.data.config import DataConfig
from megatron_rl.evaluation.config import EvaluationConfig
from megatron_rl.rewards.config import RewardsConfig
from megatron_rl.rollout.config import RolloutConfig
from recipes._machines import on_cpu, on_gpus
from recipes.quickstart import quickstart


def qwen3_8b() -> Config:
    """Qwen3-8B-Base, warm-started, learns from Qwen3-32B, 8 GPUs; set model.path, algorithm.teacher and data.path."""
    config = Config(
        run=RunConfig(name="distillation_qwen3_8b", steps=150, save_every=25),
        model=ModelConfig(path="Qwen/Qwen3-8B-Base"),
        data=DataConfig(task="math_problems", max_prompt_tokens=1024, bad_rows="drop"),
        rollout=RolloutConfig(prompts_per_step=512, group_size=4, max_new_tokens=4096),
        rewards=RewardsConfig(terms={"math_answer": 1.0}, workers=4),
        algorithm=AlgorithmConfig(name="distillation", teacher="Qwen/Qwen3-32B", correction="truncated"),
        evaluation=EvaluationConfig(prompts=512),
        actor=ActorConfig(optimizer=OptimizerConfig(lr=1e-4)),
    )
    on_gpus(config, tensor=8, data=1)
    config.actor.lora = LoRAConfig(rank=128, alpha=32.0)
    return config


def tiny() -> Config:
    """The quick start's warm start learns from what a whole quick start has made, on a CPU; set algorithm.teacher."""
    config = on_cpu(quickstart(), steps=20)
    config.run.name, config.run.resume = "distillation_tiny", "auto"
    config.algorithm = AlgorithmConfig(name="distillation")
    config.evaluation.prompts = 128
    return config
