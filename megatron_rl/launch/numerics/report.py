"""What ``check --numerics`` prints, and its exit code."""

import tempfile
import time
from pathlib import Path
from typing import TextIO

from megatron_rl.config import Config
from megatron_rl.launch.numerics.compare import TOLERANCE, UNITS, Comparison
from megatron_rl.launch.numerics.run import numerics
from megatron_rl.launch.numerics.shape import GROUPS, SIZE, Shape, shape
from megatron_rl.settings.footprint import read_config
from megatron_rl.system.processes import FAILED
from megatron_rl.system.supervision.screen import duration

_SHOWN = 10  # differences that are too large, of each kind


def check_numerics(recipe: str, config: Config, out: TextIO) -> int:
    """Compare, print, and return 0, or 1 where the layout computes something else than one rank.

    Raises InputError for a model or a layout that cannot be computed, RunError where a process failed.
    """
    found = shape(config, read_config(config.model))
    print(f"{recipe}: {described(found)}", file=out, flush=True)
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="numerics-", ignore_cleanup_errors=True) as folder:
        [comparison] = numerics([found], Path(folder))
    for line in table(comparison):
        print(line, file=out)
    print(f"It took {duration(time.monotonic() - started)}.", file=out)
    return FAILED if comparison.exceeding else 0


def described(found: Shape) -> str:
    """What is compared with what, in a few lines."""
    actor = found.config.actor
    sizes = {name: size for name, size in vars(found.sizes).items() if size > 1}
    layout = ", ".join(f"{name} {size}" for name, size in sizes.items()) or "one rank of its own"
    extras = [name for name in ("sequence_parallel", "packing") if getattr(actor, name)]
    extras += [f"recompute={actor.recompute}"] if actor.recompute != "none" else []
    of = f"{GROUPS * SIZE} completions" if found.config.run.steps else "one batch"
    said = (
        f"{found.sizes.world} ranks ({', '.join([layout, *extras])}) against one, sequence by sequence, on this "
        f"machine's CPU in float32; {of} of random tokens, stage {[*found.config.chain()][-1]}, random weights."
    )
    if found.smaller:
        said += "\n  made smaller: " + ", ".join(found.smaller)
    return said


def table(comparison: Comparison) -> list[str]:
    """The largest difference of each kind and where it is; below, all that exceed the tolerance."""
    lines = [f"  {'compared':<12} {'largest difference':<44} {'tolerance':<10} where"]
    for kind, tolerance in TOLERANCE.items():
        worst = comparison.of(kind)[0]
        size = f"{worst.size:.1e} {UNITS[kind]}"
        lines.append(f"  {kind:<12} {size:<44} {tolerance:<10.0e} {worst.where}, rank {worst.rank}")
    if not comparison.exceeding:
        return [*lines, "The layout computes what one rank computes."]
    lines.append("The layout does not compute what one rank computes:")
    for kind in TOLERANCE:
        wrong = [difference for difference in comparison.exceeding if difference.kind == kind]
        lines += [f"  {kind:<12} {d.size:.1e} {UNITS[kind]}: {d.where}, rank {d.rank}" for d in wrong[:_SHOWN]]
        if len(wrong) > _SHOWN:
            lines.append(f"  {kind:<12} and {len(wrong) - _SHOWN} more of {len(comparison.of(kind))}")
    return lines
