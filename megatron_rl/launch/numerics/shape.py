"""What ``check --numerics`` computes on: the recipe's own model and layout where they are small, else small ones of the
same kind. Imports no torch."""

import copy
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

from megatron_rl.actor.config import ActorConfig, LoRAConfig, OptimizerConfig
from megatron_rl.actor.megatron.owned import needs_transformer_engine
from megatron_rl.config import Config
from megatron_rl.errors import InputError
from megatron_rl.resharding.families import canonical_tensors
from megatron_rl.resharding.families.architecture import read_architecture
from megatron_rl.resharding.layout import ParallelSizes
from megatron_rl.resharding.layouts.megatron import layout_violations

MOST_PARAMETERS = 4_000_000  # of a model that is taken as it is
MOST_RANKS = 16  # of a layout that is taken as it is: processes that a laptop can hold
LARGEST = 2  # every parallel size of a layout that is made smaller, which then has at most 16 ranks
GROUPS, SIZE = 3, 3  # prompts of the batch, and completions of each
LONGEST = 24  # tokens of a completion; of a prompt half as many
_WIDTH, _MLP, _EXPERT, _HEAD, _VOCABULARY = 64, 96, 48, 16, 131  # of a model that is made smaller
_EXPERTS = 4
_LR = 1e-3


@dataclass(frozen=True)
class Shape:
    """What is computed, and in which words it is announced."""

    config: Config  # as the recipe's, on the model of ``architecture``
    architecture: dict[str, Any]  # a config.json's content
    smaller: list[str]  # what was made smaller, "pipeline_parallel 4 -> 2" each; empty: nothing

    @property
    def sizes(self) -> ParallelSizes:
        """The layout that is compared with one rank."""
        return self.config.actor.sizes()


def shape(config: Config, hf_config: Mapping[str, Any]) -> Shape:
    """The model and the layout to compute with for a recipe whose model has that config.json.

    Raises InputError when the recipe's own layout does not fit its model.
    """
    if problems := layout_violations(hf_config, config.actor.sizes()):
        raise InputError(" ".join(problems))
    arch = read_architecture(hf_config)
    own = sum(spec.elements for spec in canonical_tensors(hf_config).values())
    actor, architecture, smaller = config.actor, dict(hf_config), []
    if own > MOST_PARAMETERS or actor.sizes().world > MOST_RANKS:
        actor = _smaller_layout(config.actor)
        architecture = _smaller_model(hf_config, config.actor, actor)
        smaller = _changes(config.actor, actor) + _changes(arch, read_architecture(architecture))
    return Shape(_computed(config, actor), architecture, smaller)


def _smaller_layout(actor: ActorConfig) -> ActorConfig:
    """Every size at most ``LARGEST``; data parallelism larger where the experts need so many ranks."""
    names = [f.name for f in fields(ActorConfig) if f.name.endswith("_parallel") and f.name != "sequence_parallel"]
    sizes: dict[str, Any] = {name: min(getattr(actor, name), LARGEST) for name in (*names, "virtual_pipeline")}
    experts = sizes["expert_parallel"] * sizes["expert_tensor_parallel"]
    while sizes["tensor_parallel"] * sizes["context_parallel"] * sizes["data_parallel"] % experts:
        sizes["data_parallel"] *= 2
    # an end of the pipeline with a number of layers of its own keeps having one: half of the other stages'
    ends: dict[str, Any] = {
        name: sizes["virtual_pipeline"] if getattr(actor, name) else 0 for name in ("first_stage", "last_stage")
    }
    return replace(actor, **sizes, **ends)


