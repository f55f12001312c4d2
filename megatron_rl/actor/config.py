"""Options of the policy that is trained: its model, its sharding and its optimiser."""

from dataclasses import dataclass, field
from typing import Any

from megatron_rl.option import choice, number
from megatron_rl.resharding.layout import ParallelSizes


@dataclass
class ModelConfig:
    """Which model. Either ``path`` or ``architecture`` is given."""

    path: str = ""  # Hugging Face folder: config.json, *.safetensors, tokenizer files
    architecture: dict[str, Any] = field(default_factory=dict)  # a config.json's content: start from random weights
    dtype: str = choice("bfloat16", "float32")  # weights and activations in actor and engine


@dataclass
class OptimizerConfig:
    """AdamW and its learning-rate schedule (steps are optimiser steps)."""

    lr: float = number(1e-6, least=0)  # peak learning rate
    beta1: float = number(0.9, least=0, most=0.999999)  # decay of the first moment
    beta2: float = number(0.999, least=0, most=0.999999999)  # decay of the second moment
    eps: float = number(1e-8, least=0)  # added to the square root of the second moment
    weight_decay: float = number(0.0, least=0)  # decoupled; norms and biases are never decayed
    clip_grad: float = number(1.0, least=0)  # global gradient norm; 0 turns clipping off
    warmup_steps: int = number(0, least=0)  # linear warm-up from 0
    decay: str = choice("constant", "linear", "cosine")  # from the warm-up on, to min_lr_ratio behind the last step
    min_lr_ratio: float = number(0.0, least=0, most=1)  # final learning rate as a fraction of the peak


@dataclass
class CriticConfig:
    """The value model that algorithm.name=ppo trains beside the policy, sharded as the actor is."""

    path: str = ""  # Hugging Face folder that it starts from; empty: the policy's at the beginning of RL
    optimizer: OptimizerConfig = field(default_factory=lambda: OptimizerConfig(lr=1e-5))
    warmup_steps: int = number(0, least=0)  # first RL steps, in which the critic alone learns
    clip: float = number(0.2, above=0)  # how far a value may move from that at the rollout, in units of the reward


@dataclass
class LoRAConfig:
    """Low-rank adapters: matrices W + alpha / rank * B A, of which A and B alone are trained."""

    rank: int = number(0, least=0)  # columns of B and rows of A; 0: all weights are trained
    alpha: float = number(32.0, above=0)  # B A is scaled by alpha / rank
    targets: list[str] = field(  # the matrices, in Megatron's or Hugging Face's names, which may hold * ? [0-3] {0-15}
        default_factory=lambda: ["linear_qkv", "linear_proj", "linear_fc1", "linear_fc2"]
    )


@dataclass
class ActorConfig:
    """The trainer ranks: world size = tensor x pipeline x context x data parallel."""

    tensor_parallel: int = number(1, least=1)  # ranks that share every weight matrix
    pipeline_parallel: int = number(1, least=1)  # ranks that share the layers
    first_stage: int = number(0, least=0)  # layers of the first pipeline stage; 0: as many as the others
    last_stage: int = number(0, least=0)  # layers of the last pipeline stage; 0: as many as the others
    virtual_pipeline: int = number(1, least=1)  # interleaved model chunks per pipeline rank
    context_parallel: int = number(1, least=1)  # ranks that share every sequence
    expert_parallel: int = number(1, least=1)  # ranks that share the experts; divides tensor x context x data parallel
    expert_tensor_parallel: int = number(1, least=1)  # ranks that share every expert's matrices, of the same product
    data_parallel: int = number(1, least=1)  # replicas
    sequence_parallel: bool = False  # shard activations between tensor-parallel regions
    micro_batch_tokens: int = number(16384, least=1)  # at most this many tokens in one forward pass of one rank
    packing: bool = True  # several sequences per forward pass (THD); false: one by one
    logprob_chunk: int = number(2048, least=1)  # tokens whose logits exist at the same time
    recompute: str = choice("none", "selective", "full")  # activations computed anew in the backward pass
    recompute_modules: list[str] = field(default_factory=lambda: ["core_attn"])  # of selective: mlp, moe, layernorm …
    recompute_method: str = choice("uniform", "block")  # of full: all layers, or the first ones of every model chunk
    recompute_layers: int = number(1, least=1)  # uniform: layers between what is kept; block: layers computed anew
    attention: str = choice("transformer_engine", "torch")  # whose kernels in Transformer Engine's layers, on a GPU
    fp8: str = choice("none", "delayed", "tensorwise", "blockwise", "mxfp8")  # Transformer Engine's FP8 recipe
    fp8_weights: bool = False  # beside fp8: layers keep their weights in FP8 alone: docs/precision.md
    bf16_layers: int = number(0, least=0)  # beside fp8: so many of the first and of the last layers stay in bfloat16
    gradients: str = choice("float32", "bfloat16")  # in which gradients are added up, and summed over the ranks
    moments: str = choice("float32", "bfloat16", "float16")  # AdamW's, as Transformer Engine's optimiser keeps them
    optimizer_on_host: float = number(0.0, least=0, most=1)  # share of AdamW's state on the host, which steps it there
    asleep: bool = (
        False  # while engines generate on its GPUs, gradients and AdamW's state are not there: docs/precision.md
    )
    threads: int = number(1, least=1, most=1024)  # CPU threads per rank
    freeze: list[str] = field(default_factory=list)  # Hugging Face tensors that stay as they are: docs/lora.md
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    lora: LoRAConfig = field(default_factory=LoRAConfig)
    megatron: dict[str, Any] = field(
        default_factory=dict
    )  # more fields of Megatron-Core's configurations, by its names

    def sizes(self) -> ParallelSizes:
        """The sharding, in resharding's terms."""
        return ParallelSizes(
            tensor=self.tensor_parallel,
            pipeline=self.pipeline_parallel,
            virtual=self.virtual_pipeline,
            context=self.context_parallel,
            expert=self.expert_parallel,
            data=self.data_parallel,
            expert_tensor=self.expert_tensor_parallel,
            first_stage=self.first_stage,
            last_stage=self.last_stage,
        )
