"""Hints that keep a problem at the difficulty from which most is learned: SEELE (arXiv 2509.06923).

::

    round 1: the rate kept of this problem, or all steps but the last
       │
       ▼
    prompt + the first steps of the solution ─▶ completions ─▶ accuracy ─▶ curve ─▶ its rate at the target ─▶ next round

A group has ``rounds`` rounds of equally many completions. A hint is told as the beginning of the response: what is
scored is hint and completion together, while only the completion is the policy's. Where no completion of a round could
be judged, the curve goes without that round.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from megatron_rl.data.task import UNBOUNDED, Example
from megatron_rl.errors import InputError
from megatron_rl.rollout.config import HintsConfig
from megatron_rl.rollout.mean import summarise
from megatron_rl.rollout.protocol import Completion
from megatron_rl.rollout.rollout import Rollout, from_completion
from megatron_rl.rollout.strategies import Complete, Score
from megatron_rl.rollout.strategies.hint_rate import cold_start, fit, gather, told_steps

STEPS = "steps"  # in Example.extra: the solution, a list of texts
_LOOKED_AT = 100  # examples of a generator


@dataclass
class Hinted:
    """``encode`` and ``decode`` as for ``Single``; ``rates``: example -> the rate that its next visit begins with."""

    config: HintsConfig
    encode: Callable[[str], tuple[int, ...]]
    decode: Callable[[Completion], str]
    rates: dict[str, float] = field(default_factory=dict)

    async def group(self, example: Example, size: int, complete: Complete, score: Score) -> list[Rollout]:
        """As ``Strategy.group``; changes no rates, for groups of one round may be of one problem."""
        prompt, steps = self.encode(example.prompt), example.extra[STEPS]
        group: list[Rollout] = []
        rate = self.rates.get(example.id, cold_start(len(steps)))
        for number in range(self.config.rounds):
            if number:
                rate = self._rate(group)
            hint = hint_text(steps, rate)
            told = self.encode(hint) if hint else ()
            done = await complete((*prompt, *told), size // self.config.rounds)
            rollouts = [self._rollout(example, prompt, told, hint, completion) for completion in done]
            for rollout in rollouts:
                rollout.round, rollout.hint_rate = number, rate
            await score(rollouts)
            group += rollouts
        return group

    def observe(self, groups: Sequence[Sequence[Rollout]]) -> None:
        """As ``Strategy.observe``: keep the rate that all rounds of a problem together say."""
        for group in groups:
            self.rates[group[0].example.id] = self._rate(group)

    def state(self) -> dict[str, float]:
        """As ``Strategy.state``."""
        return dict(self.rates)

    def restore(self, state: Mapping[str, float]) -> None:
        """As ``Strategy.restore``."""
        self.rates = dict(state)

    def _rate(self, group: Sequence[Rollout]) -> float:
        seen = [(rate, accuracy) for _, rate, accuracy, _ in by_round(group) if accuracy is not None]
        return fit(gather(seen)).rate(self.config.target)

    def _rollout(
        self, example: Example, prompt: tuple[int, ...], told: tuple[int, ...], hint: str, completion: Completion
    ) -> Rollout:
        rollout = from_completion(example, (*prompt, *told), completion, hint + self.decode(completion))
        rollout.prompt = len(prompt)
        rollout.hinted = ~rollout.drawn & (np.arange(len(rollout.tokens)) >= len(prompt))
        return rollout


def hint_text(steps: Sequence[str], rate: float) -> str:
    """The first steps, a line each; empty for none."""
    return "".join(f"{step}\n" for step in steps[: told_steps(rate, len(steps))])


def by_round(group: Sequence[Rollout]) -> list[tuple[int, float, float | None, int]]:
    """(round, hint rate, share that is right, how many are) of one problem's completions in each round, of those that
    could be judged; None where none could."""
    found = []
    for number in dict.fromkeys(rollout.round for rollout in group):
        rollouts = [rollout for rollout in group if rollout.round == number]
        reports = [r.scored.report for r in rollouts if r.scored.report is not None]
        accuracy = summarise(reports)["correct"] if reports else None
        right = round((accuracy or 0.0) * len(reports))
        found.append((number, rollouts[0].hint_rate, accuracy, right))
    return found


def measure_hints(groups: Sequence[Sequence[Rollout]]) -> dict[str, float]:
    """The numbers of hinted groups: how much was told, the accuracy of each round, and the share of rounds of a problem
    in which 2 to n - 2 of n completions were right."""
    rounds = [(len(group), part) for group in groups for part in by_round(group)]
    per_round = {number for _, (number, *_) in rounds}
    metrics = {"hint/rate": float(np.mean([rate for _, (_, rate, _, _) in rounds]))}
    for number in sorted(per_round):
        shares = [accuracy for _, (at, _, accuracy, _) in rounds if at == number and accuracy is not None]
        if shares:
            metrics[f"hint/accuracy_{number + 1}"] = float(np.mean(shares))
    inside = [2 <= right <= size // len(per_round) - 2 for size, (_, _, _, right) in rounds]
    return metrics | {"hint/in_target": float(np.mean(inside))}


def require_steps(train: Sequence[Example], encode: Callable[[str], tuple[int, ...]], longest: int) -> None:
    """Raises InputError naming the first training example without steps, or whose prompt and steps together have more
    than ``longest`` tokens: the engine is given both (of a generator, the first ones are looked at)."""
    for index in range(_LOOKED_AT if len(train) == UNBOUNDED else len(train)):
        example = train[index]
        steps = example.extra.get(STEPS)
        if not isinstance(steps, list | tuple) or not steps or not all(isinstance(s, str) and s.strip() for s in steps):
            raise InputError(
                f"rollout.strategy=hinted tells steps of the solution, and training example {example.id} has none: a "
                "task gives them as a list of texts, `steps`. data.task=math_problems takes them from a column of that "
                "name, or the lines of a solution; data.bad_rows=drop leaves rows without them out."
            )
        length = len(encode(example.prompt)) + len(encode(hint_text(steps, 1.0)))
        if length > longest:
            raise InputError(
                f"The prompt of training example {example.id} and the steps of its solution have {length} tokens, more "
                f"than data.max_prompt_tokens={longest}, and rollout.strategy=hinted may give both: raise it."
            )
