"""The folder of one run: what lies where, and the manifest that says how it was made."""

import contextlib
import copy
import functools
import json
import os
import shlex
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from megatron_rl.actor.checkpoint_folder import latest
from megatron_rl.config import STAGES, Config
from megatron_rl.errors import InputError
from megatron_rl.resharding.folders.hf import read_hf_config
from megatron_rl.settings.load import from_yaml, to_yaml
from megatron_rl.system.files import held, read_json, reserve, write_text
from megatron_rl.system.processes import program

_FIXED = ("run.seed", "run.start_from", "run.start_optimizer", "actor.freeze")  # options of a run that is continued
EXPORTED = "megatron_rl.json"  # in an exported policy: the step that it is of, and the hash of its weights


class RunFolder:
    """Paths and records of a run; every file is whole at any time."""

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        self.config_file = self.path / "config.yaml"  # the resolved configuration
        self.manifest_file = self.path / "manifest.json"
        self.metrics_file = self.path / "metrics.jsonl"
        self.completions_file = self.path / "completions.jsonl"
        self.rollouts = self.path / "rollouts"  # of RL steps, where tracking.rollouts asks for them
        self.checkpoints = self.path / "checkpoints"
        self.initial_model = self.path / "initial_model"  # made when the model starts from random weights
        self.warm_start = self.path / "warm_start"  # the policy after supervised training: RL's reference
        self.export = self.path / "hf"  # the final policy as a Hugging Face folder
        self.adapter = self.path / "adapter"  # with actor.lora: its adapters as a folder for PEFT
        self.tensorboard = self.path / "tensorboard"

    def left_by(self, stage: str) -> Path:
        """The policy that a stage before the last has left, a Hugging Face folder: the next one's reference."""
        return self.warm_start if stage == "sft" else self.path / f"after_{stage}"

    def config(self) -> Config:
        """The run's configuration; raises InputError when config.yaml is missing or no longer fits."""
        try:
            content = self.config_file.read_bytes()
        except OSError:  # which reading it puts into words
            content = b""
        return copy.deepcopy(_config(self.config_file, content))

    def write_config(self, config: Config) -> None:
        """Record the resolved configuration."""
        write_text(self.config_file, to_yaml(config))

    def manifest(self) -> dict[str, Any]:
        """What was recorded about the run so far. Raises InputError when the file is damaged."""
        if not self.manifest_file.exists():
            return {}
        return _json(
            self.manifest_file,
            "Restore it, or move it away: the run goes on without it, but not with the record of how it was made.",
        )

    def update_manifest(self, **values: Any) -> None:
        """Set top-level entries of the manifest; one process at a time does."""
        write_text(self.manifest_file, json.dumps(self.manifest() | values, indent=2) + "\n")

    def attempt(self) -> int:
        """The number of the present attempt, from 1; an interrupted run that is continued has several."""
        return len(self.manifest().get("attempts", []))

    def nodes(self) -> int:
        """How many machines the present attempt has."""
        attempts = self.manifest().get("attempts") or [{}]
        return int(attempts[-1].get("nodes", 1))

    def logs(self) -> Path:
        """Where the processes of the present attempt keep what they print."""
        return self.path / "logs" / str(self.attempt())

    def model_folder(self) -> Path:
        """The Hugging Face folder that the policy starts from."""
        config = self.config()
        return self.initial_model if config.run.start_from or not config.model.path else Path(config.model.path)

    def hf_config(self) -> dict[str, Any]:
        """The model's config.json; raises InputError when it is missing or broken."""
        return read_hf_config(self.model_folder())

    def keep_rows(self, name: str, minibatches: Sequence[Sequence[Any]]) -> Path:
        """Write training rows (tokens and their columns) as failed/{name}.jsonl; returns the file."""
        rows = [
            {"minibatch": number, "sample": row.sample, "prompt": row.prompt, "tokens": row.tokens.tolist()}
            | {column: values.tolist() for column, values in row.columns.items()}
            for number, minibatch in enumerate(minibatches)
            for row in minibatch
        ]
        return self._keep("failed", name, rows)

    def keep_dropped(self, name: str, completions: Sequence[Mapping[str, Any]]) -> Path:
        """Write completions that were left out as dropped/{name}.jsonl; returns the file."""
        return self._keep("dropped", name, completions)

    def _keep(self, folder: str, name: str, rows: Sequence[Mapping[str, Any]]) -> Path:
        file = self.path / folder / f"{name}.jsonl"
        file.parent.mkdir(exist_ok=True)
        write_text(file, "".join(json.dumps(row) + "\n" for row in rows))
        return file

    def started(self) -> bool:
        """Whether there is a checkpoint to continue from."""
        return latest(self.checkpoints) is not None

    def mark_complete(self, stage: str, step: int) -> None:
        """Note that the run has done all there was to do up to a step of its last stage; its very last act."""
        self.update_manifest(completed={"stage": stage, "step": step})

    def mark_ended(self, code: int, message: str) -> None:
        """Note how the present attempt has ended: the command's exit code, and what it said."""
        *earlier, last = self.manifest().get("attempts") or [{}]
        ended = {"code": code, "message": message, "at": datetime.now(UTC).isoformat(timespec="seconds")}
        self.update_manifest(attempts=[*earlier, last | {"ended": ended}])

    def completed(self, config: Config) -> tuple[str, int] | None:
        """The stage and its step at which the run was complete, if nothing is left to do for ``config``; else None."""
        noted = self.manifest().get("completed", {})
        stage, step = noted.get("stage", "rl"), noted.get("step", -1)
        [*_, last] = config.chain().items()
        missing = config.run.export and self.exported() != (stage, step)
        return None if _place(stage, step) < _place(*last) or missing else (stage, step)

    def exported(self) -> tuple[str, int] | None:
        """The stage and its step whose policy ``export`` holds; None where there is none, or its record is damaged."""
        try:
            position = read_json(self.export / EXPORTED)
        except InputError:
            return None
        stage, step = position.get("stage", "rl"), position.get("step")
        return (stage, step) if isinstance(stage, str) and isinstance(step, int) else None

    def command(self) -> str:
        """The command that continues the run, typed in the folder in which it was started."""
        again = "" if self.config().run.resume == "auto" else " run.resume=auto"
        return f"{program()} train {shlex.quote(str(self.config_file))}{again}"

    def lock(self) -> None:
        """Reserve the folder until ``unlock`` or the end of this process; InputError when another process has it."""
        self._lock = reserve(
            self.path, f"Another process is running in {self.path}: wait for it, end it, or choose another run.name."
        )

    def held(self) -> bool:
        """Whether a process has the folder (``files.held``)."""
        return held(self.path)

    def unlock(self) -> None:
        """Let other processes have the folder."""
        self._lock.close()


