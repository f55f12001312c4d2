"""What megatron-rl convert does: hf-to-megatron | megatron-to-hf | verify | inspect (options: ``options``)."""

import argparse
import re
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from math import prod
from pathlib import Path
from typing import Any

from megatron_rl.commands.waiting import working
from megatron_rl.errors import InputError, refuse
from megatron_rl.resharding.convert.run import Conversion, Target
from megatron_rl.resharding.convert.targets import MODEL, HfTarget, MegatronTarget
from megatron_rl.resharding.families import canonical_tensors
from megatron_rl.resharding.families.table import stored_dtype
from megatron_rl.resharding.folders.hf import model_config, open_stored, quantised, read_hf_config
from megatron_rl.resharding.folders.mistaken import checkpoints
from megatron_rl.resharding.folders.stored import FP8, ITEMSIZES, TORCH_DTYPES, Stored, UnlikeError
from megatron_rl.resharding.folders.torch_dist.reader import is_torch_dist, open_torch_dist
from megatron_rl.resharding.folders.torch_dist.writer import target_sizes
from megatron_rl.resharding.layouts.fp8 import quantised_names
from megatron_rl.resharding.layouts.megatron import layout_violations

SHORT = {name: short for short, name in TORCH_DTYPES.items()}
SMALL_SHARD, LARGE_SHARD = 1 << 28, 5 * 10**9  # bytes of a file where nothing else is asked for
DIFFERENT = 1  # exit code of verify


def _one_torch_thread() -> None:
    """Casts run in threads of our own."""
    import torch

    torch.set_num_threads(1)


def _options_wrong(options: argparse.Namespace) -> list[str]:
    problems = []
    if options.threads < 1:
        problems.append(f"--threads={options.threads} is not positive.")
    if options.buffer_size < 1 << 20:
        problems.append(f"--buffer-size={options.buffer_size} is less than 1MiB.")
    if getattr(options, "max_shard_size", None) == 0:
        problems.append("--max-shard-size=0 leaves no room for a tensor.")
    return problems


def _model_folder(checkpoint: Path, named: Path | None) -> Path:
    """The Hugging Face folder that describes a Megatron checkpoint: named, inside it, or of the run that wrote it."""
    found = named or _own_model(checkpoint)
    if found is not None:
        return found
    raise InputError(
        f"{checkpoint} does not say of which model it is: name the model's Hugging Face folder (--model), from which "
        f"config.json and the tokenizer are taken."
    )


def _own_model(checkpoint: Path) -> Path | None:
    """The model that a Megatron checkpoint itself says to be of; None when it says nothing."""
    choices = [checkpoint / MODEL]
    if (checkpoint.absolute().parent.parent / "config.yaml").is_file():
        from megatron_rl.tracking.run_folder import RunFolder  # OmegaConf

        run = RunFolder(checkpoint.absolute().parent.parent)
        with suppress(InputError):  # a configuration of another version
            choices.append(run.model_folder())
        choices += [run.initial_model, run.export]
    return next((folder for folder in choices if (folder / "config.json").is_file()), None)


def _open(folder: Path, hf_config: Mapping[str, Any]) -> Stored:
    if is_torch_dist(folder):
        with working(f"reading {folder}", "chunks") as found:
            return open_torch_dist(folder, hf_config, found)
    return open_stored(folder, hf_config, fp8=quantised(hf_config))


def _dtypes(stored: Stored, dtype: str | None, fp8: bool = False) -> dict[str, str]:
    """Canonical name -> dtype of the target. A tensor whose family fixes its dtype keeps what it has."""
    quantise = quantised_names(stored.hf_config) if fp8 else set()
    plain = SHORT.get(str(stored_dtype(stored.hf_config)), "BF16")  # what FP8 becomes when nothing else is asked for
    chosen = {}
    for name, have in stored.dtypes.items():
        wanted = SHORT[dtype] if dtype and not stored.layout.tensors[name].dtype else have
        chosen[name] = FP8 if name in quantise else plain if wanted == FP8 else wanted
    return chosen


