"""Hinted groups on an engine whose accuracy under hints is known."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import pytest

from megatron_rl.data.task import Example
from megatron_rl.errors import InputError
from megatron_rl.rollout.batches import Batches
from megatron_rl.rollout.check import check_rollout
from megatron_rl.rollout.collect import collect
from megatron_rl.rollout.config import HintsConfig, RolloutConfig
from megatron_rl.rollout.measure import measure
from megatron_rl.rollout.protocol import Completion, Request, Sampling
from megatron_rl.rollout.rollout import Rollout
from megatron_rl.rollout.strategies.hint_rate import Curve, fit, gather
from megatron_rl.rollout.strategies.hinted import Hinted, hint_text, require_steps

TRUE = Curve(9, -0.62, 0.0)  # accuracy without a hint: 0.004
STEPS = [f"step {i}" for i in range(10)]
PROMPT = "a question: "
RIGHT, WRONG = 7, 8  # tokens


@dataclass
class Student:
    """Right as often as ``TRUE`` says of the part of the solution that it was told."""

    asked: list[str] = field(default_factory=list)
    batches: Batches = field(default_factory=Batches)

    async def complete(self, request: Request, sampling: Sampling) -> list[Completion]:
        return await self.batches.complete(self.generate, request, sampling)

    def generate(self, requests: Sequence[Request], sampling: Sampling) -> list[list[Completion]]:
        made = []
        for request in requests:
            text = "".join(map(chr, request.tokens))
            self.asked.append(text.removeprefix(PROMPT))
            chance = TRUE.accuracy(text.count("\n") / len(STEPS))
            drawn = [RIGHT if np.random.default_rng(seed).random() < chance else WRONG for seed in request.seeds]
            made.append([Completion([token], [-0.5], "stop", ((3, 1),)) for token in drawn])
        return made


@dataclass
class Points:
    reward: float
    report: dict[str, float] | None
    components: dict[str, float] = field(default_factory=dict)
    timed_out: bool = False
    crashed: bool = False


def score(groups: Sequence[Sequence[Rollout]]) -> list[None]:
    for group in groups:
        for rollout in group:
            right = float(rollout.tokens[-1] == RIGHT)
            rollout.scored = Points(right, {"correct": right})
    return [None] * len(groups)


def unjudged(groups: Sequence[Sequence[Rollout]]) -> list[None]:
    for group in groups:
        for rollout in group:
            rollout.scored = Points(0.0, None, timed_out=True)
    return [None] * len(groups)


def hinted(**options: float) -> Hinted:
    return Hinted(HintsConfig(**options), lambda text: tuple(map(ord, text)), lambda completion: "done")


def examples(count: int, steps: Sequence[str] = STEPS) -> list[Example]:
    return [Example(f"train/{i}", PROMPT, "", extra={"steps": list(steps)}) for i in range(count)]


def test_a_group_is_hints_completions_and_their_masks() -> None:
    student, strategy = Student(), hinted(rounds=4)
    [group] = collect(examples(1), 8, strategy, student, Sampling(1), score, "0").groups
    assert [rollout.round for rollout in group] == [0, 0, 1, 1, 2, 2, 3, 3]
    assert student.asked[0] == "".join(f"{step}\n" for step in STEPS[:9]) and group[0].hint_rate == 0.9
    for rollout, hint in zip(group[::2], student.asked, strict=True):
        assert hint == hint_text(STEPS, rollout.hint_rate)
        assert rollout.text == f"{hint}done"  # what is scored is the whole solution
        told = len(PROMPT) + len(hint)
        assert rollout.hinted is not None and rollout.prompt == len(PROMPT)
        assert np.flatnonzero(rollout.hinted).tolist() == list(range(len(PROMPT), told))
        assert np.flatnonzero(rollout.drawn).tolist() == [told] and rollout.length == 1
    for number in (1, 2, 3):  # the rate of a round is what the rounds before it say
        before = [r for r in group if r.round < number]
        seen = [(r.hint_rate, np.mean([float(o.scored.reward) for o in before if o.round == r.round])) for r in before]
        points = gather((rate, float(accuracy)) for rate, accuracy in dict.fromkeys(seen))
        assert group[2 * number].hint_rate == fit(points).rate(0.5)
    assert strategy.rates == {}
    strategy.observe([group])
    assert 0 < strategy.rates["train/0"] < 1


def test_hints_hold_the_accuracy() -> None:
    """Five visits of 32 problems; the first round of the first tells nearly everything."""
    strategy, problems, accuracies, rates = hinted(), examples(32), [], []
    for visit in range(5):
        groups = collect(problems, 32, strategy, Student(), Sampling(1), score, str(visit)).groups
        strategy.observe(groups)
        accuracies.append(measure(groups)["accuracy"])
        rates.append(groups[0][0].hint_rate)
    numbers = measure(groups)
    assert rates[0] == 0.9 and rates[4] == pytest.approx(0.62, abs=0.2)
    assert 0.4 < accuracies[4] < 0.6 and all(0.35 < numbers[f"hint/accuracy_{n}"] < 0.65 for n in (1, 2, 3, 4))
    assert numbers["hint/in_target"] > 0.6 and numbers["hint/rate"] == pytest.approx(0.62, abs=0.1)
    assert accuracies[0] > 0.5


def test_another_target() -> None:
    strategy, problems = hinted(target=0.25), examples(24)
    for visit in range(4):
        groups = collect(problems, 32, strategy, Student(), Sampling(1), score, str(visit)).groups
        strategy.observe(groups)
    assert 0.13 < measure(groups)["accuracy"] < 0.37


def test_its_state_is_all_that_it_remembers() -> None:
    first, second = hinted(), hinted()
    first.observe(collect(examples(6), 8, first, Student(), Sampling(1), score, "0").groups)
    second.restore(json.loads(json.dumps(first.state())))
    after = [collect(examples(6), 8, s, Student(), Sampling(1), score, "1").groups for s in (first, second)]
    for a, b in zip(*after, strict=True):
        assert [r.hint_rate for r in a] == [r.hint_rate for r in b] and a[0].hint_rate == first.rates[a[0].example.id]
        assert all((x.tokens == y.tokens).all() for x, y in zip(a, b, strict=True))


def test_one_problem_twice_in_a_round() -> None:
    strategy, twice = hinted(), examples(1) * 2
    one, other = collect(twice, 8, strategy, Student(), Sampling(1), score, "0").groups
    assert one[0].hint_rate == other[0].hint_rate == 0.9
    strategy.observe([one, other])
    last = strategy.rates["train/0"]
    strategy.observe([other])
    assert strategy.rates["train/0"] == last


def test_without_a_judgement_there_is_no_point() -> None:
    strategy = hinted()
    [group] = collect(examples(1), 8, strategy, Student(), Sampling(1), unjudged, "0").groups
    strategy.observe([group])
    assert {r.hint_rate for r in group} == {0.9, strategy.rates["train/0"]}
    assert strategy.rates["train/0"] == fit(gather([])).rate(0.5)
    assert "hint/accuracy_1" not in measure([group]) and measure([group])["hint/in_target"] == 0


def test_a_solution_of_one_step() -> None:
    student = Student()
    collect(examples(1, ["all of it"]), 8, hinted(), student, Sampling(1), score, "0")
    assert student.asked[0] == ""


def test_examples_without_steps_are_refused() -> None:
    def encode(text: str) -> tuple[int, ...]:
        return tuple(map(ord, text))

    require_steps(examples(3), encode, 200)
    for steps in ([], ["one", ""], ["one", 2], "text"):
        bad = [*examples(1), Example("train/7", "", "", extra={"steps": steps})]
        with pytest.raises(InputError, match="training example train/7 has none"):
            require_steps(bad, encode, 200)
    with pytest.raises(InputError, match=r"steps of its solution have 82 tokens, more than data.max_prompt_tokens=50"):
        require_steps(examples(1), encode, 50)


def test_options() -> None:
    good = RolloutConfig(strategy="hinted", group_size=8)
    assert check_rollout(good) == []
    bad = RolloutConfig(strategy="hinted", group_size=10, staleness=1)
    assert [said.partition(",")[0] for said in check_rollout(bad)] == [
        "rollout.group_size is 10",
        "rollout.strategy=hinted needs rollout.staleness=0: the rates that a problem's hints begin with are those that "
        "its last visit left.",
    ]
    [said] = check_rollout(RolloutConfig(hints=HintsConfig(rounds=2)))
    assert said.startswith("rollout.hints.rounds=2 does nothing without rollout.strategy=hinted")
