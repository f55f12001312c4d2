"""How much memory and disk a run needs at least: its tensors, without activations. Imports no torch."""

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

from megatron_rl.actor.config import ActorConfig, ModelConfig
from megatron_rl.actor.tuning.names import trained_elements
from megatron_rl.config import Config
from megatron_rl.resharding.families.architecture import read_architecture
from megatron_rl.resharding.folders.hf import read_hf_config
from megatron_rl.resharding.layouts.megatron import megatron_layout
from megatron_rl.system import machine

WEIGHT_BYTES = {"bfloat16": 2, "float32": 4}
GRADIENT_BYTES = {"bfloat16": 2, "float32": 4}  # Megatron's gradient buffers
MOMENT_BYTES = 8  # AdamW's two moments in fp32, sharded over the replicas; half of that in 16 bits
MAIN_WEIGHT_BYTES = 4  # the optimiser's fp32 weights


@dataclass(frozen=True)
class Footprint:
    """Bytes."""

    parameters: int  # a count
    shared: int  # all ranks' weights, in shared memory for the engines
    ranks: tuple[int, ...]  # each trainer rank: what is there all the time
    engine: int  # each engine's weights
    cache: int  # each engine's keys and values; on GPUs SGLang takes for them what is left
    checkpoint: int
    export: int
    resting: tuple[int, ...] = ()  # each trainer rank while engines generate on its GPU
    frozen: tuple[int, ...] = ()  # of each rank on a GPU, the copy of a frozen policy's weights while that one scores
    host: int = 0  # AdamW's state of all ranks that compute on GPUs, in the memory beside these
    kept: int = 0  # their frozen weights there
    experts: bool = False  # a mixture of experts
    together: int = 0  # weights, gradients and optimiser of all ranks, were nothing held twice
    least: int = 0  # of that, what stays with 16-bit gradients and all of the optimiser on the host


def state_bytes(actor: ActorConfig, weight: int) -> float:
    """AdamW's state of a weight of so many bytes, where the rank computes."""
    main = 0 if weight >= MAIN_WEIGHT_BYTES else MAIN_WEIGHT_BYTES
    return (main + MOMENT_BYTES / (1 if actor.moments == "float32" else 2)) * (1 - actor.optimizer_on_host)


def host_bytes(actor: ActorConfig, weight: int) -> float:
    """The same on the host: of a share float32 weights, moments and gradients, and of the rest what sleeps."""
    away = actor.optimizer_on_host * (MAIN_WEIGHT_BYTES + MOMENT_BYTES + GRADIENT_BYTES["float32"])
    return away + (state_bytes(actor, weight) if actor.asleep else 0)


def frozen_bytes(config: Config, weight: int, changed: float = 1.0) -> float:
    """Of a weight of so many bytes, what frozen policies and adapters keep beside it: on the host of a GPU, else here.

    ``changed``: the share of the weights that training changes, which are all that a reference keeps
    (``Actor.freeze_reference``). Adapters keep what they are added to, which is their reference as well.
    """
    algorithm, options, base = config.algorithm, config.preference, 0.0
    own = changed * weight
    if config.actor.lora.rank:
        base, own = own, 0.0
    asked = config.run.steps > 0 and algorithm.uses_reference
    moving = asked and algorithm.moves_reference
    of_rl = changed * MAIN_WEIGHT_BYTES if moving else own * asked
    of_pairs = (own + (2 * weight if options.loss == "cdpo" else 0)) if options.steps else 0.0
    return base + max(of_rl, of_pairs)


def asks_frozen(config: Config) -> bool:
    """Whether a frozen policy scores, in any stage."""
    return config.preference.steps > 0 or (config.run.steps > 0 and config.algorithm.uses_reference)


def read_config(model: ModelConfig) -> dict[str, Any]:
    """The content of the model's config.json. Raises InputError naming what is missing or broken."""
    return read_hf_config(model.path) if model.path else model.architecture


def footprint(config: Config, hf_config: Mapping[str, Any], critic: Mapping[str, Any] | None = None) -> Footprint:
    """What a model that can be sharded as configured needs at least, with a critic of that config.json beside it."""
    weight = WEIGHT_BYTES[config.model.dtype]
    optimizer, gradient = state_bytes(config.actor, weight), GRADIENT_BYTES[config.actor.gradients]
    layout = megatron_layout(hf_config, config.actor.sizes())
    parameters = sum(spec.elements for spec in layout.tensors.values())
    trained, changed = trained_elements(config.actor, hf_config)
    frozen, visiting = frozen_bytes(config, weight, changed / parameters), 0
    on_gpus = bool(machine.gpus())
    if on_gpus and asks_frozen(config):  # one policy's weights come back at a time, while they score
        visiting = parameters if config.preference.steps and config.preference.loss == "cdpo" else changed
    held = [sum(prod(shape) for shape in shard.locals.values()) for shard in layout.ranks]
    beside, of_critic = 0, [0] * len(held)
    if critic is not None:
        layout = megatron_layout(critic, config.actor.sizes())
        beside = sum(spec.elements for spec in layout.tensors.values())
        of_critic = [sum(prod(shape) for shape in shard.locals.values()) for shard in layout.ranks]
    return Footprint(
        parameters=parameters,
        shared=sum(held) * weight,
        ranks=tuple(
            elements * weight
            + elements * (gradient * trained) // parameters
            + (0 if on_gpus else int(elements * frozen))
            + more * (weight + gradient)
            + int((trained + beside) * optimizer) // len(held)
            for elements, more in zip(held, of_critic, strict=True)
        ),
        engine=parameters * weight,
        cache=_cached_tokens(config) * _token_bytes(hf_config, weight),
        checkpoint=(beside + (trained if config.actor.lora.rank else parameters)) * weight
        + (trained + beside) * (MAIN_WEIGHT_BYTES + MOMENT_BYTES),
        export=parameters * weight,
        resting=tuple((elements + more) * weight for elements, more in zip(held, of_critic, strict=True)),
        frozen=tuple(elements * weight * visiting // parameters for elements in held),
        host=int((trained + beside) * host_bytes(config.actor, weight)),
        kept=int(sum(held) * frozen) if on_gpus else 0,
        experts=read_architecture(dict(hf_config)).experts > 0,
        together=(parameters + beside) * weight + int((trained + beside) * (gradient + optimizer)),
        least=(parameters + beside) * weight + (trained + beside) * min(gradient, weight),
    )


def _cached_tokens(config: Config) -> int:
    """Tokens whose keys and values an engine has room for."""
    rollout, longest = config.rollout, config.data.max_prompt_tokens + config.rollout.max_new_tokens
    if rollout.engine == "sglang":
        given = rollout.sglang.args.get("max_total_tokens")
        return given if isinstance(given, int) else max(8192, (longest + 8) * rollout.max_running)
    # a static cache: a row for each sequence that runs, as long as the longest may get
    training = -(-rollout.prompts_per_step // rollout.engines) * rollout.group_size
    evaluating = -(-config.evaluation.prompts // rollout.engines)
    return min(rollout.max_running, max(training, evaluating)) * longest


def _token_bytes(hf_config: Mapping[str, Any], element: int) -> int:
    sizes = read_architecture(dict(hf_config))
    return sizes.layers * sizes.kv_heads * sizes.head_dim * 2 * element  # keys and values


def readable(count: float) -> str:
    """1.2 GB, 35 MB."""
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.0f} MB"