@functools.lru_cache(maxsize=4)
def _config(path: Path, content: bytes) -> Config:
    """Read once while it has this content: it takes a tenth of a second, and a process asks for it again and again."""
    return from_yaml(path)


def _place(stage: str, step: int) -> tuple[int, int]:
    """Of a step among all those of a run."""
    return (STAGES.index(stage) if stage in STAGES else -1, step)


def open_run(config: Config) -> RunFolder:
    """The folder that ``config.run`` asks for, locked, with ``latest`` beside it pointing to it.

    resume=auto continues the run in {folder}/{name}; resume=never takes the first free of {name}, {name}-2, ….
    Raises InputError for a folder in use, one that holds something else, or a run of another model, data or seed.
    """
    base = Path(config.run.folder) / config.run.name
    base.parent.mkdir(parents=True, exist_ok=True)
    run = RunFolder(_new_sibling(base) if config.run.resume == "never" else base)
    run.path.mkdir(exist_ok=True)
    run.lock()
    _require_same_run(run, config)
    _link_latest(run.path)
    return run


def changes(old: Config, new: Config) -> dict[str, tuple[Any, Any]]:
    """Full key -> (old, new) of every option that differs."""
    before, after = flat_options(old), flat_options(new)
    keys = dict.fromkeys([*before, *after])
    return {key: (before.get(key), after.get(key)) for key in keys if before.get(key) != after.get(key)}


def _new_sibling(base: Path) -> Path:
    number = 1
    while True:
        path = base if number == 1 else base.with_name(f"{base.name}-{number}")
        try:
            path.mkdir()
        except FileExistsError:
            number += 1
        else:
            return path


def _require_same_run(run: RunFolder, config: Config) -> None:
    if run.started():
        _require_same_settings(run, config)
    elif not run.config_file.exists():
        foreign = [entry.name for entry in run.path.iterdir() if not entry.name.startswith(".")]
        if foreign:
            raise InputError(f"{run.path} exists and is not a run ({foreign[0]} is in it): choose another run.name.")


def _require_same_settings(run: RunFolder, config: Config) -> None:
    fixed = [
        told
        for key, (old, new) in changes(run.config(), config).items()
        if key in _FIXED or key.startswith(("model.", "data.", "actor.lora."))
        for told in _told(key, old, new)
    ]
    if fixed:
        raise InputError(
            f"{run.path} is a run with other settings ({'; '.join(fixed)}), which cannot be continued: "
            "start a new one with run.resume=never or another run.name."
        )


def _told(key: str, old: Any, new: Any) -> list[str]:
    """A change; of a whole config.json what is changed in it."""
    if not (isinstance(old, Mapping) and isinstance(new, Mapping) and old and new):
        return [f"{key} {old!r} -> {new!r}"]
    differing = [name for name in dict.fromkeys([*old, *new]) if old.get(name) != new.get(name)]
    return [f"{key}.{name} {old.get(name)!r} -> {new.get(name)!r}" for name in differing]


def _link_latest(path: Path) -> None:
    """A convenience: where it cannot be, the run goes on without it."""
    beside, latest = path.with_name(f".latest.{os.getpid()}"), path.with_name("latest")
    try:
        beside.symlink_to(path.name)
        beside.replace(latest)
    except OSError as error:
        with contextlib.suppress(OSError):
            beside.unlink()
        print(f"warning: {latest} does not lead to this run ({error.strerror}): remove what is there.", flush=True)


def _json(file: Path, advice: str) -> dict[str, Any]:
    """The object in a JSON file. Raises InputError naming the file when there is none in it."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{file} is damaged: it is not JSON ({error}). {advice}") from None
    if not isinstance(content, dict):
        raise InputError(f"{file} is damaged: it holds no object, but a {type(content).__name__}. {advice}")
    return content


def flat_options(config: Config) -> dict[str, Any]:
    """Full key -> value of every option."""
    from megatron_rl.settings.load import options

    flat: dict[str, Any] = {}
    for key in options():
        value: Any = config
        for name in key.split("."):
            value = getattr(value, name)
        flat[key] = value
    return flat
