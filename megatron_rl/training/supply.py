"""What the stages of a run learn from: the task's examples, and the rows that stages have of their own."""

from collections.abc import Mapping
from typing import Any

from megatron_rl.config import STAGES, Config
from megatron_rl.data.order.mixed import make_prompts
from megatron_rl.data.prompts import Cursor, Prompts
from megatron_rl.data.registry import make_task, require_targets
from megatron_rl.data.sets.conversations import read_conversations
from megatron_rl.data.sets.pairs import read_pairs, task_pairs
from megatron_rl.data.sets.rows import RowSet
from megatron_rl.data.task import Example, Task
from megatron_rl.errors import InputError
from megatron_rl.training.progress import Progress


class Supply:
    """Read on rank 0 for the stage that a run stands in and those after it.

    Raises InputError for what cannot be read, and for what changed since the run began (``manifest``).
    """

    def __init__(self, config: Config, tokenizer: Any, stage: str, manifest: Mapping[str, Any]) -> None:
        self.config, self.manifest = config, manifest
        self.task: Task | None = make_task(config.data, config.run.seed, tokenizer) if config.asks() else None
        self.sets: dict[str, RowSet[Any]] = {}
        left = [name for name in config.chain() if STAGES.index(name) >= STAGES.index(stage)]
        if "sft" in left and config.sft.data.path:
            self.sets["sft"] = read_conversations(config.sft.data, config.data, tokenizer, "sft.data")
        if "preference" in left and config.preference.data.path:
            self.sets["preference"] = read_pairs(config.preference.data, config.data, tokenizer, "preference.data")
        elif "preference" in left:
            assert self.task is not None
            self.sets["preference"] = task_pairs(self.task, config.data.task, tokenizer)
        if "reward_model" in left:
            self.sets["reward_model"] = read_pairs(
                config.reward_model.data, config.data, tokenizer, "reward_model.data"
            )
        if config.sft.steps and not config.sft.data.path:
            assert self.task is not None
            require_targets(self.task)
        for name, old, new in self._fingerprints():
            if old not in (None, new):
                raise InputError(f"The data of {name} changed since the run began: restore it, or use a new run.name.")
        self.prompts = self._prompts()

    @property
    def notes(self) -> dict[str, int]:
        """What is to be said of the rows: a text -> how many."""
        found = dict(getattr(self.task, "notes", {}))
        for part in self.sets.values():
            found |= part.notes
        return found

    def held_out(self) -> list[Example]:
        """The examples of an evaluation."""
        return list(self.task.heldout[: self.config.evaluation.prompts]) if self.task is not None else []

    def restore(self, at: Progress) -> None:
        """Stand where the run stands."""
        config = self.config
        per_step = {"sft": config.sft.batch_size, "rl": config.rollout.prompts_per_step}
        for stage, prompts in self.prompts.items():
            # a checkpoint of a version without cursors: so many examples as its steps took
            began = {"position": at.step * per_step.get(stage, 0) if stage == at.stage else 0}
            prompts.restore(at.cursors.get(stage, began))
            prompts.remember(at.observed.get(stage, {}))

    def facts(self) -> dict[str, Any]:
        """Entries of the manifest."""
        sets = dict(self.manifest.get("set_fingerprints", {})) | {k: s.fingerprint() for k, s in self.sets.items()}
        task = {"data_fingerprint": self.task.fingerprint()} if self.task is not None else {}
        return task | {"data_notes": self.notes} | ({"set_fingerprints": sets} if sets else {})

    def _fingerprints(self) -> list[tuple[str, Any, str]]:
        """Name of what is read, its hash when the run began (None: not read then) and now."""
        known = self.manifest.get("set_fingerprints", {})
        found = [(f"{name}.data", known.get(name), part.fingerprint()) for name, part in self.sets.items()]
        if self.task is not None:
            found.append(("the task", self.manifest.get("data_fingerprint"), self.task.fingerprint()))
        return found

    def _prompts(self) -> dict[str, Cursor | Prompts[Any]]:
        config, seed = self.config, self.config.run.seed
        prompts: dict[str, Cursor | Prompts[Any]] = {}
        if self.task is not None and len(self.task.train):  # none: there is only to evaluate
            prompts["sft"] = make_prompts(config.data, self.task, seed + 1)
            prompts["rl"] = make_prompts(config.data, self.task, seed, config.run.steps)
        if "sft" in self.sets:
            prompts["sft"] = Prompts(self.sets["sft"].rows, seed + 1, config.sft.data.shuffle)
        if "preference" in self.sets:
            prompts["preference"] = Prompts(self.sets["preference"].rows, seed + 2, config.preference.data.shuffle)
        if "reward_model" in self.sets:
            shuffle = config.reward_model.data.shuffle
            prompts["reward_model"] = Prompts(self.sets["reward_model"].rows, seed + 3, shuffle)
        return prompts
