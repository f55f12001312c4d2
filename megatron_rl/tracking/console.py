"""What a person sees while a run goes on: one aligned line per step, and a table at the end."""

import shlex
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TextIO

from megatron_rl.system.processes import program
from megatron_rl.system.supervision.screen import activity as activity
from megatron_rl.system.supervision.screen import duration as duration
from megatron_rl.system.supervision.screen import live, panel
from megatron_rl.tracking.live import panel as live_panel
from megatron_rl.tracking.run_folder import RunFolder

LIVE_LINES = 20  # of a stage, beside a panel


@dataclass(frozen=True)
class Column:
    """One number of the progress lines."""

    title: str
    key: str  # of the step's metrics
    form: str = ".3f"  # format specification
    scale: float = 1.0


SFT_COLUMNS = (
    Column("loss", "loss"),
    Column("lr", "learning_rate", ".1e"),
    Column("tokens/s", "tokens_per_second", ",.0f"),
)
RL_COLUMNS = (
    Column("reward", "reward"),
    Column("accuracy", "accuracy"),
    Column("length", "length", ".1f"),
    Column("tokens/s", "tokens_per_second", ",.0f"),
    Column("swap ms", "time/swap", ".1f", 1000.0),
)


PREFERENCE_COLUMNS = (
    Column("loss", "loss"),
    Column("accuracy", "pair_accuracy"),
    Column("margin", "pair_margin"),
    Column("lr", "learning_rate", ".1e"),
    Column("tokens/s", "tokens_per_second", ",.0f"),
)
SHOWN = {  # columns, and how many lines at most
    "sft": (SFT_COLUMNS, 12),
    "preference": (PREFERENCE_COLUMNS, 40),
    "rl": (RL_COLUMNS, 1000),
    "reward_model": (PREFERENCE_COLUMNS, 40),
}


class Progress:
    """Shows the steps of one stage, each with the time that is left: on a terminal in a panel at its foot, with a line
    now and then; elsewhere in lines, at most about ``lines`` of them."""

    def __init__(
        self, stage: str, total: int, columns: Sequence[Column], lines: int = 1000, out: TextIO = sys.stdout
    ) -> None:
        self.stage, self.total, self.columns, self.out = stage, total, columns, out
        self.live = live()
        self.every = max(1, total // (min(lines, LIVE_LINES) if self.live else lines))
        self.first: tuple[float, int] | None = None  # when the first step was done, and which
        self.course: list[float] = []

    def step(self, step: int, metrics: Mapping[str, float]) -> None:
        """Report that ``step`` (counted from 0) is done."""
        done, now = step + 1, time.monotonic()
        since, before = self.first = self.first or (now, done)
        left = (now - since) / (done - before) * (self.total - done) if done > before else None
        if self.live:
            self.course.append(float(metrics.get("reward", metrics.get("loss", 0.0))))
            panel(live_panel(self.stage, done, self.total, metrics, self.course, left))
        if done == before:
            print(titles(self.stage, self.columns), file=self.out)
        elif done % self.every and done != self.total:
            return
        said = "-" if left is None else duration(left)
        print(progress_line(self.stage, done, self.total, self.columns, metrics, said), file=self.out, flush=True)


def titles(stage: str, columns: Sequence[Column]) -> str:
    """The line above those of the steps."""
    return f"{stage:<4}{'step':>10}{''.join(f'{column.title:>10}' for column in columns)}{'left':>14}"


def progress_line(
    stage: str, done: int, total: int, columns: Sequence[Column], metrics: Mapping[str, float], left: str
) -> str:
    """One line of a step."""
    numbers = "".join(f"{_number(column, metrics):>10}" for column in columns)
    return f"{stage:<4}{f'{done}/{total}':>10}{numbers}{left:>14}"


def summary_table(rows: Mapping[str, Mapping[str, str]], columns: Sequence[str], title: str = "") -> str:
    """A small table: row name -> column -> text; what is missing stays empty."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(title=title or None, title_justify="left", box=box.SIMPLE_HEAD)
    table.add_column("")
    for column in columns:
        table.add_column(column, justify="right")
    for name, cells in rows.items():
        table.add_row(name, *(cells.get(column, "") for column in columns))
    console = Console(width=120, color_system=None, force_terminal=False)
    with console.capture() as captured:
        console.print(table)
    return "\n".join(line.rstrip() for line in captured.get().strip("\n").splitlines())


def heldout_table(evaluations: Mapping[str, Mapping[str, float]], prompts: int) -> str:
    """The held-out metrics of a run by evaluation ("before", "after SFT", …, "after RL"); empty without any."""
    shown = {k: values for k, values in evaluations.items() if values and (k == "before" or k.startswith("after "))}
    names = list(dict.fromkeys(key for values in shown.values() for key in values if not key.endswith("/length")))
    if not names:
        return ""
    rows = {
        name.replace("/", ", ").replace("_", " "): {
            label: f"{100 * values[name]:.1f} %" for label, values in shown.items() if name in values
        }
        for name in names
    }
    return summary_table(rows, list(shown), f"Held-out ({prompts} prompts)")


def where_next(run: RunFolder, stage: str, step: int) -> str:
    """The last lines of a run that is complete at a step of its last stage: what to open now."""
    exported = run.exported()
    earlier = "an earlier policy" if exported is None else f"an earlier policy, of {_named(*exported)}"
    places = {
        "numbers of every step": run.metrics_file,
        "completions with their rewards": run.completions_file,
        "how the run was made": run.manifest_file,
        "checkpoints": run.checkpoints,
        "the policy (transformers reads it)" if exported == (stage, step) else earlier: run.export,
        "its adapters (PEFT reads them)": run.adapter,
    }
    filled = {what: path for what, path in places.items() if path.is_dir() or (path.is_file() and path.stat().st_size)}
    lines = [f"  {what:<36}{path}" for what, path in filled.items()]
    if run.tensorboard.exists():
        lines.append(f"  {'curves':<36}tensorboard --logdir {shlex.quote(str(run.tensorboard))}")
    lines.append(f"  {'one page about all of it':<36}{program()} report {shlex.quote(str(run.path))}")
    return "\n".join(["Where to look next:", *lines])


def _named(stage: str, step: int) -> str:
    return f"step {step}" if stage == "rl" else f"{stage} step {step}"


def _number(column: Column, metrics: Mapping[str, float]) -> str:
    value = metrics.get(column.key)
    return "-" if value is None else format(value * column.scale, column.form)
