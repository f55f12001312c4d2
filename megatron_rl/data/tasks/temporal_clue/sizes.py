"""How large puzzles are: ranges of numbers, and what cannot be."""

import random
import re

from megatron_rl.data.config import PuzzlesConfig
from megatron_rl.data.tasks.temporal_clue.clues import FAMILIES
from megatron_rl.data.tasks.temporal_clue.story import MOST_TIMES, NAMES, Size, unsolvable

BOUNDS = {  # least and most of each
    "suspects": (1, len(NAMES.suspects)),
    "weapons": (1, len(NAMES.weapons)),
    "rooms": (1, len(NAMES.rooms)),
    "times": (1, MOST_TIMES),
    "motives": (0, len(NAMES.motives)),
}
_RANGE = re.compile(r"\s*(\d{1,9})\s*(?:-\s*(\d{1,9})\s*)?")


def limits(config: PuzzlesConfig) -> dict[str, tuple[int, int]]:
    """The smallest and the largest number of each; of options that ``problems`` finds nothing wrong with."""
    found = {}
    for name in BOUNDS:
        match = _RANGE.fullmatch(getattr(config, name))
        assert match
        found[name] = int(match[1]), int(match[2] or match[1])
    return found


def draw_size(rng: random.Random, config: PuzzlesConfig) -> Size:
    """A size between the limits. A puzzle that has many of one kind tends to have many of the others."""
    many = rng.random()
    sizes = {
        name: low + int((many + rng.random()) / 2 * (high - low + 1)) for name, (low, high) in limits(config).items()
    }
    return Size(**sizes)


def problems(config: PuzzlesConfig) -> list[str]:
    """What is wrong with ``data.puzzles``, a sentence each."""
    found = []
    for name, (least, most) in BOUNDS.items():
        said = f"data.puzzles.{name} is {getattr(config, name)!r}; it must be"
        match = _RANGE.fullmatch(getattr(config, name))
        if match is None:
            found.append(f"{said} a number or a range, such as 2-4.")
        elif int(match[1]) > int(match[2] or match[1]):
            found.append(f"{said} a range whose first number is the smaller one.")
        elif int(match[1]) < least or int(match[2] or match[1]) > most:
            found.append(f"{said} between {least} and {most}.")
    if unknown := [name for name in config.clues if name not in FAMILIES]:
        found.append(f"data.puzzles.clues names {', '.join(unknown)}; it can hold {', '.join(FAMILIES)}.")
    if not found:
        sizes = limits(config)
        fewest = max(sizes[name][1] for name in ("suspects", "weapons", "rooms", "motives"))
        if 0 < config.names < fewest:
            found.append(f"data.puzzles.names is {config.names}; the puzzles need {fewest} or more, or 0 for all.")
        if why := unsolvable(Size(sizes["suspects"][1], 1, sizes["rooms"][0], 1, 0)):
            found.append(
                f"data.puzzles.suspects={config.suspects} with data.puzzles.rooms={config.rooms} has no solution: {why}"
                ". Set data.puzzles.rooms to 2 or more."
            )
    return found
