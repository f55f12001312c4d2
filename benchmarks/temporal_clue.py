"""Temporal Clue's generator: puzzles per second of one core, and whether each is unique and minimal.

    python -m benchmarks.temporal_clue [--count 1000] [data.puzzles.rooms=2-3 ...]

CP-SAT proves every puzzle anew, clue by clue, whatever the generator went by. Exits with 1 when one fails.
"""

import argparse
import random
import sys
import time

from megatron_rl.data.tasks.temporal_clue.solver import proved_unique
from megatron_rl.data.tasks.temporal_clue.task import draw_puzzle
from megatron_rl.errors import refuse
from megatron_rl.settings.load import load


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=1000, help="puzzles (default 1000)")
    parser.add_argument("overrides", nargs="*", help="key=value")
    options = parser.parse_intermixed_args()
    config, problems = load("megatron_rl.config.Config", ["data.task=temporal_clue", *options.overrides])
    refuse(problems)
    started = time.process_time()
    puzzles = [draw_puzzle(random.Random(index), config.data.puzzles, False) for index in range(options.count)]
    seconds = time.process_time() - started
    clues = sorted(len(puzzle.clues) for puzzle in puzzles)
    print(f"{options.count} puzzles of {clues[0]} to {clues[-1]} clues: {options.count / seconds:.1f} a CPU-second")
    unique = minimal = 0
    for puzzle in puzzles:
        says = [clue.says for clue in puzzle.clues]
        unique += proved_unique(puzzle.story, says)
        minimal += not any(proved_unique(puzzle.story, says[:i] + says[i + 1 :]) for i in range(len(says)))
    print(f"{unique} have one solution; of {minimal} no clue can be left out")
    sys.exit(min(unique, minimal) < options.count)


if __name__ == "__main__":
    main()
