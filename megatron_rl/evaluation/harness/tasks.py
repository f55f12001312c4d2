"""Tasks of lm-eval (EleutherAI's lm-evaluation-harness): found, given local data, run, and their numbers."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from lm_eval import evaluator
from lm_eval.tasks import TaskManager

from megatron_rl.data.files import FORMATS, quiet_hub
from megatron_rl.errors import InputError
from megatron_rl.evaluation.config import BenchmarkConfig
from megatron_rl.evaluation.estimates.intervals import bootstrap
from megatron_rl.evaluation.harness.model import EngineModel
from megatron_rl.evaluation.registry import BENCHMARK

_BUILDERS = {".jsonl": "json", ".json": "json", ".parquet": "parquet", ".csv": "csv"}  # of datasets
_ALIKE = 1e-9  # a metric is the mean of its questions' values


@dataclass(frozen=True)
class Loaded:
    """A task, a group of tasks, or a tag, as lm-eval has it."""

    name: str  # as it was asked for: lm_eval:gsm8k
    manager: Any  # TaskManager
    roots: list[Any]  # Task and Group objects that nothing else holds
    scores: list[str]  # names of the tasks that score given answers, which only the embedded engine does


def load(configs: Mapping[str, BenchmarkConfig]) -> dict[str, Loaded]:
    """Find tasks and read their data. Raises InputError for what is unknown, with the nearest names, or unreadable."""
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    includes = {config.include for config in configs.values()}
    managers = {include: TaskManager(include_path=include or None) for include in includes}  # each reads 14,000 files
    return {name: _load(name, config, managers[config.include]) for name, config in configs.items()}


def _load(name: str, config: BenchmarkConfig, manager: Any) -> Loaded:
    asked = name.removeprefix(BENCHMARK)
    if asked not in manager.task_index and not Path(asked).is_file():
        near = get_close_matches(asked, manager.all_tasks, n=3)
        hint = f"did you mean {' or '.join(BENCHMARK + each for each in near)}?" if near else "`lm-eval ls tasks` does."
        raise InputError(f"{name}: lm-eval knows no such task, and there is no such YAML file; {hint}")
    wanted = asked if not config.path else _with_data(name, asked, config.path, manager)
    try:
        with quiet_hub():
            found = manager.load([wanted])
    except Exception as error:  # of datasets, of the hub and of tasks' own code
        raise InputError(
            f"{name}: its task or its data cannot be read ({type(error).__name__}: {_short(error)}). Without a "
            f"network, {name}.path=FOLDER takes the data of a single task from files SPLIT.jsonl."
        ) from error
    tasks, groups = found["tasks"], {} if config.path else found.get("groups", {})
    if config.num_fewshot > 0 and (fixed := [n for n, task in tasks.items() if task.get_config("num_fewshot") == 0]):
        raise InputError(
            f"{name}.num_fewshot={config.num_fewshot}: the YAML of {', '.join(fixed[:3])} sets num_fewshot: 0, which "
            "lm-eval keeps. Leave the option away."
        )
    held = {child for group in groups.values() for child in group.child_names}
    roots = [each for key, each in {**groups, **tasks}.items() if key not in held]
    scores = [key for key, task in tasks.items() if task.OUTPUT_TYPE != "generate_until"]
    return Loaded(name, manager, roots, scores)


def run(loaded: Loaded, config: BenchmarkConfig, model: EngineModel, seed: int) -> dict[str, Any]:
    """lm-eval's own results (``simple_evaluate``), single samples included. Raises InputError for what it refuses."""
    sampling: dict[str, Any] = {"max_gen_toks": config.max_new_tokens} if config.max_new_tokens else {}
    if config.temperature:
        sampling |= {"do_sample": True, "temperature": config.temperature, "top_p": config.top_p, "top_k": config.top_k}
    try:
        results: dict[str, Any] = evaluator.simple_evaluate(
            model,
            tasks=loaded.roots,
            task_manager=loaded.manager,
            num_fewshot=config.num_fewshot if config.num_fewshot >= 0 else None,
            limit=config.limit or None,
            gen_kwargs=sampling or None,
            apply_chat_template=config.chat,
            fewshot_as_multiturn=config.chat,
            bootstrap_iters=0,  # intervals are ours
            fewshot_random_seed=1234 + seed,
            random_seed=seed,
            numpy_random_seed=1234 + seed,
            torch_random_seed=1234 + seed,
        )
    except ValueError as error:
        raise InputError(f"{loaded.name}: {_short(error)}") from error
    return results


def rows(results: Mapping[str, Any]) -> list[dict[str, Any]]:
    """A row for every metric of every task and group: task, metric, filter, questions, mean and, of a task, low, high.

    The interval is the bootstrap's where the metric is the mean of its questions' values.
    """
    found = []
    for task, values in {**results.get("groups", {}), **results["results"]}.items():
        for key, value in values.items():
            metric, comma, filtered = key.partition(",")
            if not comma or metric.endswith("_stderr") or not isinstance(value, int | float):
                continue
            own = [sample for sample in results["samples"].get(task, ()) if sample["filter"] == filtered]
            each = [sample.get(metric) for sample in own]
            row = {"task": task, "metric": metric, "filter": filtered, "mean": float(value)}
            if each and all(isinstance(one, int | float) for one in each):
                interval = bootstrap([float(one) for one in each])
                if abs(interval.mean - value) <= _ALIKE:
                    row |= {"low": interval.low, "high": interval.high}
            found.append(row | {"n": len(each) if each else _questions(results, task)})
    return found


def _questions(results: Mapping[str, Any], task: str) -> int:
    """Of a group: all of its tasks'."""
    counts, held = results["n-samples"], results.get("group_subtasks", {})
    if task in counts:
        return int(counts[task]["effective"])
    return sum(_questions(results, child) for child in held.get(task, ()))


def _with_data(name: str, asked: str, folder: str, manager: Any) -> dict[str, Any]:
    """A task's configuration with a folder's files for its data."""
    files = {path.stem: path for path in sorted(Path(folder).iterdir()) if path.suffix in FORMATS}
    kinds = {_BUILDERS[path.suffix] for path in files.values()}
    if len(kinds) != 1:
        raise InputError(f"{name}.path: {folder} must hold a file SPLIT.jsonl, .json, .parquet or .csv for each split.")
    if asked not in manager.all_subtasks:
        raise InputError(f"{name}.path gives data to a single task: name one, or have its YAML name the files.")
    named = {"data_files": {split: str(path.resolve()) for split, path in files.items()}}
    own = {"task": asked, "dataset_path": kinds.pop(), "dataset_name": None, "dataset_kwargs": named}
    return {"group": "local", "task": [own]}  # lm-eval changes tasks in groups alone


def _short(error: Exception) -> str:
    return (str(error).strip() or repr(error)).splitlines()[0][:300].rstrip(".")
