"""Whether a run fits this machine: GPUs, memory, shared memory, disk, the run's folder. Imports no torch."""

import os
import shutil
from dataclasses import asdict
from pathlib import Path

import psutil

from megatron_rl.config import Config, RunConfig
from megatron_rl.data.files import is_local
from megatron_rl.errors import InputError
from megatron_rl.rollout.config import SGLangConfig
from megatron_rl.rollout.sglang.servers.gpus import engine_gpus
from megatron_rl.rollout.sglang.servers.process import HOST_SHARE
from megatron_rl.rollout.sglang.transport import chosen_transport
from megatron_rl.settings.footprint import Footprint, readable
from megatron_rl.settings.foresight.precision import mismatch
from megatron_rl.system import machine

_BOUNDS = ("low", "high", "explore")
_CORRECTING = ("correction_level", "correction_low", "correction_high")
_CROWDED = 4  # processes that compute on one core


def check_run_folder(run: RunConfig) -> list[str]:
    """Why the run's folder cannot be made."""
    name, path = run.name, Path(run.folder) / run.name
    if not name or name != Path(name).name or name in ("..", "latest") or name.startswith("."):
        return [f"run.name is {name!r}; it must be the name of one folder, not starting with a dot."]
    longest = os.pathconf(_existing(path.parent), "PC_NAME_MAX")
    if len(os.fsencode(name)) > longest:
        return [f"run.name has {len(os.fsencode(name))} bytes; a name on this file system has {longest} at most."]
    existing = _existing(path)
    if not existing.is_dir():
        return [
            f"The run's folder {path} cannot be created: {existing} is a file. Choose another run.folder or run.name."
        ]
    if not os.access(existing, os.W_OK | os.X_OK):
        return [f"The run's folder {path} cannot be written: there is no permission to write in {existing}."]
    return []


def check_fit(config: Config, needed: Footprint) -> list[str]:
    """What this machine lacks for a run that needs at least so much; of one that is elsewhere, which GPUs it lacks."""
    if machine.elsewhere():
        return _gpus(config, needed)
    return _gpus(config, needed) + _memory(config, needed) + machine.shared_memory_problems() + _disk(config, needed)


def warnings(config: Config) -> list[str]:
    """What works, but surely not as it was meant."""
    gpus, found = len(machine.gpus()), mismatch(config)
    sglang = config.rollout.sglang
    if config.rollout.engine == "embedded" and config.generates():
        unused = [key for key, value in asdict(SGLangConfig()).items() if getattr(sglang, key) != value]
        if unused:
            found.append(
                f"rollout.sglang.{', .'.join(unused)} {'do' if unused[1:] else 'does'} nothing with "
                "rollout.engine=embedded: leave it out, or set rollout.engine=sglang."
            )
    if gpus and config.rollout.engine == "embedded" and config.generates():
        found.append(
            f"rollout.engine=embedded generates on the CPU, and the trainer computes on {_counted(gpus, 'GPU')}: "
            "nearly all of the time will go there. rollout.engine=sglang generates on GPUs."
        )
    cores, nodes = machine.cores(), max(config.launch.nodes, 1)
    started = config.rollout.engines if config.generates() and not sglang.urls else 0
    here = (config.actor.sizes().world + started) // nodes
    if not gpus and not machine.elsewhere() and here > _CROWDED * cores:
        found.append(
            f"{here:,} ranks and engines would share {_counted(cores, 'core')} of this machine, which has no GPU: they "
            "will wait for each other most of the time. Lower the parallel sizes or rollout.engines, or start it where "
            "there are GPUs (check --gpu predicts that)."
        )
    return found + _idle(config) + _unlearning(config)


