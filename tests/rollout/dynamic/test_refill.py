"""Batches out of rounds."""

import json
from collections.abc import Sequence
from typing import Any

import pytest

from megatron_rl.errors import RunError
from megatron_rl.rollout.config import DynamicConfig, RolloutConfig
from megatron_rl.rollout.dynamic.refill import Refill, Round
from megatron_rl.rollout.dynamic.stored import pack, unpack
from megatron_rl.rollout.prefetch import Prefetch
from tests.rollout.dynamic.made import Points, group, rollout

YES, NO, RIGHT = [1.0, 0.0], [0.0, 0.0], [1.0, 1.0]


class Run:
    """Rounds of given rewards, each drawn with the weights of the step in which it is begun; group i is example i."""

    def __init__(self, rounds: Sequence[Sequence[list[float]]], size: int = 2, staleness: int = 0, **dynamic: Any):
        config = RolloutConfig(
            prompts_per_step=size, group_size=2, staleness=staleness, dynamic=DynamicConfig(filter=True, **dynamic)
        )
        self.rounds, self.step, self.seen, self.warned = rounds, 0, list[tuple[int, float]](), list[str]()
        self.prefetch = Prefetch(self.draw, lambda _, drawn: drawn, staleness, 100)
        self.refill = Refill(
            config,
            lambda step: {"right": 1.0},
            self.prefetch.take,
            lambda index, accuracy: self.seen.append((index, accuracy)),
            self.warned.append,
        )

    def draw(self, number: int, step: int) -> Round:
        first = sum(map(len, self.rounds[:number]))
        rewards = self.rounds[number]
        indices = list(range(first, first + len(rewards)))
        groups = [group(r, str(i), self.step) for i, r in zip(indices, rewards, strict=True)]
        return Round(indices, groups, {"position": first + len(rewards), "round": number + 1}, {"generate": 2.0})

    def take(self) -> tuple[list[str], dict[str, float], dict[str, int]]:
        """The examples of the next step's batch."""
        drawn = self.refill.take(self.step, self.step)
        self.step += 1
        assert all(len({r.example.id for r in g}) == 1 for g in drawn.groups)
        return [g[0].example.id for g in drawn.groups], drawn.metrics, drawn.cursor


def test_equal_groups_are_made_up_for_and_nothing_else_is_lost() -> None:
    run = Run([[YES, NO, RIGHT], [YES, YES, YES, NO], [NO, NO], [YES]])
    names, metrics, cursor = run.take()
    assert names == ["0", "3"] and cursor == {"position": 7, "round": 2}
    expected = {"rounds": 2, "groups_drawn": 7, "groups_dropped": 3, "groups_carried": 2, "groups_expired": 0}
    assert metrics.items() >= expected.items()
    assert metrics["informative"] == pytest.approx(4 / 7) and metrics["time/generate"] == 4
    assert metrics["reward"] == 0.5 and metrics["drawn_reward"] == pytest.approx(6 / 14)
    assert metrics["tokens"] == 14 and metrics["equal_groups"] == 0
    assert run.seen == [(0, 0.5), (1, 0.0), (2, 1.0), (3, 0.5), (4, 0.5), (5, 0.5), (6, 0.0)]

    names, metrics, cursor = run.take()  # of what was left alone
    assert names == ["4", "5"] and cursor == {"position": 7, "round": 2}
    assert metrics.items() >= {"rounds": 0, "groups_drawn": 0, "groups_carried": 0, "tokens": 0}.items()
    assert "informative" not in metrics and "drawn_reward" not in metrics
    run.rounds = [*run.rounds, [YES]]
    assert run.take()[0] == ["9", "10"] and not run.warned


def test_what_waits_too_long_is_dropped_and_counted() -> None:
    run = Run([[YES] * 8, [YES] * 2], max_age=2)
    steps = [run.take() for _ in range(4)]
    assert [names for names, _, _ in steps] == [["0", "1"], ["2", "3"], ["4", "5"], ["8", "9"]]
    assert [m["groups_expired"] for _, m, _ in steps] == [0, 0, 2, 0]  # 6 and 7, with the step that leaves them no next
    assert [m["groups_carried"] for _, m, _ in steps] == [6, 4, 0, 0]
    run = Run([[YES] * 4, [YES] * 2], max_age=0)
    assert [(names, m["groups_expired"]) for names, m, _ in (run.take(), run.take())] == [
        (["0", "1"], 2),
        (["4", "5"], 0),
    ]


