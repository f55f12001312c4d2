"""Which of a model's weights are trained: patterns over the names of its family's table. Imports no torch.

A pattern is a glob (``*`` any text, ``?`` one character, ``[0-3]`` one of these) in which ``{8-15}`` stands for any of
these whole numbers.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import translate
from functools import cache
from typing import Any

from megatron_rl.actor.config import ActorConfig
from megatron_rl.resharding.families import canonical_tensors, family
from megatron_rl.resharding.families.table import Instance, Kind, instances
from megatron_rl.resharding.layout import TensorSpec
from megatron_rl.resharding.layouts.megatron import megatron_layout

_RANGE = re.compile(r"\{(\d+)-(\d+)\}")


@dataclass(frozen=True)
class Target:
    """A matrix that LoRA adapts: one of Megatron's, with the Hugging Face tensors in it, in their order."""

    kind: Kind
    parts: dict[str, TensorSpec]

    @property
    def name(self) -> str:
        """The same at every sharding."""
        return module(next(iter(self.parts)))


def module(tensor: str) -> str:
    """The Hugging Face module of a weight."""
    return tensor.removesuffix(".weight")


def frozen_tensors(hf_config: Mapping[str, Any], patterns: Sequence[str]) -> frozenset[str]:
    """The Hugging Face tensors that ``actor.freeze`` names; a pattern after ``!`` takes out those that it matches."""
    names = list(canonical_tensors(hf_config)) if patterns else []
    found: set[str] = set()
    for pattern in patterns:
        matched = _matching(pattern.removeprefix("!"), names)
        found = found - matched if pattern.startswith("!") else found | matched
    return frozenset(found)


def targets(hf_config: Mapping[str, Any], patterns: Sequence[str]) -> list[Target]:
    """The matrices that ``actor.lora.targets`` names, which has no ``lora_problems``."""
    return [Target(i.row.kind, i.parts) for i in _linears(hf_config) if any(_named(i, p) for p in patterns)]


def trained_elements(config: ActorConfig, hf_config: Mapping[str, Any]) -> tuple[int, int]:
    """How many numbers are trained, and how many of the model's change by it; of options without ``problems``."""
    if not (rank := config.lora.rank):
        frozen = frozen_tensors(hf_config, config.freeze)
        count = sum(spec.elements for name, spec in canonical_tensors(hf_config).items() if name not in frozen)
        return count, count
    parts = [list(target.parts.values()) for target in targets(hf_config, config.lora.targets)]
    trained = sum(rank * (p[0].shape[1] + sum(spec.shape[0] for spec in p)) for p in parts)
    return trained, sum(spec.elements for p in parts for spec in p)


def problems(config: ActorConfig, hf_config: Mapping[str, Any]) -> list[str]:
    """What is wrong with ``actor.freeze`` and ``actor.lora`` for this model, a sentence or two each."""
    if config.lora.rank:
        found = lora_problems(hf_config, config.lora.targets)
        if config.freeze:
            found.append("actor.freeze is for training without adapters; actor.lora.rank > 0 freezes all weights.")
        if config.fp8 != "none":
            found.append(f"actor.fp8={config.fp8} is for training without adapters: use fp8=none or actor.lora.rank=0.")
        return found or _wide(config, hf_config) + _idle_stages(config, hf_config)
    return freeze_problems(hf_config, config.freeze) or _idle_stages(config, hf_config)


def _wide(config: ActorConfig, hf_config: Mapping[str, Any]) -> list[str]:
    """Adapters of a larger rank than the narrowest matrix that they adapt can have."""
    rank, narrow = config.lora.rank, {}
    for target in targets(hf_config, config.lora.targets):
        shapes = [spec.shape for spec in target.parts.values()]
        narrow[target.name] = min(shapes[0][1], sum(shape[0] for shape in shapes))
    name = min(narrow, key=narrow.__getitem__)
    if rank <= narrow[name]:
        return []
    return [
        f"actor.lora.rank={rank} is more than the {narrow[name]} rows or columns of {name}: lower it, or train all "
        "weights (actor.lora.rank=0)."
    ]


def _idle_stages(config: ActorConfig, hf_config: Mapping[str, Any]) -> list[str]:
    """Pipeline stages of which nothing is trained, for which Megatron has no optimiser."""
    sizes, key = config.sizes(), "actor.lora.targets" if config.lora.rank else "actor.freeze"
    if sizes.pipeline == 1 or not (config.lora.rank or config.freeze):
        return []
    frozen = frozen_tensors(hf_config, config.freeze)
    trained = {part for target in targets(hf_config, config.lora.targets) for part in target.parts}
    trained = trained if config.lora.rank else set(canonical_tensors(hf_config)) - frozen
    stages = megatron_layout(hf_config, sizes).ranks[:: sizes.stage]
    idle = [str(i) for i, shard in enumerate(stages) if not any(s.tensor in trained for s in shard.segments)]
    return (
        [f"{key} leaves nothing to train to pipeline stage {idle[0]}: lower actor.pipeline_parallel."] if idle else []
    )


