"""Violations of the options of the data. Imports no torch; the rows are checked when the task is made."""

from difflib import get_close_matches
from pathlib import Path

from megatron_rl.data import false_belief
from megatron_rl.data.config import DataConfig
from megatron_rl.data.files import FORMATS, is_local
from megatron_rl.data.multiple_choice import COLUMNS, OPTION_COLUMNS
from megatron_rl.data.registry import find_task
from megatron_rl.errors import InputError


def check_data(data: DataConfig) -> list[str]:
    """Every violation, one sentence each; empty when there is none."""
    found = []
    try:
        find_task(data.task)
    except InputError as error:
        found.append(str(error))
    least = false_belief.LONGEST_PROMPT
    if data.task == "false_belief" and data.max_prompt_tokens < least:
        found.append(
            f"data.max_prompt_tokens is {data.max_prompt_tokens}; data.task={data.task} needs {least} or more."
        )
    if data.task == "multiple_choice":
        found += _check_files(data) + _check_columns(data)
    return found


def _check_files(data: DataConfig) -> list[str]:
    found = []
    if not data.path:
        found.append("data.path is empty; set it to a training file (.parquet .jsonl .json .csv) or a hub id.")
    for key in ("path", "eval_path"):
        path = getattr(data, key)
        if path and is_local(path) and not Path(path).is_file():
            found.append(f"data.{key}: the file {path} does not exist.")
        elif path and is_local(path) and Path(path).suffix not in FORMATS:
            found.append(f"data.{key}: {path} must end in {', '.join(FORMATS)}.")
    return found


def _check_columns(data: DataConfig) -> list[str]:
    known = (*COLUMNS, *OPTION_COLUMNS)
    found = []
    for name in data.columns:
        if name not in known:
            near = get_close_matches(name, known, n=1)
            found.append(
                f"data.columns.{name} is no column of ours{f'; did you mean {near[0]}?' if near else '.'} They are "
                f"{', '.join(COLUMNS)} and {OPTION_COLUMNS[0]}, {OPTION_COLUMNS[1]}, ….",
            )
    return found
