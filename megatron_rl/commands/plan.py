"""megatron-rl plan: the resharding plan of a recipe, or of any model and parallel sizes, without weights or torch."""

import argparse
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, TypeVar

from megatron_rl.commands.waiting import working
from megatron_rl.errors import InputError, refuse
from megatron_rl.resharding.families import canonical_tensors, family
from megatron_rl.resharding.families.table import stored_dtype
from megatron_rl.resharding.folders.hf import CONFIG, model_config
from megatron_rl.resharding.layout import Layout, ParallelSizes
from megatron_rl.resharding.layouts.fp8 import BLOCK, quantised_engine, quantised_names, quantised_source
from megatron_rl.resharding.layouts.megatron import layout_violations, megatron_layout
from megatron_rl.resharding.layouts.sglang import EngineSizes, engine_violations, sglang_layout
from megatron_rl.resharding.layouts.transformers import transformers_layout
from megatron_rl.resharding.plan import ITEMSIZES, Place, make_plan
from megatron_rl.resharding.proof import prove
from megatron_rl.resharding.report import FABRICS, Report, predict, traffic
from megatron_rl.system import machine
from megatron_rl.system.files import read_json

EXAMPLES = """\
examples:
  megatron-rl plan quickstart
  megatron-rl plan social_r1.tiny_rows model.path=models/tiny actor.tensor_parallel=2 --json
  megatron-rl plan --model DeepSeek-V3/config.json \\
      --actor tensor_parallel=8,pipeline_parallel=16,first_stage=4,last_stage=1,expert_parallel=16,data_parallel=2 \\
      --engine tensor_parallel=32,expert_parallel=32
"""
_KEYS = {  # what is written on the command line -> the field that it sets
    "tensor_parallel": "tensor",
    "pipeline_parallel": "pipeline",
    "virtual_pipeline": "virtual",
    "context_parallel": "context",
    "expert_parallel": "expert",
    "expert_tensor_parallel": "expert_tensor",
    "data_parallel": "data",
    "first_stage": "first_stage",
    "last_stage": "last_stage",
}
_Sizes = TypeVar("_Sizes", ParallelSizes, EngineSizes)


