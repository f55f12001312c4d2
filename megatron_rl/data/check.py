"""Violations of the options of the data. Imports no torch; the rows are checked when the task is made."""

from difflib import get_close_matches
from pathlib import Path

from megatron_rl.data.config import DataConfig
from megatron_rl.data.files import file_problem, is_local
from megatron_rl.data.order.mixture import parts, problems
from megatron_rl.data.order.selection import read_history
from megatron_rl.data.registry import TASKS, check_options, file_columns, find_task
from megatron_rl.errors import InputError


def check_data(data: DataConfig) -> list[str]:
    """What is wrong beside the values of single options, one sentence each; empty when nothing is."""
    if data.mixture:
        if found := problems(data):
            return found
        return [f"data.mixture.{name}: {said}" for name, part in parts(data).items() for said in _check_task(part)]
    return _check_task(data) + _check_unread(data)


def _check_task(data: DataConfig) -> list[str]:
    """One task."""
    found = _check_order(data)
    try:
        find_task(data.task)
    except InputError as error:
        return [*found, str(error)]
    if columns := file_columns(data):
        found += _check_files(data) + _check_columns(data, columns)
    return found + check_options(data)


def _check_unread(data: DataConfig) -> list[str]:
    """Files that a generator of this project would not read."""
    task = data.task.partition(":")[0]
    if task not in TASKS or file_columns(data):
        return []
    return [
        f"data.{key}={getattr(data, key)}: data.task={data.task} makes its own questions and reads no file; leave it "
        "empty, or set data.task to one of files (docs/data.md)."
        for key in ("path", "eval_path")
        if getattr(data, key)
    ]


def _check_order(data: DataConfig) -> list[str]:
    """Curriculum, selection and repetition."""
    found, curriculum, selection = [], data.curriculum, data.selection
    if curriculum.by == "column" and not curriculum.column:
        found.append("data.curriculum.by=column needs data.curriculum.column, the column that says how hard a row is.")
    if curriculum.by != "column" and curriculum.column:
        found.append(f"data.curriculum.column={curriculum.column} is used with data.curriculum.by=column only; set it.")
    if curriculum.low > curriculum.high:
        found.append(
            f"data.curriculum.low is {curriculum.low}, above data.curriculum.high, which is {curriculum.high}: no "
            "accuracy lies between them."
        )
    if selection.rank_by_accuracy_std:
        try:
            read_history(selection.rank_by_accuracy_std)
        except InputError as error:
            found.append(str(error))
    if not selection.column and (selection.least, selection.most) != (None, None):
        found.append(
            "data.selection.least and data.selection.most are used with data.selection.column only; set that, the "
            "column that they bound, or leave them."
        )
    if selection.column and (selection.least, selection.most) == (None, None):
        found.append(f"data.selection.column={selection.column} needs data.selection.least or data.selection.most.")
    if selection.key and not selection.rank_by_accuracy_std:
        found.append("data.selection.key is used with data.selection.rank_by_accuracy_std only; set that, or leave it.")
    if data.repeat_to_batch and curriculum.by != "none":
        found.append(
            f"data.repeat_to_batch={data.repeat_to_batch} fills every batch with the same examples, which leaves "
            f"nothing for data.curriculum.by={curriculum.by} to choose; set one of them to 0 or none."
        )
    if data.repeat_to_batch and 0 < selection.count < data.repeat_to_batch:
        found.append(
            f"data.repeat_to_batch is {data.repeat_to_batch}, more than data.selection.count ({selection.count}) "
            "leaves: lower it."
        )
    return found


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
