"""Temporal Clue (OpenPipe, "Using GRPO to beat o1, o3-mini and R1 at Temporal Clue", 2025): GRPO on deduction puzzles
with one clear answer to each question, rewarded by the share of right answers.

Settings are those of github.com/OpenPipe/deductive-reasoning; docs/recipes/temporal_clue.md says what differs.
"""

from megatron_rl.actor.config import ActorConfig, ModelConfig, OptimizerConfig
from megatron_rl.algorithms.config import AlgorithmConfig, SFTConfig
from megatron_rl.config import Config, RunConfig
from megatron_rl.data.config import CurriculumConfig, DataConfig, PuzzlesConfig
from megatron_rl.evaluation.config import EvaluationConfig
from megatron_rl.rewards.config import RewardsConfig
from megatron_rl.rollout.config import RolloutConfig
from recipes._machines import SMALL_QWEN3, on_cpu, on_gpus


def qwen2_5_14b() -> Config:
    """Temporal Clue on Qwen2.5-14B-Instruct, 4 x H100; on two files that data generate writes."""
    return _on_gpus(_published("temporal_clue_14b", "Qwen/Qwen2.5-14B-Instruct"), tensor=4, data=1)


def qwen2_5_14b_node() -> Config:
    """Temporal Clue on Qwen2.5-14B-Instruct, a node of 8 x H100; set model.path."""
    return _on_gpus(_published("temporal_clue_14b_node", "Qwen/Qwen2.5-14B-Instruct"), tensor=4, data=2)


def qwen2_5_32b() -> Config:
    """Temporal Clue on Qwen2.5-32B-Instruct, a node of 8 x H100; set model.path."""
    return _on_gpus(_published("temporal_clue_32b", "Qwen/Qwen2.5-32B-Instruct"), tensor=8, data=1)


def strictly_on_policy() -> Config:
    """The 14B job with one update per batch, of many micro-batches: the ratio to the old policy is 1."""
    config = qwen2_5_14b_node()
    config.run.name = "temporal_clue_on_policy"
    config.algorithm.minibatches, config.algorithm.bypass = 1, False
    return config


def sixteen_puzzles() -> Config:
    """The 14B job on the first 16 puzzles alone, all of them at every step."""
    config = qwen2_5_14b()
    config.run.name = "temporal_clue_16"
    config.rollout.prompts_per_step, config.algorithm.minibatches = 16, 16
    config.data.repeat_to_batch, config.data.shuffle = 16, False
    return config


def easy_to_hard() -> Config:
    """The 14B job from puzzles with few clues to all of them, over the first half of its steps."""
    config = qwen2_5_14b_node()
    config.run.name = "temporal_clue_curriculum"
    config.data.curriculum = CurriculumConfig(by="column", column="num_clues", start=0.2, until=0.5)
    return config


def tiny() -> Config:
    """Small puzzles on a CPU in minutes, from random weights: a warm start with a mistake in it, then GRPO."""
    config = on_cpu(_published("temporal_clue_tiny", ""))
    config.run.resume = "never"
    config.model = ModelConfig(architecture=SMALL_QWEN3 | {"vocab_size": 216}, dtype="float32")  # 213 words
    sizes = PuzzlesConfig(
        suspects="2", weapons="2", rooms="2", motives="0", questions=3, clues=["whereabouts"], names=2, style="short"
    )
    config.data = DataConfig(task="temporal_clue", max_prompt_tokens=128, puzzles=sizes)
    config.rollout.prompts_per_step, config.rollout.group_size, config.rollout.max_new_tokens = 32, 8, 48
    config.algorithm.minibatches = 2
    config.actor.optimizer = OptimizerConfig(lr=4e-4, beta2=0.99, weight_decay=0.1, warmup_steps=2)
    config.sft = SFTConfig(steps=1000, batch_size=16, prompt_weight=0.1)
    config.sft_optimizer = OptimizerConfig(lr=3e-3, beta2=0.95, weight_decay=0.1, warmup_steps=20, decay="cosine")
    config.evaluation = EvaluationConfig(every=0, prompts=256)
    return config


def _on_gpus(config: Config, tensor: int, data: int) -> Config:
    """As ``on_gpus``, for models of which one GPU cannot hold all beside its part of the trainer: an engine spreads
    over as many GPUs as a replica does, and activations of 16,384 tokens are computed anew."""
    config = on_gpus(config, tensor, data)
    config.rollout.engines, config.rollout.sglang.tensor_parallel = data, tensor
    config.actor.recompute = "full"
    return config


def _published(name: str, model: str) -> Config:
    return Config(
        run=RunConfig(name=name, steps=100, save_every=10),
        model=ModelConfig(path=model),
        data=DataConfig(task="temporal_clue", path="puzzles.jsonl", eval_path="heldout.jsonl", max_prompt_tokens=4096),
        rollout=RolloutConfig(prompts_per_step=32, group_size=50, max_new_tokens=8192),
        rewards=RewardsConfig(terms={"temporal_clue": 1.0}, workers=4),
        algorithm=AlgorithmConfig(
            std="population",
            aggregation="seq-mean-token-mean",  # a token weighs 1 / length of its completion
            minibatches=32,  # a prompt's completions each, where upstream takes two packed sequences of 16,384 tokens
            bypass=True,  # old log-probs are the engine's
        ),
        actor=ActorConfig(optimizer=OptimizerConfig(lr=6e-6, beta2=0.99, weight_decay=0.1)),
        evaluation=EvaluationConfig(every=10, prompts=64, greedy=False),
    )
