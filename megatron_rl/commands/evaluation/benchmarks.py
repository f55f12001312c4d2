"""Tasks of lm-eval in ``megatron-rl evaluate``: asked of our engine, its table and files beside those of suites."""

import argparse
import json
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from megatron_rl.commands.waiting import working
from megatron_rl.errors import InputError
from megatron_rl.evaluation.answering import Speech
from megatron_rl.evaluation.config import BenchmarkConfig
from megatron_rl.evaluation.records import Records
from megatron_rl.evaluation.registry import BENCHMARK
from megatron_rl.rollout.protocol import Completer
from megatron_rl.system import machine
from megatron_rl.system.files import write_text
from megatron_rl.tracking.console import summary_table

COLUMNS = ("metric", "filter", "questions", "result", "95 % interval")
SHARES = ("acc", "exact_match", "em", "f1", "mc", "pass")  # metrics that begin so are shares
PLACES = ("path", "include")  # options that do not make an evaluation another one: what is asked does
PACKAGES = ("lm_eval", "transformers", "datasets", "torch")  # whose versions are written
_LEFT_OUT = ("samples", "pretty_env_info", "config")  # of lm-eval's results: written elsewhere, or of its own backends


def problems(names: Sequence[str], options: argparse.Namespace) -> list[str]:
    """What the command cannot do with tasks of lm-eval, a sentence each."""
    if not names:
        return []
    found = []
    if machine.installed("lm_eval") is None:
        found.append(f"{names[0]}: lm-eval is not installed: pip install 'megatron-rl[eval]'.")
    if options.against or options.scores or options.reward_model:
        given = "--against" if options.against else "--scores" if options.scores else "--reward-model"
        found.append(f"{given} is for suites: evaluate {names[0]} without it.")
    if len({place(name) for name in names}) < len(names):
        found.append(f"{' '.join(names)}: their files would have one name; evaluate them one at a time, each --out.")
    return found


def place(name: str) -> str:
    """The name of a task's files: lm_eval_gsm8k, of a YAML file that of the file."""
    task = name.removeprefix(BENCHMARK)
    return "lm_eval_" + re.sub(r"[^\w.-]", "_", Path(task).stem if task.endswith((".yaml", ".yml")) else task)


def load(configs: Mapping[str, BenchmarkConfig], engine: str) -> dict[str, Any]:
    """All tasks with their data, before an engine starts. Raises InputError for what cannot be read or asked."""
    if not configs:
        return {}
    from megatron_rl.evaluation.harness import tasks  # lm_eval

    with working("lm-eval reads its tasks"):
        loaded = tasks.load(configs)
    for name, each in loaded.items():
        if each.scores and engine == "sglang":
            raise InputError(
                f"{name}: {', '.join(each.scores[:3])} has given answers, whose log-probabilities only the embedded "
                "engine tells here: leave --engine sglang away."
            )
    return loaded


def evaluate(
    loaded: Any,
    config: BenchmarkConfig,
    speech: Speech,
    hf_config: Mapping[str, Any],
    model: Path,
    out: Path,
    identity: Mapping[str, Any],
    start: Callable[[int], Completer],
    at_once: int,
    seed: int,
) -> None:
    """Ask, print, write. What was answered before is not asked again."""
    from megatron_rl.evaluation.harness import tasks  # lm_eval
    from megatron_rl.evaluation.harness.model import EngineModel

    name, file = loaded.name, place(loaded.name)
    asked = {key: value for key, value in asdict(config).items() if key not in PLACES}
    asked |= {"seed": seed, "lm_eval": machine.installed("lm_eval")}
    records = Records(out / f"{file}.jsonl", {"suite": name, **identity, "options": asked}, 1)
    with records, working(name, "answers") as progress:
        asking = EngineModel(name, config, speech, hf_config, records, start, progress, at_once, seed)
        results = tasks.run(loaded, config, asking, seed)
    rows = tasks.rows(results)
    written = {
        "suite": name,
        "model": str(model),
        "created": records.created,
        "options": asdict(config),
        "identity": records.identity,
        "packages": {package: machine.installed(package) for package in PACKAGES},
        "rows": rows,
        "prompts_cut": asking.cut,
        "lm_eval": {key: value for key, value in results.items() if key not in _LEFT_OUT},
    }
    write_text(out / f"{file}.json", json.dumps(written, indent=2, ensure_ascii=False, default=_plain) + "\n")
    samples = [{"task": task} | sample for task, own in results["samples"].items() for sample in own]
    lines = (json.dumps(sample, ensure_ascii=False, default=_plain) + "\n" for sample in samples)
    write_text(out / f"{file}.samples.jsonl", "".join(lines))
    print(f"\n{table(name, rows, written, records.rows)}", flush=True)


def _plain(value: Any) -> Any:
    """A number of numpy as Python's; of anything else its name."""
    return value.item() if hasattr(value, "item") else str(value)


def table(
    name: str, rows: Sequence[Mapping[str, Any]], written: Mapping[str, Any], answers: Sequence[Mapping[str, Any]]
) -> str:
    """The numbers of a task and of what is in it."""
    shots = sorted(set(written["lm_eval"]["n-shot"].values()))
    said = f"{shots[0]}" if len(shots) == 1 else f"{shots[0]} to {shots[-1]}"
    title = f"lm-eval {written['packages']['lm_eval']} ({name}), {said}-shot"
    several = Counter(row["task"] for row in rows)
    cells = {}
    for row in rows:
        share = row["metric"].startswith(SHARES) and 0 <= row["mean"] <= 1
        found = {"metric": row["metric"], "filter": row["filter"], "questions": f"{row['n']:,}"}
        found["result"] = f"{100 * row['mean']:.1f} %" if share else f"{row['mean']:.4g}"
        if "low" in row:
            low, high = row["low"], row["high"]
            found["95 % interval"] = f"{100 * low:.1f} – {100 * high:.1f}" if share else f"{low:.4g} – {high:.4g}"
        key = row["task"] if several[row["task"]] == 1 else f"{row['task']} {row['metric']} {row['filter']}"
        cells[key] = found
    lines = [summary_table(cells, COLUMNS, title)]
    if made := [answer for answer in answers if answer["kind"] == "generate_until"]:
        lines.append(
            f"  of {len(made):,} completions {100 * sum(a['finish_reason'] == 'length' for a in made) / len(made):.1f} "
            f"% were generated to the end of their room, {sum(a['tokens'] for a in made) / len(made):.0f} tokens each"
        )
    if written["prompts_cut"]:
        lines.append(f"  {written['prompts_cut']:,} prompts were too long for the model and lost their first tokens")
    return "\n".join(lines)
