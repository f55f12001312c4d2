"""Groups of rollouts from an engine, through strategies."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest

from megatron_rl.data.task import Example
from megatron_rl.rollout.batches import Batches
from megatron_rl.rollout.collect import collect
from megatron_rl.rollout.measure import measure, staleness
from megatron_rl.rollout.protocol import Completion, Request, Sampling
from megatron_rl.rollout.rollout import Rollout, from_completion
from megatron_rl.rollout.strategies import Complete, Score
from megatron_rl.rollout.strategies.single import Single


@dataclass
class Echo:
    """An engine of which every completion is a function of its prompt and seed, as the protocol promises."""

    asked: list[int] = field(default_factory=list)
    batches: Batches = field(default_factory=Batches)

    async def complete(self, request: Request, sampling: Sampling) -> list[Completion]:
        return await self.batches.complete(self.generate, request, sampling)

    def generate(self, requests: Sequence[Request], sampling: Sampling) -> list[list[Completion]]:
        self.asked.append(len(requests))
        return [
            [
                Completion([sum(r.tokens) % 97, seed % 97], [-0.5, -0.25], "length" if seed % 2 else "stop", ((3, 2),))
                for seed in r.seeds
            ]
            for r in requests
        ]


@dataclass
class Points:
    reward: float
    components: dict[str, float]
    report: dict[str, float]
    timed_out: bool = False
    crashed: bool = False


def score(groups: Sequence[Sequence[Rollout]]) -> list[None]:
    for group in groups:
        for rollout in group:
            points = float(rollout.tokens[-1] % 2)
            rollout.scored = Points(points, {"odd/score": points}, {"correct": points})
    return [None] * len(groups)


class TwoRounds:
    """Each completion is continued once more: what hints, tools and partners need."""

    async def group(self, example: Example, size: int, complete: Complete, score: Score) -> list[Rollout]:
        first = await complete((1, 2), size)
        second = [(await complete((1, 2, *c.tokens), 1))[0] for c in first]
        rollouts = [from_completion(example, (1, 2, *a.tokens), b, "") for a, b in zip(first, second, strict=True)]
        await score(rollouts)
        return rollouts


EXAMPLES = [Example(str(i), "abcdef"[: i + 1], i) for i in range(3)]
SAMPLING = Sampling(max_new_tokens=2)
PLAIN = Single(lambda text: tuple(map(ord, text)), lambda completion: str(completion.tokens))


def gather(engine: Any, strategy: Any, name: str = "0/rl/4") -> list[list[Rollout]]:
    return collect(EXAMPLES, 4, strategy, engine, SAMPLING, score, name).groups


def test_all_groups_are_one_batch_and_every_seed_is_its_own() -> None:
    engine = Echo()
    groups = gather(engine, PLAIN)
    assert engine.asked == [3]
    assert [[r.example.id for r in group] for group in groups] == [[str(i)] * 4 for i in range(3)]
    last = [int(r.tokens[-1]) for group in groups for r in group]
    assert len(set(last)) > 8  # of 12 draws out of 97
    assert last == [int(r.tokens[-1]) for group in gather(Echo(), PLAIN) for r in group]
    assert last != [int(r.tokens[-1]) for group in gather(Echo(), PLAIN, "0/rl/5") for r in group]
    one = groups[1][2]
    assert one.tokens.tolist()[:2] == [97, 98] and one.drawn.tolist() == [False, False, True, True]
    assert one.logprobs.tolist() == [0.0, 0.0, -0.5, -0.25] and one.length == 2 and one.prompt == 2


def test_rounds_of_a_group_never_share_a_seed_and_groups_go_on_side_by_side() -> None:
    engine, seen = Echo(), []
    draw = engine.generate
    engine.generate = lambda requests, sampling: (  # type: ignore[method-assign]
        seen.extend(seed for r in requests for seed in r.seeds) or draw(requests, sampling)
    )
    groups = gather(engine, TwoRounds())
    assert len(seen) == len(set(seen)) == 24
    assert engine.asked == [3] * 5
    assert all(r.scored is not None and r.prompt == 4 for group in groups for r in group)


def test_the_numbers_of_a_step() -> None:
    groups = gather(Echo(), PLAIN)
    numbers = measure(groups)
    odd = np.array([[r.tokens[-1] % 2 for r in group] for group in groups])
    assert numbers["reward"] == numbers["accuracy"] == numbers["reward/odd/score"] == odd.mean()
    assert numbers["reward_std"] == odd.std() and numbers["tokens"] == 24 and numbers["length_max"] == 2
    assert numbers["equal_groups"] == (odd == odd[:, :1]).all(1).mean()
    assert numbers["truncated"] == np.mean([r.finish == "length" for group in groups for r in group])
    assert not any(name.startswith("accuracy/") for name in numbers)  # there is one data source
    for r in groups[1]:
        r.example = Example("1", "ab", 1, data_source="sums")
    by_source = measure(groups)
    assert by_source["accuracy/sums"] == odd[1].mean() and by_source["accuracy/unnamed"] == odd[[0, 2]].mean()
    assert {k: v for k, v in by_source.items() if not k.startswith("accuracy/")} == numbers
    groups[0][0].versions = ((2, 1), (3, 1))
    assert staleness(groups, 4) == {"staleness": 25 / 24, "staleness_max": 2.0}


def test_numbers_that_are_none_spoil_no_others() -> None:
    groups = gather(Echo(), PLAIN)
    expected = measure([groups[0], groups[1][1:], groups[2]])
    groups[1][0].scored = Points(float("nan"), {"odd/score": float("nan")}, groups[1][0].scored.report)
    found = measure(groups)
    for name in ("reward", "reward_std", "reward/odd/score", "equal_groups"):
        assert found[name] == expected[name]
    assert found["tokens"] == 24
    for rollout in groups[0]:
        rollout.scored = Points(float("inf"), {}, {"correct": 1.0})
    alone = measure(groups[:1])
    assert alone["equal_groups"] == 1 and alone["reward_std"] == 0
    assert not any(name == "reward" or name.startswith("reward/") for name in alone)


def test_lengths_by_what_became_of_completions() -> None:
    groups = gather(Echo(), PLAIN)
    flat = [r for group in groups for r in group]
    for number, rollout in enumerate(flat):
        rollout.drawn, rollout.logprobs = np.ones(number + 1, dtype=bool), np.zeros(number + 1, dtype=np.float32)
        rollout.scored.report = {"correct": float(number in (1, 2, 9))}
        rollout.finish = "stop" if number < 4 else "length"
    flat[11].scored.report = None  # its worker died: neither right nor wrong
    found = measure(groups)
    assert found["length_stopped"] == 2.5 and found["length_right"] == pytest.approx((2 + 3 + 10) / 3)
    assert found["length_wrong"] == pytest.approx((sum(range(1, 13)) - 15 - 12) / 8)
    assert found["pass_at_k"] == pytest.approx(2 / 3) and found["truncated"] == pytest.approx(8 / 12)
    for rollout in flat:
        rollout.finish, rollout.scored.report = "length", {"correct": 0.0}
    none = measure(groups)
    assert none["pass_at_k"] == 0 and not {"length_stopped", "length_right"} & set(none)
