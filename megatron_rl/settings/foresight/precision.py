"""Which precisions GPUs have, and where FP8 pays. Imports no torch.

The recipes' needs are those of Transformer Engine 2.20 (``transformer_engine/pytorch/quantization.py``).
"""

import os
from dataclasses import dataclass, replace

from megatron_rl.actor.megatron.shapes import UNIFIED, widths
from megatron_rl.config import Config
from megatron_rl.resharding.families.architecture import Architecture
from megatron_rl.settings.foresight.hardware import Hardware
from megatron_rl.settings.foresight.held import whole

PAYS = 7e9  # weights of a dense model from which FP8 pays on Hopper
GAINS = {"tensorwise": 1.26, "blockwise": 1.19}  # measured: Qwen3-8B's layers on an H200 (docs/benchmarks.md)
HOPPER = 90  # the capability of the GPUs that they were measured on
BLACKWELL = 100  # the first capability on which SGLang gives FP8 weights other scales after loading
_SCALES = "NVTE_FP8_BLOCK_SCALING_FP32_SCALES"  # Transformer Engine's: 1: a block's scale is amax / 448


@dataclass(frozen=True)
class Recipe:
    """What one of Transformer Engine's FP8 recipes needs of a GPU."""

    least: int  # CUDA's compute capability x 10
    named: str  # the generation that it came with
    below: int = 1 << 16  # the first capability that lacks it again
    cuda: tuple[int, int] | None = None  # that torch must be built for

    def on(self, capability: int) -> bool:
        """Whether a GPU has it."""
        return self.least <= capability < self.below


RECIPES = {
    "delayed": Recipe(89, "Ada or Hopper"),
    "tensorwise": Recipe(89, "Ada or Hopper"),
    "blockwise": Recipe(90, "Hopper", cuda=(12, 9)),
    "mxfp8": Recipe(100, "Blackwell (B200)", below=120),
}


def recipes(on: Hardware) -> list[str]:
    """The recipes that a GPU has."""
    return [name for name, recipe in RECIPES.items() if recipe.on(on.capability)]


def check_precision(fp8: str, on: Hardware, cuda: tuple[int, int] | None) -> list[str]:
    """Why a GPU cannot compute with a recipe; ``cuda``: what torch is built for, None where that is not known."""
    if fp8 not in RECIPES or not on.capability:
        return []
    recipe, rather = RECIPES[fp8], recipes(on)
    found, instead = [], f"actor.fp8={rather[-1]}" if rather else "actor.fp8=none"
    if on.capability < recipe.least:
        found.append(
            f"actor.fp8={fp8} needs a GPU of {recipe.named} or later, and the {on.name} is older: use {instead}."
        )
    elif not recipe.on(on.capability):
        found.append(
            f"actor.fp8={fp8} is not among the products of the {on.name} (compute capability {on.capability / 10}): "
            f"use {instead}."
        )
    elif recipe.cuda and cuda and cuda < recipe.cuda:
        wanted, there = (".".join(map(str, version)) for version in (recipe.cuda, cuda))
        found.append(f"actor.fp8={fp8} needs torch for CUDA {wanted} or later; it is for {there}. Use tensorwise.")
    return found


def check_weights(fp8_weights: bool, on: Hardware) -> list[str]:
    """Why a GPU cannot have the layers' weights in FP8."""
    if not fp8_weights or on.capability < BLACKWELL:
        return []
    return [
        f"actor.fp8_weights=true is for Ada and Hopper, and the {on.name} keeps FP8 weights in another way: leave it "
        "false."
    ]


def advice(config: Config, arch: Architecture, on: Hardware) -> str:
    """The precision of a run on these GPUs, and whether another would pay."""
    fp8 = config.actor.fp8
    if config.model.dtype == "float32" or not on.gpus:
        return config.model.dtype
    if fp8 == "none" and not recipes(on):
        return "bfloat16" + (f"; the {on.name} has no FP8 products" if on.capability else "")
    if arch.experts:
        little = f"for experts of width {arch.expert_hidden} FP8 gains next to nothing"
    elif whole(arch) < PAYS:
        little = f"FP8 pays for dense models from about {PAYS / 1e9:.0f} B on, and this one has {_billions(arch)}"
    else:
        little = ""
    if fp8 == "none":
        return "bfloat16; " + (little or _gains(on))
    said = f"FP8 {fp8}" + (", weights too" if config.actor.fp8_weights else "")
    if config.actor.bf16_layers:
        said += f", the first and the last {config.actor.bf16_layers} layers in bfloat16"
    return (
        said + (f"; {unified(config, arch, on)}" if generates_fp8(config) else "") + (f"; {little}" if little else "")
    )


def _gains(on: Hardware) -> str:
    """What was measured of the recipes that a GPU has."""
    measured = " and ".join(f"actor.fp8={name} {gain} x" for name, gain in GAINS.items() if name in recipes(on))
    said = f"{measured} as fast at the 8B shape on an H200 (measured)"
    there = [name for name in recipes(on) if name != "delayed"]
    if on.capability != HOPPER:
        said += f", on the {on.name} not measured (it has {', '.join(there)})"
    return said


def generates_fp8(config: Config) -> bool:
    """Whether engines generate with FP8 weights."""
    return config.rollout.engine == "sglang" and config.rollout.sglang.fp8 and config.generates()


