"""``megatron-rl data select``: rows to learn from, made of what a run has drawn."""

import argparse
import json
from pathlib import Path

from megatron_rl.config import Config
from megatron_rl.data.sets.selection import Selection, select
from megatron_rl.errors import InputError
from megatron_rl.system.files import require_new, write_text
from megatron_rl.tracking.metrics import rows
from megatron_rl.tracking.run_folder import RunFolder

EPILOG = """\
examples:
  megatron-rl data select runs/quickstart --reward-at-least 1 --out good.jsonl
  megatron-rl data select runs/quickstart --reward-at-least 1 --best-of 1 --out best.jsonl
  megatron-rl data select runs/quickstart --reward-at-least 1 --pairs --out pairs.jsonl

The first two make rows for sft.data.path, the third rows for preference.data.path.
--best-of and --pairs choose among the completions of a prompt that the run has kept, tracking.completions of a step,
evenly spread: 16, which may be one of each prompt. Keep all of a step, in the quick start's run:
  megatron-rl train quickstart tracking.completions=128
"""
NO_TWO = "no prompt has two different completions among those kept"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's options."""
    parser.formatter_class, parser.epilog = argparse.RawDescriptionHelpFormatter, EPILOG
    parser.add_argument("folder", metavar="RUN", help="the run's folder")
    parser.add_argument("--reward-at-least", type=float, required=True, metavar="X", help="what is good enough")
    parser.add_argument("--best-of", type=int, default=0, metavar="N", help="of each prompt the best N alone")
    parser.add_argument("--pairs", action="store_true", help="pairs of the best that is good enough with the worst")
    parser.add_argument("--out", required=True, metavar="FILE", help="the file to write, .jsonl; must not exist")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Write the rows, and say of how many they were selected; returns 0. Raises InputError when there are none."""
    source, out = RunFolder(options.folder), Path(options.out)
    if not source.completions_file.is_file():
        raise InputError(f"{source.completions_file} does not exist: give the folder of a run with RL steps.")
    if out.suffix != ".jsonl":
        raise InputError(f"--out {out}: the name must end in .jsonl.")
    require_new(out, f"--out {out}", "rows")
    if options.best_of < 0 or (options.best_of and options.pairs):
        raise InputError("--best-of must be 1 or more, and --pairs goes without it: they take one pair of a prompt.")
    found = select(rows(source.completions_file), options.reward_at_least, options.best_of, options.pairs)
    config = source.config()
    drawn = config.rollout.prompts_per_step * config.rollout.group_size
    print(
        f"{source.completions_file} has {found.completions:,} completions of {found.prompts:,} prompts "
        f"(tracking.completions={config.tracking.completions} of the {drawn:,} of a step; {found.cut_off:,} cut off)."
    )
    if not found.rows:
        raise InputError(_nothing(found, options, config))
    if options.best_of and found.most < 2:
        print(f"note: --best-of had no choice: {NO_TWO}. {_more(config)}")
    write_text(out, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in found.rows))
    stage = "preference" if options.pairs else "sft"
    print(f"{len(found.rows):,} {'pairs' if options.pairs else 'rows'} in {out}, for {stage}.data.path.")
    return 0


def _nothing(found: Selection, options: argparse.Namespace, config: Config) -> str:
    """Why no row was selected."""
    asked = f"--reward-at-least {options.reward_at_least:g}"
    if not options.pairs:
        if found.cut_off == found.completions:
            return "All of them were cut off, and those are left out: train with more rollout.max_new_tokens."
        return f"None of them has what is asked for with {asked}."
    lacking = NO_TWO if found.most < 2 else f"no prompt has one for {asked} and one below it among those kept"
    return f"There are no pairs: {lacking}. {_more(config)}"


def _more(config: Config) -> str:
    """How a run keeps more completions of each prompt."""
    drawn = config.rollout.prompts_per_step * config.rollout.group_size
    if config.rollout.group_size < 2 or config.tracking.completions >= drawn:
        return "Draw more of each prompt with rollout.group_size."
    return f"Train with tracking.completions={drawn}, which keeps all of a step."
