"""Violations of the options of the data. Imports no torch; the rows are checked when the task is made."""

from difflib import get_close_matches
from pathlib import Path

from megatron_rl.data.config import DataConfig
from megatron_rl.data.files import file_problem, is_local
from megatron_rl.data.multiple_choice import DERIVE
from megatron_rl.data.prompts import PROMPTS
from megatron_rl.data.registry import check_options, file_columns, find_task
from megatron_rl.data.rows import BAD_ROWS
from megatron_rl.errors import InputError

CHOICES = {"prompt": PROMPTS, "derive_options": DERIVE, "bad_rows": BAD_ROWS}


def check_data(data: DataConfig) -> list[str]:
    """Every violation, one sentence each; empty when there is none."""
    found = []
    for key, allowed in CHOICES.items():
        if (value := getattr(data, key)) not in allowed:
            found.append(f"data.{key} is {value!r}; it must be {', '.join(allowed[:-1])} or {allowed[-1]}.")
    if data.limit < 0:
        found.append(f"data.limit is {data.limit}; it must be 0 (all rows) or more.")
    if data.max_prompt_tokens < 1:
        found.append(f"data.max_prompt_tokens is {data.max_prompt_tokens}; it must be 1 or more.")
    try:
        find_task(data.task)
    except InputError as error:
        return [*found, str(error)]
    if columns := file_columns(data):
        found += _check_files(data) + _check_columns(data, columns)
    return found + check_options(data)


def _check_files(data: DataConfig) -> list[str]:
    found = []
    if not data.path:
        found.append("data.path is empty; set it to a training file (.parquet .jsonl .json .csv) or a hub id.")
    for key in ("path", "eval_path"):
        path = getattr(data, key)
        if path and is_local(path) and (problem := file_problem(Path(path))):
            found.append(f"data.{key}: {problem}")
    return found


def _check_columns(data: DataConfig, known: tuple[str, ...]) -> list[str]:
    found = []
    for ours, theirs in data.columns.items():
        if ours in known:
            continue
        if theirs in known:
            hint = f" It is the other way round: data.columns.{theirs}={ours}."
        else:
            near = get_close_matches(ours, known, n=1)
            hint = f" Did you mean {near[0]}?" if near else ""
        named = [name for name in known if not name.startswith("option_")]
        named += ["option_a, option_b, …"] if len(named) < len(known) else []
        found.append(
            f"data.columns.{ours}: data.task={data.task} has no column {ours}.{hint} It has {', '.join(named)}."
        )
    return found