def _smaller_model(hf_config: Mapping[str, Any], asked: ActorConfig, actor: ActorConfig) -> dict[str, Any]:
    """A config.json of the same family and options, narrow and with few layers, that the layout ``actor`` divides."""
    sizes, arch = actor.sizes(), read_architecture(hf_config)
    shared = arch.kv_heads < asked.tensor_parallel  # ranks that compute the same keys and values
    groups = 1 if shared else min(arch.kv_heads, 2)
    each = 2 if shared else min(arch.heads // arch.kv_heads, 2)
    even = sizes.virtual * (2 if sizes.first_stage or sizes.last_stage else 1)  # layers of a stage
    given = [count for count in (sizes.first_stage, sizes.last_stage) if count]
    layers = sum(given) + even * (sizes.pipeline - len(given))
    small: dict[str, Any] = {
        "hidden_size": min(arch.hidden, _WIDTH),
        "intermediate_size": min(arch.mlp_hidden, _MLP),
        "num_hidden_layers": layers if sizes.pipeline > 1 else min(arch.layers, 2),
        "num_attention_heads": groups * each,
        "num_key_value_heads": groups,
        "head_dim": min(arch.head_dim, _HEAD),
        "vocab_size": min(arch.vocab, _VOCABULARY),
    }
    if arch.experts:
        experts = min(arch.experts, max(_EXPERTS, 2 * sizes.expert))
        small["moe_intermediate_size"] = min(arch.expert_hidden, _EXPERT)
        small["num_experts_per_tok"] = min(arch.experts_per_token, experts // 2)
        small |= {key: experts for key in ("num_experts", "num_local_experts", "n_routed_experts") if key in hf_config}
    without = ("layer_types", "max_window_layers")  # as long as the list of layers
    return {key: value for key, value in hf_config.items() if key not in without} | small


def _changes(before: Any, after: Any) -> list[str]:
    """Fields of two records that differ."""
    skipped = ("rope", "norm_topk")
    pairs = [(f.name, getattr(before, f.name), getattr(after, f.name)) for f in fields(before) if f.name not in skipped]
    return [f"{name} {old} -> {new}" for name, old, new in pairs if old != new]


def _computed(config: Config, actor: ActorConfig) -> Config:
    """The recipe in fp32 on a CPU, with one small batch and one optimiser step; adapters and frozen weights trained."""
    made = copy.deepcopy(config)
    made.actor = replace(
        _on_cpu(actor), lora=LoRAConfig(), freeze=[], threads=1, micro_batch_tokens=4 * LONGEST, logprob_chunk=7
    )
    made.model.dtype = "float32"
    made.run.start_from, made.run.start_optimizer = "", False
    made.rollout.engine, made.rollout.max_new_tokens = "embedded", LONGEST
    made.rollout.prompts_per_step, made.rollout.group_size = GROUPS, SIZE
    made.algorithm.minibatches = made.algorithm.epochs = 1
    made.critic.path, made.critic.warmup_steps = "", 0
    made.sft.batch_size = made.preference.batch_size = made.reward_model.batch_size = GROUPS * SIZE // 2
    made.actor.optimizer = _optimizer(made.actor.optimizer)
    for name in ("sft_optimizer", "preference_optimizer", "reward_model_optimizer"):
        setattr(made, name, _optimizer(getattr(made, name)))
    made.critic.optimizer = _optimizer(made.critic.optimizer)
    return made


def _on_cpu(actor: ActorConfig) -> ActorConfig:
    """Without what needs a GPU or a deeper model; losses that balance a micro-batch's experts change with its rows."""
    default, given = ActorConfig(), actor.megatron
    names = ("fp8", "bf16_layers", "gradients", "moments", "optimizer_on_host", "asleep", "recompute_layers")
    left_out = ("moe_router_load_balancing_type", "moe_aux_loss_coeff")
    fields = {n: v for n, v in given.items() if n not in left_out and not needs_transformer_engine(n)}
    modules = [name for name in actor.recompute_modules if name not in ("layernorm", "moe_act")]
    plain = {name: getattr(default, name) for name in names}
    return replace(actor, **plain, megatron=fields, recompute_modules=modules or default.recompute_modules)


def _optimizer(options: OptimizerConfig) -> OptimizerConfig:
    return replace(options, lr=_LR, warmup_steps=0, decay="constant")
