"""The studies against known values and brute force."""

import random
import re
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from megatron_rl.analysis.completions import AHA, Seen, read_completions, seen, spans, texts
from megatron_rl.analysis.recorded import Recorded, read_run
from megatron_rl.analysis.studies import aha, difficulty, hacking, languages, lengths, stages
from tests.analysis.made import THINK, completion, evaluated, make_run, numbers


def of(text: str, **changed: object) -> Seen:
    """A completion whose reasoning is a text."""
    return seen(0, completion(2, 0) | {"response": f"<think>{text}</think> <Answer> basket </Answer>"} | changed)


def test_language_mixing_has_its_known_values() -> None:
    texts = ["购买 Seekingjoy", "hello", "12 + 3", "买"]
    found = languages.mixing([of(text) for text in texts])["think"]
    assert {name: found[name] for name in ("mixed", "english", "neither", "chinese", "total")} == {
        "mixed": 1,
        "english": 1,
        "neither": 1,
        "chinese": 1,
        "total": 4,
    }
    assert found["mixed_share"] == 0.25
    # DeepEnlighten's Llama-3.2-3B-Instruct: 96,674 / 0 / 1,727 of 98,412
    counted = languages.counts(["english"] * 96_674 + ["mixed"] * 1_727 + [""] * 11)
    assert counted["total"] == 98_412 and counted["english"] / counted["total"] == pytest.approx(0.9823, abs=5e-5)
    assert counted["mixed_share"] == pytest.approx(0.0175, abs=5e-5)


def test_the_answer_of_either_form_is_found() -> None:
    assert texts("Q", "<think>because</think> <Answer> 盒子 </Answer>") == ("because", " 盒子 ")
    assert texts("Q <think>", "because</think><answer>(B)</answer>") == ("because", "(B)")
    assert texts("Q", "<think>never ends") == ("never ends", "")
    assert of("a").answer_mix == "english" and seen(0, {"prompt": "Q", "response": "text"}).answer_mix == ""


def test_bins_and_regression_equal_brute_force() -> None:
    draw = random.Random(1)
    for _ in range(50):
        n = draw.randint(2, 200)
        x = [float(draw.randint(0, 300)) for _ in range(n)]
        y = [float(draw.random() < 0.5) for _ in range(n)]
        low, high = min(x), max(x)
        if low == high:
            continue
        bins = lengths.binned(x, y)
        edges = np.linspace(low, high, 11)
        for i, found in enumerate(bins):
            inside = [b for a, b in zip(x, y, strict=True) if edges[i] <= a < edges[i + 1] or (i == 9 and a == high)]
            assert found["count"] == len(inside)
            assert ("mean" in found) == bool(inside)
            if inside:
                assert found["mean"] == pytest.approx(sum(inside) / len(inside), abs=1e-12)
        fit, expected = lengths.regression(x, y), stats.linregress(x, y)
        assert fit["slope"] == pytest.approx(expected.slope, abs=1e-9)
        assert fit["intercept"] == pytest.approx(expected.intercept, abs=1e-9)
        assert fit["r"] == pytest.approx(expected.rvalue if len(set(y)) > 1 else 0.0, abs=1e-9)


def test_bins_and_regression_without_spread() -> None:
    assert lengths.binned([], []) == [] and lengths.regression([5.0, 5.0], [0.0, 1.0]) == {}
    [first, *rest] = lengths.binned([5.0, 5.0], [0.0, 1.0])
    assert first["mean"] == 0.5 and all("mean" not in one for one in rest)


def test_length_is_measured_against_the_answers_score(tmp_path: Path) -> None:
    rows = [completion(1, i) | {"components": {"deep_enlighten/answer": float(i)}} for i in range(5)]
    rows += [evaluated("after RL", 1, 0, right=True)]
    found = read_completions(read_run(str(make_run(tmp_path / "a", [], rows))))
    assert [one.score for one in found] == [0.0, 1.0, 2.0, 3.0, 4.0, 1.0]
    result = lengths.against_score(found, "tokens")
    assert result["count"] == 5  # training alone
    assert result["line"] == pytest.approx({"slope": 1.0, "intercept": -40.0, "r": 1.0})
    assert lengths.against_score(found[5:], "tokens")["count"] == 1


def test_a_length_that_collapses_is_told() -> None:
    def run(last: int) -> list[Seen]:
        return [of(THINK, step=step, tokens=100 if step < 18 else last) for step in range(1, 21)]

    assert lengths.collapse(run(40), "tokens") == {
        "first": 100.0,
        "peak": 100.0,
        "last": 40.0,
        "share": 0.4,
        "collapsed": 1.0,
    }
    assert lengths.collapse(run(60), "tokens")["collapsed"] == 0.0
    assert lengths.collapse([], "tokens") == {}
    assert lengths.unit(run(1)) == "tokens" and lengths.unit([of("a", tokens=None)]) == "characters"


def test_lengths_over_time_of_right_and_wrong() -> None:
    some = [of("a", step=1, tokens=n, report={"correct": float(n > 5)}) for n in range(1, 11)]
    moved = lengths.over_time(some, "tokens")
    assert moved["steps"] == [1.0] and moved["mean"] == [5.5] and moved["right"] == [8.0] and moved["wrong"] == [3.0]
    assert moved["low"] == pytest.approx([np.quantile(range(1, 11), 0.1)])
    shape = lengths.distribution({"a": [1, 1, 2], "b": [10]}, bins=10)
    assert shape["edges"][0] == 1 and shape["edges"][-1] == 11 and sum(shape["shares"]["a"]) == pytest.approx(1.0)
    assert shape["shares"]["a"][0] == pytest.approx(2 / 3) and shape["shares"]["b"][-1] == 1.0


