"""Violations of the options of the data. Imports no torch; the rows are checked when the task is made."""

from difflib import get_close_matches
from pathlib import Path

from megatron_rl.data.config import DataConfig
from megatron_rl.data.files import file_problem, is_local
from megatron_rl.data.registry import check_options, file_columns, find_task
from megatron_rl.errors import InputError


def check_data(data: DataConfig) -> list[str]:
    """What is wrong beside the values of single options, one sentence each; empty when nothing is."""
    found: list[str] = []
    try:
        find_task(data.task)
    except InputError as error:
        return [*found, str(error)]
    if columns := file_columns(data):
        found += _check_files(data) + _check_columns(data, columns)
    return found + check_options(data)


def _check_files(data: DataConfig) -> list[str]:
    found = []
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
