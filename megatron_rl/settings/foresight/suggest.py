"""Layouts that fit, the fastest first, by ``foreseen``. Imports no torch."""

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from megatron_rl.config import Config
from megatron_rl.errors import InputError
from megatron_rl.resharding.families.architecture import Architecture, read_architecture
from megatron_rl.resharding.layouts.megatron import fitting_ends
from megatron_rl.resharding.layouts.sglang import EngineSizes, engine_violations
from megatron_rl.settings.footprint import WEIGHT_BYTES
from megatron_rl.settings.foresight.forecast import Forecast, foreseen, spelled
from megatron_rl.settings.foresight.hardware import Hardware
from megatron_rl.settings.foresight.held import whole
from megatron_rl.settings.foresight.memory import trainer_memory
from megatron_rl.settings.foresight.seconds import learning
from megatron_rl.settings.foresight.work import Workload, workload

SHOWN = 5
_TRIED = 24  # of the trainer's best layouts for each number of nodes, which engines are tried with
_CHECKED = 100  # layouts, at most
_RECOMPUTE = ("none", "selective", "full")
_TOKENS = (4096, 8192, 16384, 32768, 65536)  # of a micro-batch
_FREE = ("actor.recompute", "actor.micro_batch_tokens")  # layouts that differ in these alone are one, its best
_FAR_APART = 3  # layouts, by which problems that are not the layout's are known
TIMES = (2, 4, 8, 16)  # as many nodes, where too few were asked about
NEEDS_GPUS = "--suggest needs GPUs whose speed is known: give --gpu and --gpus, as --gpu h100 --gpus 8."
NEEDS_RL = "--suggest is for runs with steps of RL (run.steps)."
_SPARE = 0.95  # of a GPU's memory, which a layout may take: predictions are that good


Options = Mapping[str, int | str | bool]  # by their dotted keys


@dataclass(frozen=True)
class Suggestion:
    """Options to copy, where they are not the recipe's own, and what is predicted of them."""

    options: dict[str, int | str | bool]
    forecast: Forecast

    def line(self) -> str:
        """key=value, as the command line takes them, and why."""
        written = " ".join(f"{key}={str(value).lower()}" for key, value in self.options.items())
        step = self.forecast.step
        assert step is not None
        return (
            f"{written}  # {spelled(step.step)} a step ({self.forecast.tokens_per_second:,.0f} tokens/s), "
            f"{self.forecast.peak / 1e9:.1f} of {self.forecast.on.memory / 1e9:.1f} GB"
        )


