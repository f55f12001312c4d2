"""Violations of the options of a stage's own rows. Imports no torch; the rows are checked when they are read."""

from pathlib import Path

from megatron_rl.data.files import file_problem, is_local
from megatron_rl.data.rows.messages import PROMPT_COLUMNS
from megatron_rl.data.sets.config import SetConfig
from megatron_rl.data.sets.rows import RAW_PROMPT

CONVERSATIONS = (*PROMPT_COLUMNS, RAW_PROMPT, "target", "completion", "response")
PAIRS = (*PROMPT_COLUMNS[1:], RAW_PROMPT, "prefix", "chosen", "rejected")


def check_set(options: SetConfig, key: str, columns: tuple[str, ...]) -> list[str]:
    """A sentence for each mistake. ``key``: the group of ``options``; ``columns``: those that its rows may have."""
    found = []
    if options.path and is_local(options.path) and (problem := file_problem(Path(options.path))):
        found.append(f"{key}.path: {problem}")
    for ours in options.columns:
        if ours not in columns:
            found.append(f"{key}.columns.{ours}: there is no such column. There are {', '.join(columns)}.")
    return found
