"""The report: one HTML file with everything in it, which opens from a disk and asks nothing of any network."""

import base64
import gzip
import json
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from megatron_rl import __version__
from megatron_rl.analysis.completions import read_completions
from megatron_rl.analysis.recorded import Recorded, read_run
from megatron_rl.analysis.report.behaviour import behaviour
from megatron_rl.analysis.report.curves import curves, overview
from megatron_rl.analysis.report.experiments import experiments
from megatron_rl.analysis.report.machine import machine
from megatron_rl.analysis.report.provenance import provenance
from megatron_rl.analysis.report.rewards import rewards
from megatron_rl.analysis.report.samples import packed
from megatron_rl.errors import InputError

SCRIPTS = ("blocks.js", "charts.js", "samples.js", "page.js")
MISSING = "the report draws with plotly, which is not installed: pip install -c constraints.txt -e '.[report]'"


def read_runs(paths: Sequence[str]) -> list[Recorded]:
    """The runs of a page, from their folders. Raises InputError for what is no run, and for two of one name."""
    runs = [read_run(path) for path in paths]
    if len({run.folder.path.resolve() for run in runs}) < len(runs):
        raise InputError("A run is given twice: give each folder once.")
    names = [run.name for run in runs]
    if len(set(names)) < len(names):
        raise InputError(f"Two of the runs have the same name ({', '.join(names)}): rename one of the folders.")
    return runs


def make_page(runs: Sequence[Recorded]) -> str:
    """The page of these runs, whose notes then say what it leaves out too. Raises InputError without plotly."""
    library, names = plotly(), [run.name for run in runs]
    seen = {run.name: read_completions(run) for run in runs}
    samples, kept = packed(runs, seen)
    together = experiments(runs)
    stage_charts = rewards(together)
    sections = [
        overview(runs, together),
        curves(together),
        stage_charts,
        behaviour(runs, seen),
        {"name": "samples", "title": "Samples", "intro": " ".join(kept), "blocks": []} if samples["samples"] else None,
        machine(runs, together),
        provenance(runs),
    ]
    content = {
        "title": ", ".join(names) if len(names) < 4 else f"{len(names)} runs",
        "made": f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC, megatron_rl {__version__}",
        "experiments": [{"name": one.label, "colour": one.colour} for one in together],
        "sections": [one for one in sections if one and (one["blocks"] or one["name"] == "samples")],
    }
    return filled(
        {
            "STYLE": template("page.css"),
            "CONTENT": as_json(content),
            "SCRIPT": "\n".join(template(name) for name in SCRIPTS),
            "SAMPLES": compressed(json.dumps(samples, separators=(",", ":")).encode()),
            "PLOTLY": compressed(library),
        }
    )


def plotly() -> bytes:
    """Plotly's script, of the package that is installed. Raises InputError without one."""
    found = find_spec("plotly")
    if found is None or not found.submodule_search_locations:
        raise InputError(MISSING)
    file = Path(found.submodule_search_locations[0]) / "package_data" / "plotly.min.js"
    if not file.is_file():
        raise InputError(f"{file} does not exist: install the version of plotly that constraints.txt names.")
    return file.read_bytes()


def template(name: str) -> str:
    """A file of the page's template."""
    return (files("megatron_rl.analysis.report") / "template" / name).read_text(encoding="utf-8")


def filled(parts: dict[str, str]) -> str:
    """The template with its parts in their places, each put in once: no part is looked through for another's mark."""
    text = template("page.html")
    found = []
    for piece in text.split("{{"):
        name, closed, rest = piece.partition("}}")
        found.append(parts[name] + rest if closed else piece)
    return "".join(found)


def as_json(content: Any) -> str:
    """JSON for a ``script`` element: nothing in it can end the element, or begin a comment there."""
    text = json.dumps(content, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    text = text.encode("utf-8", "backslashreplace").decode()  # half a surrogate pair is no text
    return text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")


def compressed(data: bytes) -> str:
    """gzip in base64, as the page's script unpacks it."""
    return base64.b64encode(gzip.compress(data, 6, mtime=0)).decode()
