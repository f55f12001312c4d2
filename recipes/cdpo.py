"""Critical tokens (arXiv 2411.19943): DPO token by token, where tokens that made a reply wrong count most.

Three runs: two adapters imitate right and wrong solutions (``contrast``: rank 8, rate 3e-4), and by their difference
the third knows a rejected reply's critical tokens (beta 0.1, rate 4e-5, rank 16, three passes). All as published;
batches, lengths and the passes of the first two are ours.
"""

from megatron_rl.actor.config import ActorConfig, LoRAConfig, ModelConfig, OptimizerConfig
from megatron_rl.algorithms.config import SFTConfig
from megatron_rl.algorithms.pairs.config import PreferenceConfig
from megatron_rl.config import Config, RunConfig
from megatron_rl.data.config import DataConfig
from megatron_rl.data.sets.config import SetConfig
from megatron_rl.evaluation.config import EvaluationConfig
from megatron_rl.rewards.config import RewardsConfig
from recipes._machines import on_gpus, sums_then_preferring_on_cpu

MODEL = "meta-llama/Meta-Llama-3-8B"
ROWS = 7473  # of GSM8K: a right and a wrong solution each


def llama3_8b_contrast() -> Config:
    """A model of right or of wrong solutions, Llama-3-8B, 8 GPUs; set model.path, sft.data.path and run.name, twice."""
    return _on_gpus(_contrast("cdpo_llama3_8b_contrast", MODEL))


def llama3_8b() -> Config:
    """cDPO on Llama-3-8B, 8 GPUs; set model.path, preference.data.path, preference.positive and preference.negative."""
    return _on_gpus(_pairs("cdpo_llama3_8b", MODEL))


def tiny_contrast() -> Config:
    """A model of right sums on a CPU, from random weights; with data.sums.slip=0.2 and a run.name, of wrong ones."""
    config = sums_then_preferring_on_cpu(_contrast("cdpo_tiny_contrast", ""))
    config.preference.steps, config.data.sums.slip, config.evaluation.prompts = 0, 0.0, 0
    return config


def tiny() -> Config:
    """cDPO on a CPU in two minutes, on generated sums; set preference.positive and preference.negative."""
    return sums_then_preferring_on_cpu(_pairs("cdpo_tiny", ""))


def _contrast(name: str, model: str) -> Config:
    config = _stage(name, model, rank=8)
    config.sft = SFTConfig(steps=3 * ROWS // 64, batch_size=64, data=SetConfig(max_tokens=1024, bad_rows="drop"))
    config.sft_optimizer = OptimizerConfig(lr=3e-4, warmup_steps=10, decay="cosine")
    return config


def _pairs(name: str, model: str) -> Config:
    config = _stage(name, model, rank=16)
    data = SetConfig(max_tokens=1024, bad_rows="drop")
    config.preference = PreferenceConfig(steps=3 * ROWS // 64, batch_size=64, loss="cdpo", beta=0.1, data=data)
    config.preference_optimizer = OptimizerConfig(lr=4e-5, warmup_steps=10, decay="cosine")
    return config


def _stage(name: str, model: str, rank: int) -> Config:
    return Config(
        run=RunConfig(name=name, steps=0, save_every=100),
        model=ModelConfig(path=model),
        data=DataConfig(task="math_problems", max_prompt_tokens=1024),
        rewards=RewardsConfig(terms={"math_answer": 1.0}),
        actor=ActorConfig(lora=LoRAConfig(rank=rank, alpha=2.0 * rank)),
        evaluation=EvaluationConfig(prompts=512),
    )


def _on_gpus(config: Config) -> Config:
    lora = config.actor.lora
    on_gpus(config, tensor=4, data=2)
    config.actor.lora = lora
    return config
