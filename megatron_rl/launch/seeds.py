"""The same configuration with several seeds, one run after the other (``megatron-rl train --seeds``)."""

import copy
import re
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from megatron_rl.config import Config
from megatron_rl.errors import InputError, RunError
from megatron_rl.launch.job import follow, launch
from megatron_rl.launch.nodes import Nodes
from megatron_rl.system.processes import BAD_INPUT, ERROR_PREFIX, FAILED, program
from megatron_rl.tracking.metrics import rows
from megatron_rl.tracking.run_folder import RunFolder

MOST = 1000
_LAST = {"rl": ("reward", "accuracy"), "eval": ("sampled/correct", "greedy/correct")}  # what a line says of a run


def read_seeds(text: str) -> list[int]:
    """``0:5`` (0 to 4) and ``1,3,7``, or both together. Raises InputError for anything else."""
    found: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"\s*(\d{1,18})(?::(\d{1,18}))?\s*", part)
        first, end = (int(match[1]), int(match[2]) if match[2] else int(match[1]) + 1) if match else (0, 0)
        if not first < end <= first + MOST:
            raise InputError(f"--seeds {text}: write 0:5 for the seeds 0 to 4, or 1,3,7; {part.strip()!r} is neither.")
        found += range(first, end)
    if len(set(found)) < len(found):
        raise InputError(f"--seeds {text}: a seed is there twice.")
    return found


def of_seed(config: Config, seed: int) -> Config:
    """The configuration of one of the runs: with its seed, in {name}-seed{seed}, which goes on if it is there."""
    made = copy.deepcopy(config)
    made.run.seed, made.run.name, made.run.resume = seed, f"{config.run.name}-seed{seed}", "auto"
    return made


def follow_seeds(config: Config, seeds: Sequence[int], nodes: Nodes) -> int:
    """Take part in one after the other, on another node than the first; the exit code of the first that failed."""
    for seed in seeds:
        if code := follow(of_seed(config, seed), nodes):
            return code
    return 0


def launch_seeds(config: Config, seeds: Sequence[int], start: Callable[[Config], int] = launch) -> int:
    """Run one after the other, whatever becomes of those before, and say how each ended; until a signal comes.

    Returns the exit code of the first that failed, else 0.
    """
    codes: dict[int, int] = {}
    for seed in seeds:
        print(f"\nSeed {seed} ({len(codes) + 1} of {len(seeds)})", flush=True)
        try:
            codes[seed] = start(of_seed(config, seed))
        except (InputError, RunError) as error:
            print(f"{ERROR_PREFIX}{error}", file=sys.stderr, flush=True)
            codes[seed] = BAD_INPUT if isinstance(error, InputError) else FAILED
        if codes[seed] > 128:
            break
    folders = {seed: Path(config.run.folder) / of_seed(config, seed).run.name for seed in seeds}
    print("\n" + "\n".join(ended(folders[seed], codes.get(seed)) for seed in seeds))
    if begun := [str(folders[seed]) for seed in seeds if RunFolder(folders[seed]).metrics_file.exists()]:
        print(f"Compare them: {program()} report {shlex.join(begun)}", flush=True)
    return next((code for code in codes.values() if code), 0)


def ended(folder: Path, code: int | None) -> str:
    """How a run of several ended, and its last numbers, in a line."""
    how = "not started" if code is None else "complete" if code == 0 else f"exit code {code}"
    last = {row["stage"]: row for row in rows(file)} if (file := RunFolder(folder).metrics_file).exists() else {}
    told = [
        f"{'held-out ' if stage == 'eval' else ''}{name.replace('/', ' ')} {last[stage][name]:.3f}"
        for stage, names in _LAST.items()
        for name in names
        if name in last.get(stage, {})
    ]
    return ", ".join([f"{folder}: {how}", *told])
