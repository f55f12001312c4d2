"""How the runs were made: what their manifests say, and in which options they differ."""

import json
from collections.abc import Sequence
from typing import Any

from megatron_rl.analysis.recorded import Recorded
from megatron_rl.analysis.report.blocks import Block, section, table
from megatron_rl.analysis.report.experiments import differences

FOLDED = ("config", "attempts")  # of a manifest: shown in other places


def provenance(runs: Sequence[Recorded]) -> Block:
    """Tables; the whole configurations are there to be searched."""
    names = [run.name for run in runs]
    differ = [[key, *map(_said, values)] for key, values in differences(runs, every=True)]
    facts = [_facts(run) for run in runs]
    keys = dict.fromkeys(key for own in facts for key in own)
    rows = [[key, *(own.get(key, "") for own in facts)] for key in keys]
    every = dict.fromkeys(key for run in runs for key in run.options)
    options = [[key, *(_said(run.options.get(key)) for run in runs)] for key in every]
    columns = len(runs) + 1
    whole = table(["option", *names], options, "Every option", left=columns)
    return section(
        "provenance",
        "Provenance",
        [
            table(["option", *names], differ, "Options that differ", left=columns) if len(runs) > 1 else None,
            table(["", *names], rows, "Manifest", left=columns),
            whole and whole | {"folded": True},
        ],
    )


def _facts(run: Recorded) -> dict[str, str]:
    attempts = run.manifest.get("attempts") or []
    found = {"folder": str(run.folder.path)}
    found |= {key: _said(value) for key, value in run.manifest.items() if key not in FOLDED and value not in ({}, [])}
    for number, attempt in enumerate(attempts, 1):
        before = f"attempt {number}: " if len(attempts) > 1 else ""
        for key, value in attempt.items():
            if key == "code" and isinstance(value, dict):
                value = f"{value.get('commit')}{', modified' if value.get('modified') else ''}"
            if value not in ({}, [], None):
                found[f"{before}{key}"] = _said(value)
    return found


def _said(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, dict) and all(isinstance(v, str | int | float) for v in value.values()):
        return ", ".join(f"{key} {v}" for key, v in value.items())
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
