"""Tasks by name."""

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from megatron_rl.data.config import DataConfig
from megatron_rl.data.task import UNBOUNDED, Task
from megatron_rl.errors import InputError
from megatron_rl.system import named

TASKS = {
    "false_belief": "megatron_rl.data.false_belief.make_false_belief",
    "multiple_choice": "megatron_rl.data.multiple_choice.make_multiple_choice",
}


def make_task(config: DataConfig, seed: int, tokenizer: Any) -> Task:
    """The task that ``data.task`` names, with every row of its files checked.

    ``tokenizer`` is the model's. Raises InputError for an unknown task, for bad data, and with what a user's function
    raises.
    """
    make = find_task(config.task)
    if config.task in TASKS:
        return make(config, seed, tokenizer)
    return named.call(f"data.task={config.task!r}", make, config, seed, tokenizer)


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
    module = importlib.import_module(find_task(config.task).__module__)
    if not hasattr(module, "write_tokenizer"):
        raise InputError(
            f"data.task={config.task} brings no tokenizer, so a model cannot start from model.architecture alone. Set "
            "model.path to a Hugging Face folder with a tokenizer; tools/make_tiny_model.py writes a small random one."
        )
    module.write_tokenizer(folder)


def find_task(name: str) -> Callable[[DataConfig, int, Any], Task]:
    """The function of a task: one of ``TASKS`` or a dotted path. Raises InputError when there is no such function."""
    otherwise = "the dotted path of a function (DataConfig, seed, tokenizer) -> Task"
    return named.find(name, TASKS, f"data.task={name!r}", otherwise)