def _idle(config: Config) -> list[str]:
    """Files and options that nothing will use."""
    stages = {
        "sft": (config.sft.data.path, config.sft.steps),
        "preference": (config.preference.data.path, config.preference.steps),
        "reward_model": (config.reward_model.data.path, config.reward_model.steps),
    }
    found = [
        f"{name}.data.path={path} does nothing without {name}.steps: set it, or leave the path out."
        for name, (path, steps) in stages.items()
        if path and not steps
    ]
    data, algorithm, lora = config.data, config.algorithm, config.actor.lora
    curriculum, by_column = data.curriculum, data.curriculum.by == "column"
    by_steps, corrected = by_column and curriculum.schedule == "step", algorithm.correction != "none"
    hub, own = "a data set of the hub in data.path", config.rollout.engine == "embedded"
    switched = [  # where, its options that need something, whether that is so, what it is
        ("actor.lora", lora, ("alpha", "targets"), lora.rank > 0, "actor.lora.rank"),
        ("data", data, ("subset", "split"), not (data.path and is_local(data.path)), hub),
        ("data.curriculum", curriculum, ("hard", "schedule", "start", "until"), by_column, "data.curriculum.by=column"),
        ("data.curriculum", curriculum, ("stages",), by_steps, "data.curriculum.by=column and .schedule=step"),
        ("data.curriculum", curriculum, _BOUNDS, curriculum.by == "accuracy", "data.curriculum.by=accuracy"),
        ("algorithm", algorithm, _CORRECTING, corrected, "algorithm.correction"),
        ("rollout.embedded", config.rollout.embedded, ("true_on_policy",), own, "rollout.engine=embedded"),
    ]
    return found + [
        f"{where}.{name} does nothing without {switch}: set it, or leave it out."
        for where, group, names, used, switch in switched
        for name in names
        if not used and getattr(group, name) != getattr(type(group)(), name)
    ]


def _unlearning(config: Config) -> list[str]:
    """What a stage hardly learns anything with."""
    updates = config.run.steps * config.algorithm.minibatches * config.algorithm.epochs
    stages = {
        "sft_optimizer": (config.sft_optimizer, config.sft.steps),
        "preference_optimizer": (config.preference_optimizer, config.preference.steps),
        "reward_model_optimizer": (config.reward_model_optimizer, config.reward_model.steps),
        "actor.optimizer": (config.actor.optimizer, updates),
    }
    found = [
        f"{key}.warmup_steps={optimizer.warmup_steps} is more than the {steps:,} updates that there are: the rate ends "
        f"at {optimizer.lr * steps / optimizer.warmup_steps:.2g}, not at {optimizer.lr:g}."
        for key, (optimizer, steps) in stages.items()
        if 0 < steps < optimizer.warmup_steps
    ]
    if config.run.steps and config.rollout.top_k == 1 and config.rollout.group_size > 1:
        found.append(
            "rollout.top_k=1 draws the most probable token alone, so the completions of a prompt are all alike: leave "
            "it at 0."
        )
    return found


def _gpus(config: Config, needed: Footprint) -> list[str]:
    found, gpus, world = [], machine.gpus(), len(needed.ranks)
    nodes = max(config.launch.nodes, 1) - config.launch.rollout_nodes
    if gpus and nodes > 0 and world > len(gpus) * nodes:
        one = "the machine has" if machine.elsewhere() else "this machine has"
        have = one if nodes == 1 else f"{nodes} nodes have"
        found.append(
            f"The parallel sizes make {world} ranks (tensor x pipeline x context x data), and {have} "
            f"{_counted(len(gpus) * nodes, 'GPU')} to give each rank one: lower a size."
        )
    if config.actor.fp8 != "none" and config.model.dtype != "bfloat16":
        found.append(f"actor.fp8={config.actor.fp8} needs model.dtype=bfloat16; it is {config.model.dtype}.")
    if config.actor.fp8 != "none" and not gpus:
        found.append(f"actor.fp8={config.actor.fp8} needs an NVIDIA GPU; there is none. Use actor.fp8=none.")
    elif config.actor.fp8 != "none" and not (machine.elsewhere() or machine.installed("transformer-engine")):
        found.append(f'actor.fp8={config.actor.fp8} needs Transformer Engine: pip install "megatron-rl[te]".')
    if gpus and max(needed.ranks) > min(gpus):
        found.append(
            f"A rank needs at least {readable(max(needed.ranks))} for weights, gradients and optimiser, and a GPU has "
            f"{readable(min(gpus))}: {_cure(config, needed)}."
        )
    elif gpus and max(scoring := _scoring(config, needed)) > min(gpus):
        held = "weights" if config.actor.asleep else "weights, gradients and optimiser"
        lightest = max(a + b for a, b in zip(needed.resting, needed.frozen, strict=True))
        asleep = not config.actor.asleep and lightest <= min(gpus)
        found.append(
            f"A rank needs at least {readable(max(scoring))} while a frozen policy scores, for its weights beside the "
            f"rank's own {held}, and a GPU has {readable(min(gpus))}: {_cure(config, needed, asleep)}."
        )
    return found or (_gpus_of_engines(config, needed) if config.launch.nodes < 2 else [])