def block_scales(config: Config, capability: int) -> dict[str, str]:
    """What trainer ranks on such GPUs need in their environment, to scale blocks as the engines' FP8 does.

    Transformer Engine reads it when it is imported (``Float8BlockScaling`` in ``transformer_engine/common/recipe``). By
    default it multiplies a block by the largest power of two up to 448 / amax, with which weights round to other
    numbers than the engines', whose scale is amax / 448. On Blackwell, which emulates blocks, it has powers of two
    only. A value that is there already stays.
    """
    wanted = config.actor.fp8 == "blockwise" and generates_fp8(config) and capability < BLACKWELL
    return {_SCALES: os.environ.get(_SCALES, "1")} if wanted else {}


def unified(config: Config, arch: Architecture, on: Hardware) -> str:
    """Whether engines multiply with the same e4m3 weights in the same blocks as the actor."""
    if config.actor.fp8 != "blockwise":
        return "the engines' FP8 is another: blocks of 128 x 128"
    if on.capability >= BLACKWELL:
        return f"not unified with the engines' FP8: on the {on.name} SGLang quantises once more after loading"
    if cut := _cut(config, arch):
        return f"not unified with the engines' FP8: {cut}"
    if other := _other_scales():
        return f"not unified with the engines' FP8: {other} asks for other scales"
    but = f", but for {2 * config.actor.bf16_layers} of {arch.layers} layers" if config.actor.bf16_layers else ""
    return f"unified with the engines' FP8{but}: blocks of {UNIFIED} x {UNIFIED} in both"


def _cut(config: Config, arch: Architecture) -> str:
    """A width of a rank's matrices that blocks do not divide; empty where they divide all.

    Queries, keys and values are one matrix in the actor, group by group, and three in the engines.
    """
    parts = widths(config.actor, arch) | {"head_dim": arch.head_dim}
    cut = [f"{named} is {width}" for named, width in parts.items() if width % UNIFIED]
    return f"{cut[0]}, which blocks of {UNIFIED} do not divide" if cut else ""


def _other_scales() -> str:
    """The environment's answer where it asks Transformer Engine for other scales than the engines'."""
    given = os.environ.get(_SCALES, "1")
    return f"{_SCALES}={given}" if given != "1" else ""


def mismatch(config: Config) -> list[str]:
    """A warning of rollouts in FP8 whose mismatch with the actor nothing corrects."""
    if not _uncorrected(config):
        return []
    if config.actor.fp8 == "blockwise":
        return _apart(config.actor.bf16_layers) + _scaled_apart()
    actor = "in bfloat16" if config.actor.fp8 == "none" else f"with actor.fp8={config.actor.fp8}"
    return [
        f"Engines generate in FP8 (rollout.sglang.fp8=true), the actor computes {actor}, and nothing corrects what is "
        "between them: set algorithm.correction=truncated or masked, or actor.fp8=blockwise, whose blocks are theirs."
    ]


def _apart(layers: int) -> list[str]:
    """The same of ``actor.bf16_layers``, which engines compute in FP8 as all others."""
    if not layers:
        return []
    return [
        f"With actor.bf16_layers={layers} the first and the last {layers} layers are in bfloat16 in the actor and in "
        "FP8 in engines (rollout.sglang.fp8=true), and nothing corrects what is between them: set "
        "algorithm.correction=truncated or masked, or leave actor.bf16_layers at 0."
    ]


def _scaled_apart() -> list[str]:
    """The same of scales that a user's environment asks for."""
    if not (other := _other_scales()):
        return []
    return [
        f"{other} in the environment has Transformer Engine scale the blocks of actor.fp8=blockwise in another way "
        "than engines do (rollout.sglang.fp8=true), and nothing corrects what is between them: set "
        f"algorithm.correction=truncated or masked, or leave {_SCALES} out."
    ]


def mismatch_of(config: Config, arch: Architecture) -> list[str]:
    """The same of ``actor.fp8=blockwise``, where a rank's blocks are not the engines'."""
    if config.actor.fp8 != "blockwise" or not _uncorrected(config) or not (cut := _cut(config, arch)):
        return []
    whole = replace(config, actor=replace(config.actor, tensor_parallel=1, expert_tensor_parallel=1))
    cure = "" if _cut(whole, arch) else ", or lower the parallel size"
    return [
        f"With actor.fp8=blockwise {cut}, so the actor's FP8 weights are not the engines' (rollout.sglang.fp8=true), "
        f"and nothing corrects what is between them: set algorithm.correction=truncated or masked{cure}."
    ]


def mismatch_on(config: Config, on: Hardware) -> list[str]:
    """The same of ``actor.fp8=blockwise``, where GPUs make another quantisation of the engines' weights."""
    if config.actor.fp8 != "blockwise" or on.capability < BLACKWELL or not _uncorrected(config):
        return []
    return [
        f"On the {on.name} SGLang quantises the weights of rollout.sglang.fp8=true once more after loading, so they "
        "are not those of actor.fp8=blockwise, and nothing corrects what is between them: set algorithm.correction="
        "truncated or masked."
    ]


def _uncorrected(config: Config) -> bool:
    """Whether RL takes what engines generate in FP8 as it is."""
    algorithm = config.algorithm
    return generates_fp8(config) and config.run.steps > 0 and algorithm.correction == "none" and not algorithm.bypass


def _billions(arch: Architecture) -> str:
    return f"{whole(arch) / 1e9:.1f} B"
