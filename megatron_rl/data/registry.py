"""Tasks by name."""

import importlib
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

from megatron_rl.data.config import DataConfig
from megatron_rl.data.order.mixture import mix, parts
from megatron_rl.data.task import UNBOUNDED, Task
from megatron_rl.errors import InputError
from megatron_rl.system import named

TASKS = {
    "false_belief": "megatron_rl.data.tasks.false_belief.make_false_belief",
    "higher_order_belief": "megatron_rl.data.tasks.higher_order_belief.make_higher_order_belief",
    "math_problems": "megatron_rl.data.tasks.math_problems.make_math_problems",
    "multiple_choice": "megatron_rl.data.tasks.multiple_choice.make_multiple_choice",
    "prompt_answer": "megatron_rl.data.tasks.prompt_answer.make_prompt_answer",
    "reasoning_gym": "megatron_rl.data.tasks.reasoning_gym.make_reasoning_gym",
    "social_iqa": "megatron_rl.data.tasks.social_iqa.make_social_iqa",
    "social_situations": "megatron_rl.data.tasks.social_situations.make_social_situations",
    "staged_situations": "megatron_rl.data.tasks.staged_situations.make_staged_situations",
    "stepwise_sums": "megatron_rl.data.tasks.stepwise_sums.make_stepwise_sums",
    "temporal_clue": "megatron_rl.data.tasks.temporal_clue.task.make_temporal_clue",
}


def make_task(config: DataConfig, seed: int, tokenizer: Any) -> Task:
    """The task that ``data.task`` names, or those of ``data.mixture`` as one, with every row of their files checked.

    ``tokenizer`` is the model's. Raises InputError for an unknown task, for bad data, and with what a user's function
    raises.
    """
    if config.mixture:
        return mix(config, lambda part: make_task(part, seed, tokenizer))
    make = find_task(config.task)
    if config.task in TASKS or _generator(config.task):
        return make(config, seed, tokenizer)
    task = named.call(f"data.task={config.task!r}", make, config, seed, tokenizer)
    missing = [name for name in ("train", "heldout", "fingerprint", "report") if not hasattr(task, name)]
    if missing:
        raise InputError(f"data.task={config.task!r} makes a {type(task).__name__} without {', '.join(missing)}.")
    if not len(task.train) and not len(task.heldout):
        raise InputError(f"data.task={config.task!r} has no examples.")
    return task


def require_targets(task: Task) -> None:
    """Raises InputError when a training example has no target to imitate (of a generator, the first is looked at)."""
    count = 1 if len(task.train) == UNBOUNDED else len(task.train)
    without = next((task.train[i].id for i in range(count) if not task.train[i].target), None)
    if without is not None:
        raise InputError(
            f"sft.steps asks for a warm start, but the training example {without} has no target to imitate. Give the "
            "data file a column 'target' with a completion for every row, or set sft.steps=0."
        )


def write_tokenizer(config: DataConfig, folder: str | Path) -> None:
    """Write the task's own tokenizer, for a model that starts from ``model.architecture``.

    It is the function ``write_tokenizer(folder)`` beside the task's function. Raises InputError when there is none.
    """
    writer = _beside(config.task, "write_tokenizer")
    if writer is None:
        raise InputError(
            f"data.task={config.task} brings no tokenizer, so a model cannot start from model.architecture alone. Set "
            "model.path to a Hugging Face folder with a tokenizer; tools/make_tiny_model.py writes a small random one."
        )
    writer(folder)


def check_options(config: DataConfig) -> list[str]:
    """What the function ``check_options(config)`` beside the task's function finds; nothing where there is none."""
    check = _beside(config.task, "check_options")
    return check(config) if check else []


def file_columns(config: DataConfig) -> tuple[str, ...]:
    """The columns that a task made from files knows (``COLUMNS`` beside its function); none for other tasks."""
    return tuple(_beside(config.task, "COLUMNS") or ())


def trains_on_files(config: DataConfig) -> bool:
    """Whether the training examples are rows of a file: always, or with data.path where the task can make them."""
    try:
        return bool(file_columns(config)) and (bool(config.path) or _beside(config.task, "HELDOUT") is None)
    except InputError:  # there is no such task
        return False


def held_out(config: DataConfig) -> int | None:
    """How many questions the task keeps for evaluation, as far as its options show: ``HELDOUT`` beside the function of
    a generator, 0 for a file without data.eval_path, None where only the data can tell."""
    try:
        if config.mixture:
            each = [held_out(part) for part in parts(config).values()]
            return None if None in each else sum(filter(None, each))
        kept = _beside(config.task, "HELDOUT")
        if file_columns(config) and (config.path or config.eval_path or kept is None):
            return None if config.eval_path else 0
        return kept
    except InputError:  # there is no such task
        return None


def _beside(task: str, name: str) -> Any:
    """What the module of a task's function has under a name, or None."""
    return getattr(importlib.import_module(find_task(task).__module__), name, None)


def _generator(task: str) -> str:
    """``reasoning_gym`` of ``reasoning_gym:NAME``; "" for the name of any other task."""
    return "reasoning_gym" if task.partition(":")[0] == "reasoning_gym" else ""


def find_task(name: str) -> Callable[[DataConfig, int, Any], Task]:
    """The function of a task: one of ``TASKS`` or a dotted path. Raises InputError when there is no such function."""
    said, form = f"data.task={name!r}", "(DataConfig, seed, tokenizer)"
    function = named.find(_generator(name) or name, TASKS, said, f"the dotted path of a function {form} -> Task")
    try:
        inspect.signature(function).bind(None, 0, None)
    except (TypeError, ValueError) as error:
        raise InputError(f"{said} cannot be called with {form}: {error}.") from error
    return function