def _gpus_of_engines(config: Config, needed: Footprint) -> list[str]:
    """SGLang's servers take what a GPU has left for their cache; their weights must fit beside a rank."""
    gpus, options = machine.gpus(), config.rollout.sglang
    ranks = needed.resting if config.actor.asleep else needed.ranks
    if not options.colocated:  # the engine stays while a frozen policy scores and while the trainer learns
        ranks = tuple(map(max, needed.ranks, _scoring(config, needed)))
    held = dict(enumerate(ranks)) if gpus else {}
    servers = (
        engine_gpus(config.rollout, len(needed.ranks))
        if config.rollout.engine == "sglang" and config.generates()
        else []
    )
    for server in servers:
        for gpu in server:
            held[gpu] = held.get(gpu, 0) + needed.engine // options.tensor_parallel // (2 if options.fp8 else 1)
    for gpu, size in held.items():
        if gpu < len(gpus) and size > gpus[gpu]:
            sleeps = options.colocated and not config.actor.asleep and gpu < len(ranks)
            return [
                f"GPU {gpu} holds at least {readable(size)}, a trainer's rank and the weights of engines together, and "
                f"has {readable(gpus[gpu])}: "
                + ("set actor.asleep=true, " if sleeps and size - ranks[gpu] + needed.resting[gpu] <= gpus[gpu] else "")
                + "shard further (actor.tensor_parallel, rollout.sglang.tensor_parallel), or start fewer engines "
                "(rollout.engines)."
            ]
    return []


def _scoring(config: Config, needed: Footprint) -> tuple[int, ...]:
    """Of each rank on a GPU, at least, while a frozen policy scores."""
    own = needed.resting if config.actor.asleep else needed.ranks
    return tuple(a + b for a, b in zip(own, needed.frozen, strict=True))


def _cure(config: Config, needed: Footprint, asleep: bool = False) -> str:
    """Which options make a rank smaller."""
    actor, sizes = config.actor, "actor.tensor_parallel, .pipeline_parallel or .data_parallel"
    if needed.experts:
        sizes = "actor.expert_parallel, .tensor_parallel, .pipeline_parallel or .data_parallel"
    less = ["actor.asleep=true"] if asleep and config.rollout.sglang.colocated and config.generates() else []
    if config.model.dtype == "bfloat16":
        less += ["actor.gradients=bfloat16"] if actor.gradients == "float32" else []
    if config.model.dtype == "bfloat16" and not actor.fp8_weights:
        less += ["actor.moments=bfloat16"] if actor.moments == "float32" and not actor.optimizer_on_host else []
        less += ["actor.optimizer_on_host=1.0"] if actor.moments == "float32" and actor.optimizer_on_host < 1 else []
    gpus, nodes = machine.gpus(), max(config.launch.nodes, 1) - config.launch.rollout_nodes
    shard, have = f"shard further ({sizes})", sum(gpus) * nodes
    if needed.together <= have:
        return shard + (f", or set {' or '.join(less)}" if less else "")
    least = {"gradients": "bfloat16", "moments": "float32", "optimizer_on_host": 1.0}
    missing = [f"actor.{name}={value}" for name, value in least.items() if getattr(actor, name) != value]
    possible = config.model.dtype == "bfloat16" and not actor.fp8_weights and needed.least <= have
    return (
        f"all ranks' take {readable(needed.together)} together, and {_counted(len(gpus) * nodes, 'GPU')} have "
        f"{readable(have)}, whatever the layout: take {-(-needed.together // min(gpus))} such GPUs or more"
        + (f", or set {' and '.join(missing)}, and {shard}" if possible else "")
    )