def add_arguments(command: argparse.ArgumentParser) -> None:
    """The options of the command line."""
    command.epilog, command.formatter_class = EXAMPLES, argparse.RawDescriptionHelpFormatter
    command.add_argument("recipe", metavar="RECIPE", nargs="?", help="a recipe's name, or a .yaml file")
    command.add_argument("overrides", metavar="key=value", nargs="*", default=[], help="options to change")
    command.add_argument("--model", metavar="FILE", help="instead of a recipe: a config.json, or its folder")
    command.add_argument("--actor", metavar="SIZES", default="", help=f"the trainer's: {_keys(ParallelSizes)}")
    command.add_argument("--engine", metavar="SIZES", default="", help=f"SGLang engines': {_keys(EngineSizes)}")
    command.add_argument(
        "--fp8", action="store_true", help=f"the engines hold FP8 weights, in {BLOCK} x {BLOCK} blocks"
    )
    command.add_argument(
        "--gpus-per-host", metavar="N", type=int, help="ranks on one host (8; of a recipe without --engine: all)"
    )
    command.add_argument("--colocated", action="store_true", help="the engines run on the trainer's GPUs")
    command.add_argument("--json", action="store_true", help="print plain data")
    command.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Print the plan; returns the exit code."""
    if options.gpus_per_host is not None and options.gpus_per_host < 1:
        raise InputError(f"--gpus-per-host {options.gpus_per_host} is not positive.")
    options.started = time.perf_counter()
    with working("planning"):
        report = (_of_model if options.model else _of_recipe)(options)
    print(json.dumps(report.data(), indent=2) if options.json else report.text())
    return 0


def _of_model(options: argparse.Namespace) -> Report:
    if options.recipe:
        raise InputError(f"--model and the recipe {options.recipe} exclude each other: give one of them.")
    path = Path(options.model)
    folder = path if path.is_dir() else path.parent if path.name == CONFIG else None
    config = read_json(path, "a config.json, or its folder, is needed") if folder is None else model_config(folder)
    actor, engine = _sizes("--actor", options.actor, ParallelSizes), _sizes("--engine", options.engine, EngineSizes)
    refuse(layout_violations(config, actor, fused_norms=True) + engine_violations(config, engine))
    # Trainers of this size have GPUs, and there the layers are Transformer Engine's.
    source = megatron_layout(config, actor, fused_norms=True, grouped_experts=True)
    destination = sglang_layout(config, engine)
    dtype = stored_dtype(config) or "bfloat16"
    return _report(config, dtype, actor, source, _words(engine), destination, options)


def _of_recipe(options: argparse.Namespace) -> Report:
    from megatron_rl.settings.load import load
    from megatron_rl.settings.rules import violations

    if not options.recipe:
        raise InputError("Name a recipe (`megatron-rl recipes` lists them), or give --model, --actor and --engine.")
    if options.actor:
        raise InputError("--actor goes with --model; with a recipe write actor.tensor_parallel=2 and so on.")
    config, problems = load(options.recipe, options.overrides)
    rollout, servers = config.rollout, config.rollout.sglang
    problems += violations(rollout, "rollout.").values()
    if rollout.engine == "sglang":
        options.fp8, options.colocated = options.fp8 or servers.fp8, options.colocated or servers.colocated
    elif options.fp8 and not options.engine:
        problems.append("--fp8 needs SGLang: the embedded engine holds its weights in the model's dtype.")
    engine, named = EngineSizes(tensor=servers.tensor_parallel, expert=servers.expert_parallel), "rollout.sglang."
    if options.engine:
        engine, named = _sizes("--engine", options.engine, EngineSizes), "engine."
    hf_config, actor = config.model.architecture, config.actor.sizes()
    try:
        if config.model.path:
            hf_config = model_config(config.model.path)
        problems += layout_violations(hf_config, actor)
        if options.engine or rollout.engine == "sglang":
            problems += [problem.replace("engine.", named) for problem in engine_violations(hf_config, engine)]
    except InputError as error:  # of config.json
        problems.append(str(error))
    refuse(problems)
    fused = bool(machine.gpus() and machine.installed("transformer-engine"))
    source = megatron_layout(hf_config, actor, fused_norms=fused, grouped_experts=fused)
    if options.engine:
        return _report(
            hf_config, config.model.dtype, actor, source, _words(engine), sglang_layout(hf_config, engine), options
        )
    one, count, each = transformers_layout(hf_config), rollout.engine_count, ""
    if rollout.engine == "sglang":
        one, each = sglang_layout(hf_config, engine), f", each {_words(engine)}" if engine.tensor > 1 else ""
    engines = Layout(one.tensors, one.ranks * count, one.unused)
    # `megatron-rl train` starts all processes on one machine
    options.gpus_per_host = options.gpus_per_host or actor.world + len(engines.ranks)
    words = f"{count} {rollout.engine} engine{'s' if count > 1 else ''}{each}"
    return _report(hf_config, config.model.dtype, actor, source, words, engines, options)


def _report(
    config: Mapping[str, Any],
    dtype: str,
    actor: ParallelSizes,
    source: Layout,
    engines: str,
    destination: Layout,
    options: argparse.Namespace,
) -> Report:
    if dtype not in ITEMSIZES:
        raise InputError(f"The model's dtype is {dtype!r}; one of {', '.join(ITEMSIZES)} is needed.")
    tensors = canonical_tensors(config)
    parameters = sum(spec.elements for name, spec in tensors.items() if name not in destination.unused)
    if options.fp8:
        names = quantised_names(config)
        source, destination = quantised_source(source, names), quantised_engine(destination, names)
    trainer, workers = _places(len(source.ranks), len(destination.ranks), options.gpus_per_host or 8, options.colocated)
    plan = make_plan(source, destination, source_places=trainer, destination_places=workers)
    prove(plan, source, destination)
    moved = traffic(plan, trainer, workers, ITEMSIZES[dtype])
    sent = f"{dtype}{f', engines in FP8 blocks of {BLOCK} x {BLOCK}' if options.fp8 else ''}"
    return Report(
        model=f"{family(config).model_type}, {parameters:,} parameters, {sent}",
        trainer=f"{_count(trainer, 'rank')} on {_hosts(trainer)}: {_words(actor)}",
        engines=f"{_count(workers, 'worker')} on {_hosts(workers)}: {engines}",
        plan=plan,
        moved=moved,
        predictions=tuple(predict(moved, fabric) for fabric in FABRICS),
        seconds=time.perf_counter() - options.started,
    )


def _places(ranks: int, workers: int, per_host: int, colocated: bool) -> tuple[list[Place], list[Place]]:
    """(host, device) of every trainer rank and engine worker, hosts filled in the order of ranks.

    Engines have hosts of their own unless all fit on one.
    """
    first = 0 if colocated else ranks if ranks + workers <= per_host else -(-ranks // per_host) * per_host
    places: list[Place] = [divmod(n, per_host) for n in range(max(ranks, first + workers))]
    return places[:ranks], places[first : first + workers]


def _count(places: Sequence[Place], what: str) -> str:
    return f"{len(places)} {what}{'s' if len(places) > 1 else ''}"


def _hosts(places: Sequence[Place]) -> str:
    hosts = sorted({place[0] for place in places})  # type: ignore[type-var]
    return f"host {hosts[0]}" if len(hosts) == 1 else f"hosts {hosts[0]} to {hosts[-1]}"


def _names(cls: type) -> dict[str, str]:
    """What may be written -> field, of these sizes."""
    known = {field.name for field in fields(cls)}
    return {key: name for key, name in _KEYS.items() if name in known}


def _keys(cls: type) -> str:
    return ", ".join(f"{key}=N" for key in _names(cls))


def _sizes(option: str, text: str, cls: type[_Sizes]) -> _Sizes:
    """The sizes that "tensor_parallel=8,data_parallel=2" means."""
    names, found = _names(cls), {}
    for item in filter(None, text.split(",")):
        key, _, number = item.partition("=")
        name = names.get(key.strip())
        if name is None or not number.strip().isdecimal():
            raise InputError(f"{option} {item!r} is not understood; write {_keys(cls)}, separated by commas.")
        if name in found:
            raise InputError(f"{option} gives {key.strip()} twice; write it once.")
        found[name] = int(number)
    return cls(**found)


def _words(sizes: ParallelSizes | EngineSizes) -> str:
    """tensor_parallel 8, expert_parallel 2: what is not 1."""
    plain = type(sizes)()
    named = _names(type(sizes)).items()
    said = [f"{key} {getattr(sizes, name)}" for key, name in named if getattr(sizes, name) != getattr(plain, name)]
    return ", ".join(said) or "not sharded"
