"""A step of a run repeated: rank 0 hands out saved rollouts, in the same loop, until that step is done."""

from pathlib import Path

from megatron_rl.config import Config
from megatron_rl.rewards.workers.pool import Scored
from megatron_rl.rollout.saved import file_of, load_rollouts
from megatron_rl.tracking.replayed import Replay
from megatron_rl.tracking.run_folder import RunFolder
from megatron_rl.training.batch import Drawn
from megatron_rl.training.controller import Controller
from megatron_rl.training.progress import Progress


class Replayed(Controller):
    """A ``Controller`` whose steps are learned from saved rollouts; what is drawn again goes into a file."""

    def __init__(self, config: Config, run: RunFolder, at: Progress, replay: Replay) -> None:
        super().__init__(config, run, at, replay.generates)
        self.replay, self._done = replay, False

    def take(self, at: Progress) -> Drawn:
        """As ``Controller.take``."""
        step = at.step + 1
        saved = load_rollouts(file_of(Path(self.replay.rollouts), step), Scored)
        if self.engine is not None and step == self.replay.step:
            self.keep_rollouts(super().take(at), step, at.version, [])
        elif self.engine is not None:
            self.engine.release()
        return Drawn(saved.groups, dict(saved.facts["metrics"]), saved.facts["cursor"])

    def record(self, at: Progress, metrics: dict[str, float], credit: list[float]) -> None:
        """As ``Controller.record``."""
        super().record(at, metrics, credit)
        self._done = at.step == self.replay.step

    def evaluate(self, at: Progress, label: str, held_out: bool, suites: bool) -> dict[str, float]:
        """Nothing is evaluated."""
        return {}

    def finish(self, at: Progress) -> None:
        """Nothing is summed up."""

    def stopping(self) -> bool:
        """Whether the step is done, or somebody has asked for an end."""
        return self._done or super().stopping()