def _memory(config: Config, needed: Footprint) -> list[str]:
    """A machine's ranks without a GPU, weights that are shared, and engines that compute on its CPUs.

    The other machines of a run are taken to be like this one.
    """
    rollout, gpus, serving = config.rollout, machine.gpus(), config.launch.rollout_nodes
    nodes = max(config.launch.nodes, serving + 1)
    engines = -(-rollout.engines // (serving or nodes))
    available = psutil.virtual_memory().available
    # On a CPU the ranks' own memory is shared, as long as there is room for it where that has a name.
    copied = config.generates() and _shares_memory(config) and (bool(gpus) or needed.shared > machine.shared_memory())
    weights = (needed.host + needed.kept if gpus else sum(needed.ranks)) + (needed.shared if copied else 0)
    weights //= nodes - serving
    elsewhere = not config.generates() or (rollout.engine == "sglang" and (gpus or rollout.sglang.urls))
    caches = 0 if elsewhere else engines * _cache(config, needed, available)
    generating = caches + (0 if elsewhere else engines * needed.engine)
    memory = max(weights, generating) if serving else weights + generating
    if memory <= available:
        return []
    cure = "use a smaller model or fewer replicas and engines"
    if gpus and needed.host > memory / 2:
        cure = "lower actor.optimizer_on_host, or set actor.asleep=false"
    if gpus and needed.kept > memory / 2:
        cure = (
            f"of it {readable(needed.kept)} are frozen weights, a copy for each replica: lower actor.data_parallel, or "
            "use a smaller model"
        )
    if caches > memory / 2:
        cure = "lower rollout.max_running, rollout.max_new_tokens or data.max_prompt_tokens"
    return [
        f"The run needs at least {readable(memory)} of memory ({needed.parameters / 1e6:.1f} million parameters, "
        f"{readable(caches)} for keys and values of sequences that are generated), and {readable(available)} are free: "
        f"{cure}."
    ]


def _cache(config: Config, needed: Footprint, available: int) -> int:
    """An engine's on a CPU; an SGLang server bounds it by a share of the memory."""
    share = config.rollout.sglang.args.get("mem_fraction_static", HOST_SHARE)
    if config.rollout.engine == "sglang" and isinstance(share, float):
        return min(needed.cache, int(share * available))
    return needed.cache


def _shares_memory(config: Config) -> bool:
    """Whether weights go to the engines through shared memory: not out of GPUs, over a network or through files."""
    if config.rollout.engine == "embedded":
        return True
    try:
        return chosen_transport(config.rollout.sglang, [machine.place()]) == "shared_memory"
    except InputError:  # of a server's address, which the room's own check reports
        return False


def _disk(config: Config, needed: Footprint) -> list[str]:
    kept = config.run.keep + 1 if config.run.save_every else 1  # a new one is complete before an old one goes
    disk = kept * needed.checkpoint + needed.export * (config.run.export + bool(config.model.architecture))
    existing = _existing(Path(config.run.folder))
    free = shutil.disk_usage(existing).free
    if disk <= free:
        return []
    if not os.statvfs(existing).f_blocks:
        return [f"run.folder is {config.run.folder}, and {existing} keeps no files: choose another run.folder."]
    return [
        f"The run writes up to {readable(disk)} to {config.run.folder} ({_counted(kept, 'checkpoint')} of "
        f"{readable(needed.checkpoint)}), and {readable(free)} are free: lower run.keep, or choose another run.folder."
    ]


def _existing(path: Path) -> Path:
    """The nearest folder above that is there already, or the path itself."""
    while not path.exists() and path != path.parent:
        path = path.parent
    return path


def _counted(count: int, what: str) -> str:
    return f"{count} {what}{'' if count == 1 else 's'}"
