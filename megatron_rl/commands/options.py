"""``megatron-rl options``: every option with its default, its meaning and its allowed values."""

import argparse
import textwrap
from collections.abc import Sequence

from megatron_rl.algorithms.published import PUBLISHED
from megatron_rl.errors import InputError
from megatron_rl.settings.documented import Documented, documented, groups
from megatron_rl.system.processes import program

WIDTH = 100  # columns of the list
_NO_BREAK = "\N{NO-BREAK SPACE}"
_HEAD = """\
# Options

Every option, as `megatron-rl options --markdown` prints it. On the command line they are dotted keys
(`rollout.group_size=16`); a YAML file has a mapping for each group, or the same dotted keys.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's options."""
    parser.add_argument("group", nargs="?", default="", help="only those that start so: actor, run.save …")
    parser.add_argument("--markdown", action="store_true", help="print a table for each group")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Print them; returns 0. Raises InputError when there are none of the group."""
    chosen = [option for option in documented() if option.key.startswith(options.group)]
    if not chosen:
        raise InputError(f"No option starts with {options.group!r}; `{program()} options` lists all.")
    print(markdown(chosen) if options.markdown else listing(chosen))
    if options.group in ("algorithm", "algorithm.", "algorithm.name") and not options.markdown:
        print(f"\n{algorithms()}")
    return 0


def listing(options: Sequence[Documented]) -> str:
    """A line for each, or several where the text is long: ``key=default  text [what it may be]``."""
    width = max(len(f"{option.key}={option.default}") for option in options)
    lines = []
    for option in options:
        may_be = option.range or " | ".join(option.choices)
        told = option.choices and all(name in option.text for name in option.choices)
        text = option.text if told or not may_be else f"{option.text} [{may_be.replace(' ', _NO_BREAK)}]"
        first, *rest = textwrap.wrap(text, WIDTH - width - 2, break_on_hyphens=False)
        lines.append(f"{f'{option.key}={option.default}':<{width}}  {first}")
        lines += [f"{'':<{width}}  {line}" for line in rest]
    return "\n".join(lines).replace(_NO_BREAK, " ")


def algorithms() -> str:
    """What each ``algorithm.name`` stands for, and the options that are its own where none are given."""
    lines = ["algorithm.name can be, with its own values of what is null or auto above:"]
    width = max(map(len, PUBLISHED)) + 2
    for name, found in PUBLISHED.items():
        own = ", ".join(f"{key}={value}" for key, value in found.own.items())
        for text in (found.summary, own):
            lines += [
                f"  {'' if number or text is own else name:<{width}}{line}"
                for number, line in enumerate(textwrap.wrap(text, WIDTH - width - 2, break_on_hyphens=False))
            ]
    return "\n".join(lines)


def markdown(options: Sequence[Documented]) -> str:
    """A document with a table for each group."""
    parts = [_HEAD]
    for group, text in groups().items():
        members = [option for option in options if option.key.rpartition(".")[0] == group]
        if members:
            parts.append(f"## {group}\n\n{text.replace('``', '`')}\n")
            rows = [("option", "default", "meaning", "allowed"), ("---",) * 4, *map(_cells, members)]
            parts.append("\n".join(f"| {' | '.join(row)} |" for row in rows) + "\n")
    return "\n".join(parts).rstrip("\n")


def _cells(option: Documented) -> tuple[str, str, str, str]:
    default = f"`{option.default}`" if option.default else "empty"
    may_be = ", ".join(f"`{name}`" for name in option.choices) or option.range or option.type
    return f"`{option.key}`", default, option.text.replace("|", "\\|"), may_be