def suggest(
    config: Config,
    hf_config: Mapping[str, Any],
    on: Hardware,
    problems: Callable[[Config], Iterable[str]],
    refused: Callable[[Sequence[Options]], Sequence[Iterable[str]]],
    tokens: float | None = None,
    rollout_nodes: int | None = None,
    known: Iterable[str] = (),
    prompt: float = 0.0,
) -> tuple[list[Suggestion], list[str]]:
    """Up to ``SHOWN`` layouts that fit and are sound; with ``rollout_nodes`` nodes that only generate, where given.

    Where there are none, also what was said of one that fits; nothing when none does.

    ``problems``: what is wrong with a configuration by our rules; ``refused``: what Megatron-Core says of each of some
    layouts. ``known``: what is wrong with this configuration; of that may stay what is wrong whatever the layout is.
    Raises InputError without GPUs, or without steps of RL."""
    if not on.gpus or not on.rate(config.model.dtype):
        raise InputError(NEEDS_GPUS)
    if not config.run.steps:
        raise InputError(NEEDS_RL)
    found = list(_fitting(config, hf_config, on, tokens, rollout_nodes, prompt))
    found.sort(key=lambda each: each.forecast.step.step if each.forecast.step else 0.0)
    answers = refused([each.options for each in found[:_CHECKED]])
    taken = [each for each, said in zip(found, answers, strict=False) if not said]
    against, stay = [problem for said in answers for problem in said], set(known)
    if stay:  # layouts far apart: what is wrong with all of them is not the layout's
        for each in taken[:: max(len(taken) // _FAR_APART, 1)]:
            stay &= set(problems(applied(config, each.options)))
    chosen: dict[tuple[int | str | bool, ...], Suggestion] = {}
    for each in taken:
        layout = tuple(value for key, value in each.options.items() if key not in _FREE)
        if len(chosen) == SHOWN or layout in chosen:
            continue
        if said := set(problems(applied(config, each.options))) - stay:
            against += said
            continue
        own = {key: value for key, value in each.options.items() if value != _value(config, key)}
        chosen[layout] = replace(each, options=own)
    return list(chosen.values()), [] if chosen else against[:1]


def enough_nodes(
    config: Config,
    hf_config: Mapping[str, Any],
    on: Hardware,
    tokens: float | None = None,
    rollout_nodes: int | None = None,
) -> int:
    """Twice as many nodes as these, or four times, …: the first number on which a layout fits; 0: none does."""
    for nodes in (on.nodes * times for times in TIMES):
        if next(_fitting(config, hf_config, replace(on, nodes=nodes), tokens, rollout_nodes), None) is not None:
            return nodes
    return 0


def fits_asleep(
    config: Config,
    hf_config: Mapping[str, Any],
    on: Hardware,
    tokens: float | None = None,
    rollout_nodes: int | None = None,
) -> bool:
    """Whether a layout fits whose ranks and engines take turns, each GPU without gradients and optimiser while its
    engine generates; of a configuration of which none fits."""
    if config.actor.asleep or config.rollout.staleness or rollout_nodes:
        return False  # it is so already, or there are no turns
    lighter = applied(config, {"actor.asleep": True})
    return next(_fitting(lighter, hf_config, on, tokens, 0), None) is not None


def _fitting(
    config: Config,
    hf_config: Mapping[str, Any],
    on: Hardware,
    tokens: float | None,
    given: int | None,
    prompt: float = 0.0,
) -> Iterator[Suggestion]:
    """Layouts that fit, by prediction, whether sound or not."""
    arch, load = read_architecture(hf_config), workload(config, tokens, prompt)
    for rollout_nodes in _splits(config, on) if given is None else [given] if given < on.nodes else []:
        for trainer in _trainers(config, arch, on, load, on.total - rollout_nodes * on.gpus):
            for engine in _engines(config, hf_config, on, rollout_nodes):
                options = trainer | engine
                forecast = foreseen(applied(config, options), arch, on, load)
                if forecast.peak <= _SPARE * on.memory and forecast.running >= 1 and forecast.step is not None:
                    yield Suggestion(options, forecast)


def _value(config: Config, key: str) -> Any:
    """An option's, by its dotted key."""
    place: Any = config
    for name in key.split("."):
        place = getattr(place, name)
    return place


def applied(config: Config, options: Options) -> Config:
    """A configuration with these options, by their dotted keys. What they do not change it has in common with this."""
    changed = copy.copy(config)
    own: dict[str, Any] = {"": changed}  # groups by their keys; thousands of layouts are too many for whole copies
    for key, value in options.items():
        group, _, name = key.rpartition(".")
        setattr(_group(own, group), name, value)
    return changed


def _group(own: dict[str, Any], key: str) -> Any:
    """A group of options that is a copy of the given one's."""
    if key not in own:
        above, _, name = key.rpartition(".")
        place = _group(own, above)
        own[key] = copy.copy(getattr(place, name))
        setattr(place, name, own[key])
    return own[key]


def _splits(config: Config, on: Hardware) -> list[int]:
    """Nodes that only generate: none, where both take turns, or some, if rollouts may be older than the policy."""
    some = {n for n in (1, on.nodes // 4, on.nodes // 2, 3 * on.nodes // 4) if 0 < n < on.nodes}
    return sorted(some) if config.rollout.staleness else [0, *sorted(some)]


def _divisors(number: int, most: int) -> list[int]:
    return [n for n in range(1, min(number, most) + 1) if number % n == 0]


def _trainers(
    config: Config, arch: Architecture, on: Hardware, load: Workload, world: int
) -> list[dict[str, int | str | bool]]:
    """The trainer's layouts on so many GPUs that fit by themselves, those that learn fastest."""
    found: list[tuple[float, int, dict[str, int | str | bool]]] = []
    for options in _layouts(config, arch, on, world):
        changed = applied(config, options)
        spread = changed.actor.data_parallel
        if spread > max(load.rows // changed.algorithm.minibatches, 1):
            continue  # ranks without rows
        memory = trainer_memory(changed, arch, on)
        if memory.peak <= _SPARE * on.memory:
            _, update, _, _ = learning(changed, arch, on, load)
            found.append((update, len(found), options))
    return [options for _, _, options in sorted(found)[:_TRIED]]


def _layouts(config: Config, arch: Architecture, on: Hardware, world: int) -> Iterator[dict[str, int | str | bool]]:
    room = max(config.data.max_prompt_tokens + config.rollout.max_new_tokens, 1)
    for tensor in [n for n in _divisors(arch.heads, on.gpus) if n & (n - 1) == 0 and world % n == 0]:
        for pipeline in [n for n in _divisors(world // tensor, min(arch.layers, 32))]:
            if (ends := _ends(arch.layers, pipeline)) is None:
                continue
            for context in [n for n in _divisors(world // tensor // pipeline, 8) if n == 1 or room / n >= 2048]:
                stage = world // pipeline
                for expert in _divisors(arch.experts, stage) if arch.experts else [1]:
                    if stage % expert or expert & (expert - 1):
                        continue
                    layout: dict[str, int | str | bool] = {
                        "actor.tensor_parallel": tensor,
                        "actor.sequence_parallel": tensor > 1,
                        "actor.pipeline_parallel": pipeline,
                        "actor.first_stage": ends[0],
                        "actor.last_stage": ends[1],
                        "actor.virtual_pipeline": 1,
                        "actor.context_parallel": context,
                        "actor.expert_parallel": expert,
                        "actor.data_parallel": stage // tensor // context,
                    }
                    least = -(-room // context)
                    sizes = sorted({size for size in _TOKENS if size >= least} or {least})
                    for tokens in sizes[:3]:
                        for recompute in _RECOMPUTE:
                            yield layout | {"actor.recompute": recompute, "actor.micro_batch_tokens": tokens}


def _ends(layers: int, pipeline: int) -> tuple[int, int] | None:
    """Layers of the first and the last stage, 0 where all have as many; None where they cannot be divided."""
    if layers % pipeline == 0:
        return 0, 0
    return fitting_ends(layers, pipeline, 1)


def _engines(
    config: Config, hf_config: Mapping[str, Any], on: Hardware, rollout_nodes: int
) -> Iterator[dict[str, int | str | bool]]:
    """Engines that fill the GPUs which they may have."""
    nodes = rollout_nodes or on.nodes
    size = whole(read_architecture(hf_config)) * (1 if config.rollout.sglang.fp8 else WEIGHT_BYTES[config.model.dtype])
    tensors = [n for n in _divisors(on.gpus, on.gpus) if n & (n - 1) == 0]
    if size > _SPARE * on.memory * on.gpus:  # else the network between nodes would only make it slower
        tensors = [on.gpus * span for span in _divisors(nodes, nodes) if span > 1]
    for tensor in tensors:
        sizes = EngineSizes(tensor=tensor, expert=1)
        if not engine_violations(hf_config, sizes):
            yield {
                "launch.nodes": on.nodes if on.nodes > 1 else config.launch.nodes,
                "launch.rollout_nodes": rollout_nodes,
                "rollout.engine": "sglang",
                "rollout.engines": nodes * on.gpus // tensor,
                "rollout.sglang.tensor_parallel": tensor,
                "rollout.sglang.nodes": -(-tensor // on.gpus),
                "rollout.sglang.expert_parallel": 1,
                "rollout.sglang.colocated": rollout_nodes == 0,
            }
