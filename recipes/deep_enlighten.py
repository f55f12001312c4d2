"""DeepEnlighten (github.com/DolbyUUU/DeepEnlighten): REINFORCE++ on Social IQa, reasoning before one of three options.

Settings are those of the authors' run scripts; the reward's are those of their README (the code has ±1 for the form).
"""

from megatron_rl.actor.config import ActorConfig, ModelConfig, OptimizerConfig
from megatron_rl.algorithms.config import AlgorithmConfig, SFTConfig
from megatron_rl.config import Config, RunConfig
from megatron_rl.data.config import DataConfig
from megatron_rl.evaluation.config import EvaluationConfig
from megatron_rl.rewards.config import RewardsConfig
from megatron_rl.rollout.config import RolloutConfig
from recipes._machines import SMALL_QWEN3, on_cpu, on_gpus


def llama3_2_3b() -> Config:
    """DeepEnlighten on Llama-3.2-3B-Instruct, 4 x RTX 4090; set model.path (its folder)."""
    return _on_4(_published("llama3_2_3b", "meta-llama/Llama-3.2-3B-Instruct", "llama-instruct"))


def llama3_2_3b_8gpus() -> Config:
    """DeepEnlighten on Llama-3.2-3B-Instruct, one node of 8 GPUs; set model.path (its folder)."""
    return on_gpus(_published("llama3_2_3b", "meta-llama/Llama-3.2-3B-Instruct", "llama-instruct"), tensor=2, data=4)


def qwen2_5_3b() -> Config:
    """DeepEnlighten on Qwen2.5-3B, 4 x RTX 4090; set model.path (its folder)."""
    return _on_4(_published("qwen2_5_3b", "Qwen/Qwen2.5-3B", "base"))


def qwen2_5_3b_8gpus() -> Config:
    """DeepEnlighten on Qwen2.5-3B, one node of 8 GPUs; set model.path (its folder)."""
    return on_gpus(_published("qwen2_5_3b", "Qwen/Qwen2.5-3B", "base"), tensor=2, data=4)


def qwen2_5_3b_instruct() -> Config:
    """DeepEnlighten on Qwen2.5-3B-Instruct, 4 x RTX 4090; set model.path (its folder)."""
    return _on_4(_published("qwen2_5_3b_instruct", "Qwen/Qwen2.5-3B-Instruct", "qwen-instruct"))


def qwen2_5_3b_instruct_8gpus() -> Config:
    """DeepEnlighten on Qwen2.5-3B-Instruct, one node of 8 GPUs; set model.path (its folder)."""
    return on_gpus(_published("qwen2_5_3b_instruct", "Qwen/Qwen2.5-3B-Instruct", "qwen-instruct"), tensor=2, data=4)


def tiny() -> Config:
    """The DeepEnlighten job on a CPU in two minutes: generated situations, from random weights; nothing to set."""
    config = on_cpu(_published("tiny", "", "base"))
    config.model = ModelConfig(architecture=SMALL_QWEN3 | {"vocab_size": 104}, dtype="float32")
    config.data = DataConfig(task="social_situations", max_prompt_tokens=27)
    config.rollout.prompts_per_step, config.rollout.max_new_tokens, config.rollout.temperature = 16, 20, 1.0
    config.actor.optimizer = OptimizerConfig(lr=3e-4, beta2=0.95, warmup_steps=5, decay="linear", min_lr_ratio=0.1)
    config.sft = SFTConfig(steps=600, batch_size=32, prompt_weight=0.1)
    config.sft_optimizer = OptimizerConfig(
        lr=3e-3, beta2=0.95, weight_decay=0.1, warmup_steps=20, decay="cosine", min_lr_ratio=0.1
    )
    config.evaluation = EvaluationConfig(prompts=256)
    return config


def _published(name: str, model: str, template: str) -> Config:
    llama = template == "llama-instruct"
    return Config(
        run=RunConfig(name=f"deep_enlighten_{name}", steps=1000, save_every=500),  # of 8,352: the model they report
        model=ModelConfig(path=model),
        data=DataConfig(
            task="social_iqa",
            path="allenai/social_i_qa",
            eval_path="allenai/social_i_qa",
            eval_split="validation",
            template=template,
            max_prompt_tokens=512,
        ),
        rollout=RolloutConfig(
            prompts_per_step=4,
            group_size=8,
            max_new_tokens=1024 if llama else 2048,
            temperature=0.7 if llama else 0.6,
        ),
        rewards=RewardsConfig(terms={"deep_enlighten": 1.0}, workers=4),
        algorithm=AlgorithmConfig(
            name="reinforce_pp",
            kl_coef=0.001,
            kl_in="loss",
            entropy_coef=0.001,
            minibatches=1,  # their mini-batch of 8 counts prompts, of which a step has 4
            correction="truncated",  # TIS, C = 2: bfloat16 engines and actors differ by a few percent on some tokens
        ),
        actor=ActorConfig(optimizer=OptimizerConfig(lr=1e-6)),
        evaluation=EvaluationConfig(every=500, prompts=1954),
    )


def _on_4(config: Config) -> Config:
    """Four GPUs of 24 GB."""
    config = on_gpus(config, tensor=4, data=1)
    config.actor.micro_batch_tokens = 4096
    return config