def test_rounds_made_ahead_are_refilled_too() -> None:
    """Groups dropped from a prefetched round are made up for, in the order of the rounds; what waits keeps its age."""
    run = Run([[YES, NO], [NO, RIGHT], [YES, YES], [YES, YES], [NO, YES]] + [[YES, YES]] * 3, staleness=1)
    names, metrics, cursor = run.take()
    assert names == ["0", "4"] and cursor == {"position": 6, "round": 3} and metrics["rounds"] == 3
    assert run.take()[0] == ["5", "6"]
    # round 4 was begun in step 2
    assert run.take()[0] == ["7", "9"]
    ages = [2 - w.group[0].versions[0][0] for w in run.refill.waiting]
    assert ages == [] and run.prefetch.number == 6


def test_a_resumed_run_goes_on_as_if_it_had_not_stopped() -> None:
    rounds = [[YES, YES, NO, YES], [NO, YES, NO, NO], [YES, NO, YES, NO], [YES] * 4, [NO, YES, YES, NO]]
    whole = Run(rounds)
    expected = [whole.take()[0] for _ in range(5)]
    for cut in range(1, 5):
        first, second = Run(rounds), Run(rounds)
        before = [first.take()[0] for _ in range(cut)]
        content, cursor = pack(first.refill.waiting), json.loads(json.dumps(first.refill.cursor))
        examples = {w.index: w.group[0].example for w in first.refill.waiting}
        second.refill.waiting = unpack(content, examples.__getitem__, Points)
        second.refill.cursor, second.prefetch.number, second.step = cursor, cursor["round"], cut
        assert before + [second.take()[0] for _ in range(cut, 5)] == expected


@pytest.mark.parametrize("action", ["warn", "go_on", "stop"])
def test_at_the_cap_equal_groups_fill_up_the_batch(action: str) -> None:
    run = Run([[NO, YES], [RIGHT, NO]], size=3, max_batches=2, at_cap=action)
    if action == "stop":
        with pytest.raises(RunError, match=r"Step 1: 2 rounds .* gave 1 groups .* of 3, which stops the run"):
            run.take()
        return
    names, metrics, _ = run.take()
    assert names == ["1", "0", "2"] and metrics["equal_groups"] == pytest.approx(2 / 3)
    said = "step 1: 2 rounds (rollout.dynamic.max_batches) gave 1 groups that can teach something, of 3; others fill up"
    assert [w.startswith(said) for w in run.warned] == ([True] if action == "warn" else [])


@pytest.mark.parametrize("filtered", [True, False])
def test_the_alarm(filtered: bool) -> None:
    rounds = [[YES, NO, NO, NO], [YES, YES, NO, NO]]
    run = Run(rounds, size=1 if filtered else 4, min_informative=0.5)
    run.refill.config.dynamic.filter = filtered
    assert run.take()[1]["informative"] == 0.25 and len(run.warned) == 1 and "step 1: 25.0%" in run.warned[0]
    assert run.take()[1]["informative"] == 0.5 and len(run.warned) == 1
    run = Run(rounds, size=1, min_informative=0.5, alarm="stop")
    with pytest.raises(RunError, match=r"Step 1: 25.0% of the groups .* stops the run"):
        run.take()


def test_without_it_a_round_is_a_batch() -> None:
    run = Run([[YES, NO], [NO, NO]])
    run.refill.config.dynamic.filter = False
    names, metrics, cursor = run.take()
    assert names == ["0", "1"] and cursor == {"position": 2, "round": 1}
    assert metrics["equal_groups"] == 0.5 and metrics["tokens"] == 4
    assert not metrics.keys() & {"rounds", "informative", "groups_drawn", "drawn_reward"}
    assert run.take()[0] == ["2", "3"] and not run.refill.waiting


@pytest.mark.parametrize(("step", "names"), [(0, ["0"]), (5, ["1"])])
def test_a_part_without_weight_teaches_nothing(step: int, names: list[str]) -> None:
    """Its schedule may end at 0; the weights are those of the step for which a group was scored."""
    sums = [[(1.0, 0.0), (1.0, 1.0)], [(1.0, 0.0), (0.0, 0.0)]]  # of right and form; the first group differs in form
    groups = [
        [rollout(Points(1.0, {"right/score": right, "form/score": form}, step=step), str(i)) for right, form in each]
        for i, each in enumerate(sums)
    ]
    refill = Refill(
        RolloutConfig(prompts_per_step=1, group_size=2, dynamic=DynamicConfig(filter=True, by_parts=True)),
        lambda at: {"right": 1.0, "form": 1.0 if at < 5 else 0.0},
        lambda _: Round([0, 1], groups, {}),
        lambda index, accuracy: None,
        pytest.fail,
    )
    assert [group[0].example.id for group in refill.take(step, 0).groups] == names
