"""SimpleRL-Zoo (arXiv 2503.18892): GRPO from base models, problems and prompts as hard as the model can take.

Settings are the paper's and its scripts'. Tiers: easy is GSM8K with MATH's level 1, medium MATH's levels 1 to 4, hard 3
to 5. Weak models get a plain question, strong ones a chat that asks for a box. The reward is 1 for a right answer.
"""

from typing import Any

from megatron_rl.actor.config import ActorConfig, ModelConfig, OptimizerConfig
from megatron_rl.algorithms.config import AlgorithmConfig, SFTConfig
from megatron_rl.config import Config, RunConfig
from megatron_rl.data.config import DataConfig, SelectionConfig, SumsConfig
from megatron_rl.evaluation.config import EvaluationConfig
from megatron_rl.rewards.config import RewardsConfig
from megatron_rl.rollout.config import RolloutConfig
from recipes._machines import SMALL_QWEN3, on_cpu, on_gpus

SIMPLE: dict[str, Any] = {
    "prompt": "raw",
    "template": "Question:\n{question}\nAnswer:\nLet's think step by step.\n",
}
CHAT: dict[str, Any] = {
    "prompt": "chat",
    "template": "{question}\nPlease reason step by step, and put your final answer within \\boxed{{}}.",
}
MATH = {"question": "problem"}  # MATH's name for it


def qwen2_5_0_5b() -> Config:
    """SimpleRL-Zoo on Qwen2.5-0.5B, medium tier, 8 GPUs; set model.path and data.path (MATH's training rows)."""
    return on_gpus(_levels("qwen2_5_0_5b", "Qwen/Qwen2.5-0.5B", SIMPLE, 1, 4), tensor=1, data=8)


def qwen2_5_7b() -> Config:
    """SimpleRL-Zoo on Qwen2.5-7B, hard tier, 8 GPUs; set model.path and data.path (MATH's training rows)."""
    return on_gpus(_levels("qwen2_5_7b", "Qwen/Qwen2.5-7B", CHAT, 3, 5), tensor=4, data=2)


def qwen2_5_14b() -> Config:
    """SimpleRL-Zoo on Qwen2.5-14B, hard tier, 8 GPUs; set model.path and data.path (MATH's training rows)."""
    return on_gpus(_levels("qwen2_5_14b", "Qwen/Qwen2.5-14B", CHAT, 3, 5), tensor=8, data=1)


def llama3_1_8b() -> Config:
    """SimpleRL-Zoo on Llama-3.1-8B, easy tier, 8 GPUs; set model.path and data.mixture.math.path."""
    config = _published("llama3_1_8b", "meta-llama/Llama-3.1-8B")
    config.data.mixture = {  # weights: their rows
        "gsm8k": {"path": "openai/gsm8k", "subset": "main", "weight": 7473, **SIMPLE},
        "math": {
            "path": "",
            "columns": dict(MATH),
            "selection": {"column": "level", "least": 1, "most": 1},
            "weight": 915,  # of the 12,000 that MATH500 leaves; files of 7,500 have 564 of this level
            **SIMPLE,
        },
    }
    return on_gpus(config, tensor=4, data=2)


def tiny() -> Config:
    """The SimpleRL-Zoo job on a CPU in two minutes: generated sums, a tier of them, from random weights; set nothing.

    A short warm start stands for the base model: it can work a sum out, and mostly guesses.
    """
    config = _few_tokens("tiny")
    config.model = ModelConfig(architecture=SMALL_QWEN3 | {"vocab_size": 40}, dtype="float32")
    config.data = DataConfig(task="stepwise_sums", max_prompt_tokens=32, limit=4096, **SIMPLE)
    config.data.sums = SumsConfig(terms="3-5")
    config.data.selection = SelectionConfig(column="terms", least=3, most=4)
    config.rollout.prompts_per_step, config.rollout.group_size = 16, 8
    config.actor.optimizer = OptimizerConfig(lr=1e-4, beta2=0.95, warmup_steps=2)
    config.sft = SFTConfig(steps=600, batch_size=64)
    config.sft_optimizer = OptimizerConfig(
        lr=3e-3, beta2=0.95, weight_decay=0.1, warmup_steps=20, decay="cosine", min_lr_ratio=0.1
    )
    config.evaluation = EvaluationConfig(prompts=256)
    return config


def tiny_rows() -> Config:
    """The same job on rows of a file; set model.path (tools/make_tiny_model.py) and data.path (GSM8K)."""
    config = _few_tokens("tiny_rows")
    config.data = DataConfig(task="prompt_answer", max_prompt_tokens=1024, bad_rows="drop", **SIMPLE)
    config.rollout.prompts_per_step, config.rollout.group_size = 8, 4
    config.actor.optimizer.lr = 1e-4
    return config


def _few_tokens(name: str) -> Config:
    config = on_cpu(_published(name, ""))
    config.rollout.max_new_tokens = 40
    return config


def _levels(name: str, model: str, prompt: dict[str, Any], least: float, most: float) -> Config:
    config = _published(name, model)
    config.data.columns = dict(MATH)
    config.data.prompt, config.data.template = prompt["prompt"], prompt["template"]
    config.data.selection = SelectionConfig(column="level", least=least, most=most)
    if prompt is CHAT:  # which asks for a box
        config.rewards.terms = {"math_answer": 1.0, "reasoning_style": 0.0}
    return config


def _published(name: str, model: str) -> Config:
    return Config(
        run=RunConfig(name=f"simplerl_zoo_{name}", steps=100, save_every=20),
        model=ModelConfig(path=model),
        data=DataConfig(task="prompt_answer", max_prompt_tokens=1024),
        rollout=RolloutConfig(prompts_per_step=1024, group_size=8, max_new_tokens=8192),
        rewards=RewardsConfig(terms={"exact_answer": 1.0, "reasoning_style": 0.0}, workers=4),
        algorithm=AlgorithmConfig(
            kl_coef=1e-4,  # theirs up to 14B; 1e-3 beyond
            entropy_coef=0.001,
            minibatches=4,  # of 256 prompts
            correction="truncated",  # TIS, C = 2: bfloat16 engines and actors differ by a few percent on some tokens
        ),
        actor=ActorConfig(optimizer=OptimizerConfig(lr=5e-7)),
        evaluation=EvaluationConfig(prompts=500),
    )
