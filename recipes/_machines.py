"""What recipes share: the machine that one runs on."""

from megatron_rl.actor.config import ActorConfig, ModelConfig, OptimizerConfig
from megatron_rl.config import Config
from megatron_rl.data.config import DataConfig, SumsConfig
from megatron_rl.evaluation.config import EvaluationConfig
from megatron_rl.rollout.config import SGLangConfig

SMALL_QWEN3 = {  # without vocab_size, which a recipe adds for its task's tokenizer; the quick start's shape
    "model_type": "qwen3",
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "max_position_embeddings": 1024,
    "rope_theta": 10000.0,
    "tie_word_embeddings": True,
    "initializer_range": 0.08,
}


def on_gpus(config: Config, tensor: int, data: int) -> Config:
    """Trainer and SGLang on the same tensor x data GPUs of one machine, one engine each; returns ``config``."""
    optimizer = config.actor.optimizer
    config.actor = ActorConfig(
        tensor_parallel=tensor,
        data_parallel=data,
        sequence_parallel=tensor > 1,
        optimizer=optimizer,
    )
    config.rollout.engine, config.rollout.engines = "sglang", tensor * data
    # of what is free when a server starts: the optimiser's moments and activations come later
    config.rollout.sglang = SGLangConfig(colocated=True, args={"mem_fraction_static": 0.6})
    return config


def on_cpu(config: Config, steps: int = 20) -> Config:
    """One rank and one embedded engine in fp32, few steps, only a last checkpoint; returns ``config``."""
    config.actor = ActorConfig(optimizer=config.actor.optimizer)
    config.rollout.engine, config.rollout.engines, config.rollout.sglang = "embedded", 1, SGLangConfig()
    config.run.steps, config.run.save_every = steps, 0
    config.model.dtype = "float32"
    config.rewards.workers = 1
    config.evaluation = EvaluationConfig(every=0, prompts=32)
    return config


def sums_then_preferring_on_cpu(config: Config) -> Config:
    """``on_cpu`` for the stages sft and preference alone, on generated sums from random weights; returns ``config``.

    The targets slip in a fifth of their additions, which the pairs are to undo.
    """
    on_cpu(config, steps=0)
    config.model = ModelConfig(architecture=SMALL_QWEN3 | {"vocab_size": 40}, dtype="float32")
    config.data = DataConfig(task="stepwise_sums", max_prompt_tokens=16, sums=SumsConfig("4-6", guess=0.0, slip=0.2))
    config.rewards.terms, config.rollout.max_new_tokens = {"exact_answer": 1.0}, 48
    config.sft.steps, config.sft.batch_size = 600, 32
    config.sft_optimizer = OptimizerConfig(lr=3e-3, beta2=0.95, warmup_steps=20, decay="cosine", min_lr_ratio=0.1)
    config.preference.steps, config.preference.batch_size = 100, 16
    config.preference_optimizer = OptimizerConfig(lr=3e-5, beta2=0.95, warmup_steps=5)
    config.sft.data.max_tokens = config.preference.data.max_tokens = 2048
    config.evaluation = EvaluationConfig(prompts=256)
    return config
