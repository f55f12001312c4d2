"""SEELE (arXiv 2509.06923): hints of the right length keep every problem at the accuracy that teaches most.

Rounds, rollouts, batches, lengths, coefficients and steps are the paper's; it gives no learning rate and no number of
passes over a batch. 1e-6 and one pass are ours: those of most GRPO runs on models of this size.
"""

from megatron_rl.actor.config import ActorConfig, ModelConfig, OptimizerConfig
from megatron_rl.algorithms.config import AlgorithmConfig, SFTConfig
from megatron_rl.config import Config, RunConfig
from megatron_rl.data.config import CurriculumConfig, DataConfig, SumsConfig
from megatron_rl.evaluation.config import EvaluationConfig
from megatron_rl.rewards.config import RewardsConfig
from megatron_rl.rollout.config import HintsConfig, RolloutConfig
from recipes._machines import SMALL_QWEN3, on_cpu, on_gpus

R1_ZERO = (  # the template of DeepSeek-R1-Zero (arXiv 2501.12948, table 1), the answer in a box
    "A conversation between User and Assistant. The user asks a question, and the Assistant solves it. The assistant "
    "first thinks about the reasoning process in the mind and then provides the user with the answer. The reasoning "
    "process and answer are enclosed within <think> </think> and <answer> </answer> tags, respectively, i.e., <think> "
    "reasoning process here </think> <answer> answer here </answer>. Put the final answer in \\boxed{{}}.\n"
    "User: {problem}\nAssistant: <think>\n"
)


def qwen2_5_1_5b() -> Config:
    """SEELE on Qwen2.5-1.5B, 8 GPUs; set model.path (its folder) and data.path (problems with steps)."""
    return on_gpus(_paper("seele_qwen2_5_1_5b", "Qwen/Qwen2.5-1.5B"), tensor=1, data=8)


def qwen2_5_3b() -> Config:
    """SEELE on Qwen2.5-3B, 8 GPUs; set model.path (its folder) and data.path (problems with steps)."""
    return on_gpus(_paper("seele_qwen2_5_3b", "Qwen/Qwen2.5-3B"), tensor=2, data=4)


def tiny() -> Config:
    """The SEELE job on a CPU in a minute; set model.path (tools/make_tiny_model.py) and data.path (GSM8K)."""
    config = on_cpu(_paper("seele_tiny", ""))
    config.data.template, config.data.columns = "{question}", {}
    config.data.max_prompt_tokens, config.data.limit = 1024, 400
    config.rollout.prompts_per_step, config.rollout.group_size, config.rollout.max_new_tokens = 4, 8, 64
    config.actor.optimizer.lr = 1e-3
    config.sft = SFTConfig(steps=30, batch_size=8)
    config.sft_optimizer = OptimizerConfig(lr=3e-3, warmup_steps=5)
    return config


def sums() -> Config:
    """SEELE on generated sums of which a small warm-started model gets 5 % right by itself, on a CPU in minutes.

    Imitation sees all 2,048 sums, RL the 48 longest alone, so that each comes back every four steps.
    """
    config = on_cpu(_paper("seele_sums", ""))
    config.model = ModelConfig(architecture=SMALL_QWEN3 | {"vocab_size": 40}, dtype="float32")
    longest_first = CurriculumConfig(
        by="column", column="terms", hard="low", start=48 / 2048, schedule="step", stages=1
    )
    sums = SumsConfig(terms="7-9", guess=0.0, slip=0.35)
    config.data = DataConfig(
        task="stepwise_sums", max_prompt_tokens=96, limit=2048, curriculum=longest_first, sums=sums
    )
    config.rewards.terms, config.rewards.args = {"exact_answer": 1.0}, {"exact_answer": {"form": "boxed"}}
    config.rollout.prompts_per_step, config.rollout.group_size, config.rollout.max_new_tokens = 12, 32, 64
    config.actor.optimizer.lr = 1e-5
    config.sft = SFTConfig(steps=300, batch_size=24)
    config.sft_optimizer = OptimizerConfig(lr=3e-3, beta2=0.95, warmup_steps=20, decay="cosine", min_lr_ratio=0.1)
    config.evaluation = EvaluationConfig(prompts=256, greedy=False)
    return config


def _paper(name: str, model: str) -> Config:
    return Config(
        run=RunConfig(name=name, steps=400, save_every=50),
        model=ModelConfig(path=model),
        data=DataConfig(task="math_problems", prompt="raw", template=R1_ZERO, max_prompt_tokens=3072, bad_rows="drop"),
        rollout=RolloutConfig(
            prompts_per_step=256,
            group_size=32,  # 4 rounds of 8
            max_new_tokens=2048,
            strategy="hinted",
            hints=HintsConfig(rounds=4, target=0.5),
        ),
        rewards=RewardsConfig(terms={"math_answer": 1.0}, workers=8),
        algorithm=AlgorithmConfig(
            name="dr_grpo",
            kl_coef=0.001,
            hint_coef=0.001,
            minibatches=4,  # of 64 prompts
            correction="truncated",
        ),
        actor=ActorConfig(optimizer=OptimizerConfig(lr=1e-6)),
        evaluation=EvaluationConfig(prompts=512),
    )
