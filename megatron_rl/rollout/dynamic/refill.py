"""A step's batch out of rounds of generation: as drawn, or filled up with groups that can teach something (DAPO).

::

    rounds ─▶ informative? ──▶ waiting, oldest first ──▶ batch: the first prompts_per_step
                   │ no                  │ too old                    (at the cap: filled up with equal groups)
                   ▼                     ▼
                dropped               expired

What is informative and finds no place waits for the next step, with its own log-probs and versions; the next step asks
for a round only where not enough waits. Rounds that were made ahead (``rollout.staleness``) go the same way, so groups
that are dropped from them are made up for, too. A group whose weights are older than rollout.staleness and
dynamic.max_age together allow is dropped.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from megatron_rl.errors import RunError
from megatron_rl.rollout.config import RolloutConfig
from megatron_rl.rollout.dynamic.informative import informative
from megatron_rl.rollout.dynamic.stored import Waiting
from megatron_rl.rollout.mean import summarise
from megatron_rl.rollout.measure import measure
from megatron_rl.rollout.rollout import Rollout


@dataclass
class Round:
    """What one round of generation made."""

    indices: list[int]  # of the examples, one a group
    groups: list[list[Rollout]]  # scored
    cursor: dict[str, int]  # where the prompts stand behind them
    seconds: dict[str, float] = field(default_factory=dict)  # that its parts took


@dataclass
class Drawn:
    """One step's groups."""

    groups: list[list[Rollout]]
    metrics: dict[str, float]
    cursor: dict[str, int]  # where the prompts stand behind all rounds that were taken


class Refill:
    """Makes batches of rounds. ``take_round(step)``: the next one; ``observe(index, accuracy)`` is told of every group
    that comes in; ``parts_at``: what a reward is the sum of at an RL step, name -> weight, for ``dynamic.by_parts``.

    ``waiting`` and ``cursor`` are all that it keeps from step to step.
    """

    def __init__(
        self,
        config: RolloutConfig,
        parts_at: Callable[[int], Mapping[str, float]],
        take_round: Callable[[int], Round],
        observe: Callable[[int, float], None],
        warn: Callable[[str], None],
    ) -> None:
        self.config, self.parts_at = config, parts_at
        self.take_round, self.observe, self.warn = take_round, observe, warn
        self.waiting: list[Waiting] = []
        self.cursor: dict[str, int] = {}

    def take(self, step: int, version: int) -> Drawn:
        """The batch of a step that begins with weights of a version. Raises RunError where the options say so."""
        if self.config.dynamic.filter:
            return self._filled(step, version)
        drawn = self._round(step)
        metrics = measure(drawn.groups) | _times([drawn])
        if self.config.dynamic.min_informative:
            metrics["informative"] = sum(map(self._informative, drawn.groups)) / len(drawn.groups)
            self._alarm(step, metrics["informative"])
        return Drawn(drawn.groups, metrics, self.cursor)

    def _filled(self, step: int, version: int) -> Drawn:
        dynamic, size = self.config.dynamic, self.config.prompts_per_step
        rounds: list[Round] = []
        equal: list[list[Rollout]] = []
        expired = self._expire(version)
        while len(self.waiting) < size and len(rounds) < dynamic.max_batches:
            rounds.append(self._round(step))
            for index, group in zip(rounds[-1].indices, rounds[-1].groups, strict=True):
                if self._informative(group):
                    self.waiting.append(Waiting(index, group))
                else:
                    equal.append(group)
            expired += self._expire(version)
        batch, self.waiting = self.waiting[:size], self.waiting[size:]
        expired += self._expire(version + 1)  # could not be taken in the next step either
        groups = [waiting.group for waiting in batch]
        if len(groups) < size:
            self._short(step, len(groups))
            spare = equal + [waiting.group for waiting in expired]
            groups += spare[: size - len(groups)]

        drawn = [group for each in rounds for group in each.groups]
        metrics = measure(groups) | _times(rounds)
        metrics |= {
            "tokens": float(sum(rollout.length for group in drawn for rollout in group)),
            "rounds": float(len(rounds)),
            "groups_drawn": float(len(drawn)),
            "groups_dropped": float(len(equal)),
            "groups_expired": float(len(expired)),
            "groups_carried": float(len(self.waiting)),
        }
        if drawn:
            all_of_them = measure(drawn)
            metrics |= {f"drawn_{name}": all_of_them[name] for name in ("reward", "accuracy") if name in all_of_them}
            metrics["informative"] = 1 - len(equal) / len(drawn)
            self._alarm(step, metrics["informative"])
        return Drawn(groups, metrics, self.cursor)

    def _round(self, step: int) -> Round:
        drawn = self.take_round(step)
        self.cursor = drawn.cursor
        for index, group in zip(drawn.indices, drawn.groups, strict=True):
            if reports := [rollout.scored.report for rollout in group if rollout.scored.report is not None]:
                self.observe(index, summarise(reports)["correct"])
        return drawn

    def _informative(self, group: Sequence[Rollout]) -> bool:
        if not self.config.dynamic.by_parts:
            return informative(group)
        weights = self.parts_at(group[0].scored.step)
        return informative(group, [f"{name}/score" for name, weight in weights.items() if weight])

    def _expire(self, version: int) -> list[Waiting]:
        """Take out what is too old for a step that begins with weights of a version."""
        most = self.config.staleness + self.config.dynamic.max_age
        ages = [version - min(rollout.versions[0][0] for rollout in waiting.group) for waiting in self.waiting]
        old = [waiting for waiting, age in zip(self.waiting, ages, strict=True) if age > most]
        self.waiting = [waiting for waiting, age in zip(self.waiting, ages, strict=True) if age <= most]
        return old

    def _short(self, step: int, found: int) -> None:
        dynamic = self.config.dynamic
        said = (
            f"step {step + 1}: {dynamic.max_batches} rounds (rollout.dynamic.max_batches) gave {found} groups that can "
            f"teach something, of {self.config.prompts_per_step}"
        )
        if dynamic.at_cap == "stop":
            raise RunError(
                f"{said[0].upper()}{said[1:]}, which stops the run (rollout.dynamic.at_cap=stop): take prompts that "
                "are neither too easy nor too hard, more completions of each (rollout.group_size), or more rounds."
            )
        if dynamic.at_cap == "warn":
            self.warn(f"{said}; others fill up the batch.")

    def _alarm(self, step: int, share: float) -> None:
        dynamic = self.config.dynamic
        if share >= dynamic.min_informative:
            return
        said = (
            f"step {step + 1}: {share:.1%} of the groups can teach something, below rollout.dynamic.min_informative="
            f"{dynamic.min_informative}"
        )
        if dynamic.alarm == "stop":
            raise RunError(f"{said[0].upper()}{said[1:]}, which stops the run (rollout.dynamic.alarm=stop).")
        self.warn(f"{said}.")


def _times(rounds: Sequence[Round]) -> dict[str, float]:
    """Of all rounds together."""
    names = dict.fromkeys(name for each in rounds for name in each.seconds)
    return {f"time/{name}": sum(each.seconds.get(name, 0.0) for each in rounds) for name in names}
