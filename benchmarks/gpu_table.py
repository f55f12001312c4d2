"""What gpu_all.sh has measured, as one JSON file and one Markdown table: python -m benchmarks.gpu_table FOLDER

FOLDER has the lines of gpu_all.jsonl: those of a step's commands, then one with its exit status. Writes gpu_all.json
and gpu_all.md beside it. A step without figures has its status there, so that nothing that failed is missing.
"""

import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

ABOUT = ("benchmark", "device", "step")  # no figures
STATUS = {
    0: "ok",
    "skipped": "skipped",
    124: "ran out of time",
    137: "ran out of time",
    "left out": "left out: no time was left",
}


def read(lines: list[str]) -> list[dict[str, Any]]:
    """The steps in their order: step, status, seconds and what their commands have printed (``lines``)."""
    steps: list[dict[str, Any]] = []
    printed: list[dict[str, Any]] = []
    for line in map(json.loads, lines):
        if "status" in line:
            steps.append(line | {"lines": printed})
            printed = []
        else:
            printed.append(line)
    return steps


def figures(line: Mapping[str, Any], under: str = "") -> Iterator[str]:
    """What a line says, "name value" each; of what lies in another, "outer inner value"."""
    for name, value in line.items():
        if isinstance(value, Mapping):
            yield from figures(value, f"{under}{name} ")
        elif name not in ABOUT:
            yield f"{under}{name} {value}"


def table(steps: list[dict[str, Any]]) -> str:
    """Markdown."""
    devices = {line["device"] for step in steps for line in step["lines"] if "device" in line}
    rows = [f"## {', '.join(sorted(devices)) or 'no device has answered'}", ""]
    rows += ["| step | status | seconds | figures |", "|---|---|---|---|"]
    for step in steps:
        status = STATUS.get(step["status"], f"failed ({step['status']})")
        said = "<br>".join("; ".join(figures(line)) for line in step["lines"]).replace("|", "\\|")
        rows.append(f"| {step['step']} | {status} | {step['seconds']} | {said} |")
    return "\n".join(rows) + "\n"


def main() -> None:
    folder = Path(sys.argv[1])
    steps = read((folder / "gpu_all.jsonl").read_text(encoding="utf-8").splitlines())
    (folder / "gpu_all.json").write_text(json.dumps(steps, indent=1), encoding="utf-8")
    (folder / "gpu_all.md").write_text(table(steps), encoding="utf-8")
    print(table(steps), end="")


if __name__ == "__main__":
    main()
