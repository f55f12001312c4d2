"""An evaluation as a log of Inspect (inspect_ai's ``EvalLog``, version 2, as JSON), which ``inspect view`` opens."""

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import xxhash

from megatron_rl.evaluation.answering import Record
from megatron_rl.evaluation.config import SuiteConfig
from megatron_rl.evaluation.suite import Card
from megatron_rl.system.files import write_text

VERSION = 2
SCORER = "correct"


def write_inspect_log(
    folder: Path,
    name: str,
    card: Card,
    config: SuiteConfig,
    model: str,
    created: str,
    summary: Mapping[str, Any],
    records: Sequence[Record],
) -> Path:
    """Write the log into a folder under a name that Inspect looks for, ``TIME_SUITE_ID.json``; returns it.

    ``created``: ISO 8601 with a time zone; the same evaluation always has the same file. Ids of samples are those of
    prompts; samples of one prompt are its epochs.
    """
    identity = xxhash.xxh3_64_hexdigest(f"{created}/{name}/{model}".encode())
    stamp = datetime.fromisoformat(created).strftime("%Y-%m-%dT%H-%M-%S%z").replace("+", "-")
    generate = {"max_tokens": config.max_new_tokens, "temperature": config.temperature, "top_p": config.top_p}
    log = {
        "version": VERSION,
        "status": "success",
        "eval": {
            "eval_id": identity,
            "run_id": identity,
            "task_id": identity,
            "created": created,
            "task": name,
            "task_args": {"language": config.language, "cot": config.cot, "limit": config.limit},
            "dataset": {"name": card.title, "location": config.path or card.hub, "samples": summary["items"]},
            "model": f"megatron_rl/{model}",
            "model_generate_config": generate,
            "config": {"epochs": config.samples},
            "packages": {},
        },
        "plan": {"name": "plan", "steps": [{"solver": "generate"}], "config": generate},
        "results": {
            "total_samples": len(records),
            "completed_samples": len(records),
            "scores": [{"name": SCORER, "scorer": SCORER, "metrics": _metrics(summary)}],
        },
        "stats": {"started_at": created, "completed_at": created},
        "samples": [_sample(record, model) for record in records],
    }
    path = folder / f"{stamp}_{name.replace('_', '-')}_{identity}.json"
    write_text(path, json.dumps(log, ensure_ascii=False, default=str))
    return path


def _metrics(summary: Mapping[str, Any]) -> dict[str, Any]:
    accuracy = summary["accuracy"]
    values = {"accuracy": accuracy["mean"], "low": accuracy["low"], "high": accuracy["high"]}
    values |= {name: measure["mean"] for name, measure in summary["measures"].items()}
    values |= {f"pass@{k}": found["mean"] for k, found in summary.get("pass_at", {}).items()}
    return {name: {"name": name, "value": value} for name, value in values.items()}


def _sample(record: Record, model: str) -> dict[str, Any]:
    target = record["answer"] if isinstance(record["answer"], str) else json.dumps(record["answer"], default=str)
    reason = "max_tokens" if record["finish_reason"] == "length" else "stop"
    reply = {"role": "assistant", "content": record["completion"], "source": "generate"}
    return {
        "id": f"{record['item']}#{record['form']}",
        "epoch": record["sample"] + 1,
        "input": record["prompt"],
        "target": target,
        "messages": [{"role": "user", "content": record["prompt"]}, reply],
        "output": {"model": model, "choices": [{"message": reply, "stop_reason": reason}]},
        "scores": {SCORER: {"value": record["correct"], "answer": record["extracted"]}},
        "metadata": dict(record["groups"]),
    }