def freeze_problems(hf_config: Mapping[str, Any], patterns: Sequence[str]) -> list[str]:
    """Patterns that match nothing, tensors that can only be frozen together, and a model of which nothing is left."""
    if not patterns:
        return []
    names = list(canonical_tensors(hf_config))
    found = [
        f"actor.freeze: {pattern!r} matches no tensor of the model; its names are {_examples(names)}."
        for pattern in patterns
        if not _matching(pattern.removeprefix("!"), names)
    ]
    found += [
        f"actor.freeze: {pattern!r} takes nothing out of what stands before it; to train what it names alone, write "
        f"*,{pattern}."
        for i, pattern in enumerate(patterns)
        if pattern.startswith("!")
        and (matched := _matching(pattern.removeprefix("!"), names))
        and not matched & frozen_tensors(hf_config, patterns[:i])
    ]
    frozen = frozen_tensors(hf_config, patterns)
    for instance in instances(family(hf_config), hf_config):
        left = [name for name in instance.parts if name not in frozen]
        if left and len(left) < len(instance.parts):
            found.append(
                f"actor.freeze names {_listed(name for name in instance.parts if name in frozen)} and not "
                f"{_listed(left)}, but Megatron holds them in one tensor: freeze all of them, or none."
            )
            break  # the other layers' are alike
    if frozen and len(frozen) == len(names):
        found.append("actor.freeze names every tensor of the model: nothing is left to train.")
    return found


def lora_problems(hf_config: Mapping[str, Any], patterns: Sequence[str]) -> list[str]:
    """Patterns that match no matrix, experts' matrices, and matrices that can only be adapted together."""
    linears, found = list(_linears(hf_config)), []
    known = dict.fromkeys(name.rpartition(".")[2] for i in linears if not i.row.per_expert for name in _names(i))
    if not patterns:
        found.append(f"actor.lora.targets is empty; it can name {_listed(known)}.")
    for pattern in patterns:
        matched = [(instance, parts) for instance in linears if (parts := _named(instance, pattern))]
        if not matched:
            found.append(
                f"actor.lora.targets: {pattern!r} matches no matrix of the model; it can name {_listed(known)}."
            )
        if any(instance.row.per_expert for instance, _ in matched):
            allowed = list(dict.fromkeys(_names(i)[0].rpartition(".")[2] for i in linears if not i.row.per_expert))
            found.append(
                f"actor.lora.targets: {pattern!r} names matrices of experts, which get no adapters: name others, "
                f"actor.lora.targets={','.join(allowed)}."
            )
    for instance in linears:
        adapted = {part for pattern in patterns for part in _named(instance, pattern)}
        if adapted and len(adapted) < len(instance.parts):
            own = _names(instance)[0].rpartition(".")[2]
            found.append(
                f"actor.lora.targets names {_listed(sorted(map(module, adapted)))} alone, but Megatron's {own} is "
                f"{_listed(module(part).rpartition('.')[2] for part in instance.parts)} in one matrix: name it, or all "
                "of them."
            )
            break
    return found


def _linears(hf_config: Mapping[str, Any]) -> Iterable[Instance]:
    return (i for i in instances(family(hf_config), hf_config) if i.row.linear)


def _names(instance: Instance) -> list[str]:
    """Megatron's name of a matrix (its layer's number is the model's) and those of the modules in it."""
    return [module(instance.name(instance.row.megatron)), *map(module, instance.parts)]


def _named(instance: Instance, pattern: str) -> set[str]:
    """The tensors of a matrix that a pattern names, by their whole names or by the last words of these."""
    own, *parts = _names(instance)
    either = [pattern, f"*.{pattern}"]
    if any(_matching(p, [own]) for p in either):
        return set(instance.parts)
    chosen = set().union(*(_matching(p, parts) for p in either))
    return {part for part in instance.parts if module(part) in chosen}


def _matching(pattern: str, names: Sequence[str]) -> set[str]:
    """The names that a pattern matches as a whole."""
    glob, bounds = _compiled(pattern)
    found = {name: match for name in names if (match := glob.fullmatch(name))}
    return {
        name
        for name, match in found.items()
        if all(low <= int(number) <= high for number, (low, high) in zip(match.groups(), bounds, strict=True))
    }


@cache
def _compiled(pattern: str) -> tuple[re.Pattern[str], list[tuple[int, int]]]:
    """With a group for each range, and what its number may be."""
    pieces = _RANGE.split(pattern)  # text, low, high, text, …
    bounds = [(int(low), int(high)) for low, high in zip(pieces[1::3], pieces[2::3], strict=True)]
    texts = (translate(text).removeprefix("(?s:").removesuffix(r")\Z") for text in pieces[::3])
    return re.compile(r"(\d+)".join(texts), re.DOTALL), bounds


def _examples(names: Sequence[str]) -> str:
    return f"{names[0]}, {names[1]}, … {names[-1]}"


def _listed(names: Iterable[str]) -> str:
    *first, last = names
    return f"{', '.join(first)} and {last}" if first else last
