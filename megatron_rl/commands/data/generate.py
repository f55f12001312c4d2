"""``megatron-rl data generate``: generated puzzles written to a file."""

import argparse
import json
import random
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path

from megatron_rl.data.config import PuzzlesConfig
from megatron_rl.data.registry import check_options
from megatron_rl.data.tasks.temporal_clue.task import draw_puzzle, row
from megatron_rl.errors import InputError, refuse
from megatron_rl.settings.load import load
from megatron_rl.settings.rules import violations
from megatron_rl.system.files import require_new, write_text

TASKS = ("temporal_clue",)
PLAIN = "megatron_rl.config.Config"  # the options as they are without a recipe
NUMBERS = {"count": 1000, "seed": 0, "processes": 1}
SPLITS = ("train", "heldout")
CHUNK = 4  # puzzles that a process makes at a time


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's options."""
    parser.add_argument("task", metavar="TASK", choices=TASKS, help=", ".join(TASKS))
    parser.add_argument("out", metavar="FILE", help="the file to write, .jsonl; must not exist")
    about = "count=1000, seed=0, split=train or heldout, processes=1, and options such as data.puzzles.rooms=2-4"
    parser.add_argument("settings", metavar="key=value", nargs="*", default=[], help=about)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Write the rows and say what they are; returns 0. Raises InputError for what is wrong with the options."""
    out = Path(options.out)
    if out.suffix != ".jsonl":
        raise InputError(f"{out}: the name must end in .jsonl.")
    require_new(out, str(out), "puzzles")
    overrides = [item for item in options.settings if "." in item.partition("=")[0]]
    own = {item.partition("=")[0]: item.partition("=")[2] for item in options.settings if item not in overrides}
    count, seed, processes = _number(own, "count", 1), _number(own, "seed", 0), _number(own, "processes", 1)
    split = own.pop("split", "train")
    if own or split not in SPLITS:
        raise InputError(
            f"{next(iter(own), f'split={split}')!r} is none of count=N, seed=N, processes=N, split=train,"
            " split=heldout, and no option, such as data.puzzles.rooms=2-4."
        )
    config, problems = load(PLAIN, [f"data.task={options.task}", *overrides])
    refuse([*problems, *violations(config.data, "data.").values(), *check_options(config.data)])
    make = partial(line, config.data.puzzles, seed, split)
    if processes == 1:
        lines = list(map(make, range(count)))
    else:
        with ProcessPoolExecutor(processes, get_context("spawn")) as pool:
            lines = list(pool.map(make, range(count), chunksize=CHUNK))
    write_text(out, "".join(lines))
    clues = sorted(json.loads(text)["num_clues"] for text in lines)
    print(f"{len(lines):,} puzzles in {out}, of {clues[0]} to {clues[-1]} clues, mostly {clues[len(clues) // 2]}.")
    return 0


def line(config: PuzzlesConfig, seed: int, split: str, index: int) -> str:
    """A puzzle as a line of the file. It depends on these alone, however many there are and whoever makes them."""
    puzzle = draw_puzzle(random.Random(f"{seed}/{split}/{index}"), config, split == "heldout")
    return json.dumps(row(puzzle, config), ensure_ascii=False) + "\n"


def _number(given: dict[str, str], name: str, least: int) -> int:
    """Takes a number out of what was given, or its default. Raises InputError."""
    text = given.pop(name, str(NUMBERS[name]))
    if not text.isascii() or not text.isdigit() or int(text) < least:
        raise InputError(f"{name}={text}: it must be a whole number, {least} or more.")
    return int(text)