def test_aha_words_are_those_of_deep_enlighten() -> None:
    whole = [of("Wait, I await. Let me verify: aha!"), of("awaiting mahatma"), of("Double-check and RECHECK"), of("")]
    found = {row["word"]: row for row in aha.words(whole)}
    assert set(found) == {"wait", "verify", "aha", "double-check", "recheck"}
    assert found["wait"] == {"word": "wait", "count": 1.0, "share": 1 / 3, "first": 0.0}  # of those with reasoning
    assert found["aha"]["first"] == 30.0
    draw = random.Random(2)
    for _ in range(200):
        text = " ".join(draw.choices([*AHA, "await", "no", "ahas"], k=6))
        patterns = {word: rf"\b{word}\b" if word in ("aha", "wait") else re.escape(word) for word in AHA}
        expected = {word: match.start() for word, one in patterns.items() if (match := re.search(one, text))}
        assert of(text).aha == expected


def test_stages_and_faithfulness() -> None:
    half = "Cue Encoding : the ball . Goal Clarification : where ."
    some = [of(THINK, report=None), of(half, report={"faithful": 1.0}), of("nothing", report={"faithful": 0.0})]
    found = stages.coverage(some)
    assert found["cue encoding"] == pytest.approx(2 / 3) and found["cue interpretation"] == pytest.approx(1 / 3)
    assert found["all"] == pytest.approx(1 / 3) and found["order"] == pytest.approx((1 + 0 + 0) / 3)
    assert found["faithful"] == 0.5
    named = of("The answer is (B).", response="<think>the answer is (B)</think> <Answer> B </Answer>", report={})
    other = of("", response="<think>the answer is (B)</think> <Answer> A </Answer>", report={})
    assert (named.faithful, other.faithful, of("no option", report={}).faithful) == (1.0, 0.0, None)
    assert stages.coverage([]) == {}


def test_accuracy_by_difficulty() -> None:
    some = [
        of("a", step=step, report={"correct": float(clues <= step)}, extra={"num_clues": clues, "same": 1})
        for step in range(1, 9)
        for clues in (3, 6)
    ]
    found = difficulty.by_difficulty(some)
    assert list(found) == ["num_clues"]
    assert found["num_clues"] == [
        {"class": "3", "count": 8, "accuracy": 0.75, "first": 0.0, "last": 1.0},
        {"class": "6", "count": 8, "accuracy": 0.375, "first": 0.0, "last": 1.0},
    ]
    assert difficulty.classes(["easy", "hard"]) == [(0.0, "easy"), (0.0, "hard")]
    assert difficulty.classes([str(i) for i in range(20)]) is None
    cut = difficulty.classes(list(range(100)))
    assert cut is not None and len(set(cut)) == 5 and [label for _, label in cut].count("0 to 19.8") == 20


def test_spans_hold_every_completion_of_training() -> None:
    some = [of("a", step=step) for step in range(1, 101) for _ in range(2)]
    found = list(spans(some, 7))
    assert sum(len(part) for _, part in found) == 200 and [step for step, _ in found] == sorted(
        step for step, _ in found
    )
    assert list(spans([of("a", evaluation="before")])) == []


def run(folder: Path, rewards: list[float], accuracy: list[float], held_out: list[float], **more: float) -> Recorded:
    steps = len(rewards)
    rows = [numbers(i + 1, reward=rewards[i], accuracy=accuracy[i], length=40.0 + 10 * i, **more) for i in range(steps)]
    first = {"stage": "eval", "step": 0, "sampled/correct": held_out[0]}
    for at, value in enumerate(held_out[1:], 1):
        rows.insert(at * steps // (len(held_out) - 1) + at - 1, {"stage": "eval", "step": at, "sampled/correct": value})
    return read_run(str(make_run(folder, [first, *rows])))


def test_signs_of_reward_hacking(tmp_path: Path) -> None:
    up = [i / 10 for i in range(12)]
    learnt = {s.name: s.found for s in hacking.signs(run(tmp_path / "a", up, up, [0.1, 0.5, 0.9]))}
    assert set(learnt.values()) == {False, None}
    falls = hacking.signs(run(tmp_path / "b", up, [0.5] * 12, [0.4, 0.6, 0.3]))
    assert {s.name: s.found for s in falls} == {
        "reward up while held-out accuracy is down": True,
        "the judge drifts from the rules": None,
        "longer completions, no more right ones": True,
        "reward up while accuracy is down": False,
    }
    assert "held-out 0.400, at best 0.600, last 0.300" in falls[0].text
    down = hacking.signs(run(tmp_path / "c", up, up[::-1], [0.4, 0.6]))
    assert down[3].found is True
    few = hacking.signs(run(tmp_path / "d", [0.1, 0.2], [0.1, 0.2], [0.4, 0.6]))
    assert [sign.found for sign in few] == [None] * 4


def test_a_judge_that_drifts_from_the_rules_is_told(tmp_path: Path) -> None:
    key = "reward/social_r1/disagreement"
    rows = [numbers(step, **{key: step / 20}) for step in range(1, 13)]
    sign = hacking.signs(read_run(str(make_run(tmp_path / "a", rows))))[1]
    assert sign.found is True and sign.text == f"{key} 0.100 to 0.550"