def to_megatron(options: argparse.Namespace) -> int:
    hf_config = model_config(options.source)
    canonical_tensors(hf_config)
    sizes = target_sizes(
        options.tensor_parallel,
        options.pipeline_parallel,
        options.expert_parallel,
        options.expert_tensor_parallel,
        options.first_stage,
        options.last_stage,
    )
    violations = layout_violations(hf_config, sizes, fused_norms=True)
    refuse(_options_wrong(options) + [_as_options(text) for text in violations])
    source = open_stored(options.source, hf_config, fp8=quantised(hf_config))
    return _convert(options, source, lambda: MegatronTarget(source, sizes, _dtypes(source, options.dtype)))


def _as_options(text: str) -> str:
    """A layout's violation in the command line's words."""
    return re.sub(r"(?:actor\.)(\w+)", lambda found: "--" + found[1].replace("_", "-"), text)


def to_hf(options: argparse.Namespace) -> int:
    refuse(_options_wrong(options))
    if not is_torch_dist(options.source):
        inside = checkpoints(options.source)
        raise InputError(f"{options.source} is no torch_dist checkpoint: it has no .metadata.{inside}")
    model = _model_folder(options.source, options.model)
    hf_config = read_hf_config(model)
    source = _open(options.source, hf_config)
    dtypes = _dtypes(source, options.dtype, options.fp8)
    sizes = (spec.elements * ITEMSIZES[dtypes[name]] for name, spec in source.layout.tensors.items())
    limit = options.max_shard_size or min(max(sum(sizes) // options.threads + 1, SMALL_SHARD), LARGE_SHARD)
    return _convert(options, source, lambda: HfTarget(source, dtypes, model, limit))


def _convert(options: argparse.Namespace, source: Stored, make: Callable[[], Target]) -> int:
    with working("planning"):
        target = make()
        conversion = Conversion(source, target, buffer=options.buffer_size, threads=options.threads)
    if source.dtypes != target.stored.dtypes:
        _one_torch_thread()
    with working("converting", "bytes", conversion.weight_bytes) as progress:
        resumed = conversion.run(options.target, progress, sync=not options.no_sync)
    took = time.perf_counter() - options.started
    again = " (continued where it was)" if resumed else ""
    count = len(target.files)
    print(
        f"Wrote {options.target}{again}: {len(source.layout.tensors)} tensors, {conversion.file_bytes / 1e6:.0f} MB in "
        f"{count} file{'s' if count > 1 else ''}, {took:.2f} s, {conversion.file_bytes / took / 1e6:.0f} MB/s, plan "
        f"{conversion.plan.hash}"
    )
    return 0


def verify(options: argparse.Namespace) -> int:
    from megatron_rl.resharding.convert.verify import first_difference

    refuse(_options_wrong(options))
    folders = [options.first, options.second]
    models = [(options.model or _own_model(f)) if is_torch_dist(f) else f for f in folders]
    other = next((model for model in models if model is not None), None)  # of a checkpoint that says nothing of its own
    configs = [read_hf_config(_model_folder(f, model or other)) for f, model in zip(folders, models, strict=True)]
    found: object = None
    try:
        first, second = (_open(folder, config) for folder, config in zip(folders, configs, strict=True))
        if first.dtypes != second.dtypes:
            _one_torch_thread()
        with working("comparing", "bytes", sum(size for _, size in second.bytes())) as done:
            found = first_difference(first, second, buffer=options.buffer_size, threads=options.threads, progress=done)
    except UnlikeError as error:
        found = error
    if found is not None:
        print(f"{options.first} and {options.second} differ: {found}")
        return DIFFERENT
    cast = "" if first.dtypes == second.dtypes else ", after conversion to the second's dtypes"
    print(
        f"All {len(first.layout.tensors)} tensors of {options.first} and {options.second} are equal{cast}; "
        f"{time.perf_counter() - options.started:.2f} s."
    )
    return 0


def inspect(options: argparse.Namespace) -> int:
    from megatron_rl.resharding.convert.inspect import contents

    with working(f"reading {options.folder}"):
        kind, items, objects = contents(options.folder)
    width = max((len(item.name) for item in items), default=0)
    for item in items:
        shape = str(list(item.shape))
        print(f"{item.name:<{width}}  {item.dtype:<8} {shape:<28} {item.bytes:>14,} B  {item.where}")
    total, count = sum(item.bytes for item in items), sum(prod(item.shape) for item in items)
    took = time.perf_counter() - options.started
    print(f"{kind}: {len(items)} tensors, {count:,} numbers, {total:,} bytes; {len(objects)} objects; {took:.2f} s")
    return 0
