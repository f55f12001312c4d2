"""The run's mirror in wandb; it never asks for anything and never stops a run."""

import dataclasses
import json
import netrc
import os
import secrets
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import urlparse

from megatron_rl.config import STAGES, Config
from megatron_rl.tracking.run_folder import RunFolder

CONNECT_SECONDS = 15
SAMPLES = 32  # rows of a table of completions
DRAWN = ("id", "prompt", "response", "answer", "reward", "components", "advantage", "finish_reason")  # its columns
EVALUATED = ("mode", "id", "prompt", "response", "answer", "report", "finish_reason")


class Wandb:
    """A wandb run as the records use it."""

    def __init__(self, started: Any, tables: int) -> None:
        self.run, self._tables = started, tables

    def log(self, stage: str, step: int, numbers: Mapping[str, float]) -> None:
        """The numbers of a step of a stage, as ``{stage}/{name}``."""
        self.run.log({f"{stage}/{key}": value for key, value in numbers.items()} | {f"{stage}/step": step})

    def samples(self, step: int, rows: Sequence[Mapping[str, Any]], evaluation: str) -> None:
        """A table of completions: of every ``tables``-th step of training, and the first of each evaluation."""
        if not rows or not self._tables or (not evaluation and step % self._tables):
            return
        import wandb

        stage = "eval" if evaluation else "rl"
        columns = EVALUATED if evaluation else DRAWN
        shown = [[_cell(row.get(column)) for column in columns] for row in rows[:SAMPLES]]
        table = wandb.Table(columns=["step", *columns], data=[[step, *cells] for cells in shown])
        self.run.log({f"{stage}/samples": table, f"{stage}/step": step})

    def finish(self) -> None:
        """Send what is left."""
        self.run.finish()


def start_wandb(run: RunFolder, config: Config) -> Wandb | None:
    """A wandb run, or None when tracking.wandb=off.

    auto is online with an API key (WANDB_API_KEY or a .netrc entry) and offline without one; whatever keeps wandb from
    starting online, it is said and the run is recorded offline. The run keeps its wandb id when it is continued.
    Raises what wandb raises when it cannot record offline either.
    """
    mode = config.tracking.wandb
    if mode == "off":
        return None
    if mode == "auto":
        mode = os.environ.get("WANDB_MODE") or ("online" if has_key() else "offline")
    import wandb

    if "wandb_id" not in run.manifest():
        run.update_manifest(wandb_id=secrets.token_hex(4))
    options: dict[str, Any] = {
        "project": config.tracking.project,
        "entity": config.tracking.entity or None,
        "group": config.tracking.group or None,
        "tags": list(config.tracking.tags) or None,
        "name": run.path.name,
        "id": run.manifest()["wandb_id"],
        "resume": "allow",
        "dir": str(run.path),
        "config": dataclasses.asdict(config),
        "settings": wandb.Settings(
            silent=True, console="off", init_timeout=CONNECT_SECONDS, x_disable_stats=True, x_disable_meta=True
        ),
    }
    try:
        started = wandb.init(mode=mode, **options)  # type: ignore[arg-type]
    except Exception as error:  # wandb's own errors, and those of whatever it uses
        if mode == "offline":
            raise
        reason = " ".join(str(error).split())
        print(
            f"warning: wandb could not start {mode} ({reason}); it records offline in {run.path}/wandb "
            "(`wandb sync` uploads it).",
            flush=True,
        )
        wandb.teardown()  # its service holds on to the run's id
        started = wandb.init(mode="offline", **options)
    for stage in (*STAGES, "eval"):
        started.define_metric(f"{stage}/step", hidden=True)
        started.define_metric(f"{stage}/*", step_metric=f"{stage}/step")
    return Wandb(started, config.tracking.tables)


def _cell(value: Any) -> Any:
    return value if isinstance(value, int | float | str) or value is None else json.dumps(value, ensure_ascii=False)


def has_key() -> bool:
    """Whether wandb would find an API key without asking for one."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    host = urlparse(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")).hostname or ""
    path = os.environ.get("NETRC") or os.path.expanduser("~/.netrc")
    try:
        return netrc.netrc(path).authenticators(host) is not None
    except (OSError, UnicodeDecodeError, netrc.NetrcParseError):
        return False
