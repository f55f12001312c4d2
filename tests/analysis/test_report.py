"""The page, without a browser: what is in it, and that texts of models cannot break out of it."""

import base64
import gzip
import json
import re
from pathlib import Path
from typing import Any

import pytest

from megatron_rl.analysis.completions import read_completions
from megatron_rl.analysis.recorded import read_run
from megatron_rl.analysis.report.blocks import chart, line, numbers, thinned
from megatron_rl.analysis.report.experiments import curve, differences, experiments, number
from megatron_rl.analysis.report.machine import parts
from megatron_rl.analysis.report.page import as_json, filled, make_page, read_runs, template
from megatron_rl.analysis.report.samples import choose, of_step, pieces, spread
from megatron_rl.errors import InputError
from tests.analysis import made
from tests.analysis.made import completion, evaluated, make_run

pytest.importorskip("plotly")
HOSTILE = "</script><script>window.hurt = 1</script><img src=x onerror='hurt=1'>\u2028\x00\x1b[31m\u202e{{SAMPLES}}"


def small(folder: Path, seed: int = 0, *overrides: str, **changed: Any) -> Path:
    """A run of ten steps, evaluated before and after."""
    rows = [{"stage": "eval", "step": 0, "greedy/correct": 0.1}]
    rows += [made.numbers(step, reward=step / 10 + seed) for step in range(1, 11)]
    rows += [{"stage": "eval", "step": 10, "greedy/correct": 0.8}]
    texts = [evaluated("before", 0, i, right=False) for i in range(3)]
    texts += [completion(step, i, **changed) for step in range(1, 11) for i in range(4)]
    texts += [evaluated("after RL", 10, i, right=True) for i in range(3)]
    return make_run(folder, rows, texts, [f"run.seed={seed}", *overrides], complete=10)


def content(page: str) -> dict[str, Any]:
    """What the page's script reads."""
    found = re.search(r'<script type="application/json" id="content">(.*?)</script>', page, re.DOTALL)
    assert found
    return json.loads(found[1])


def samples(page: str) -> dict[str, Any]:
    found = re.search(r'id="packed-samples">([^<]*)</script>', page)
    assert found
    return json.loads(gzip.decompress(base64.b64decode(found[1])))


def charts(page: str, section: str) -> dict[str, Any]:
    [own] = [one for one in content(page)["sections"] if one["name"] == section]
    return {block["title"]: block for block in own["blocks"] if block["kind"] in ("chart", "table")}


def test_a_page_of_one_run(tmp_path: Path) -> None:
    page = make_page(read_runs([str(small(tmp_path / "run"))]))
    assert [one["name"] for one in content(page)["sections"]] == [
        *("overview", "curves", "rewards", "behaviour", "samples", "machine", "provenance"),
    ]
    overview = charts(page, "overview")
    assert overview["Runs"]["rows"][0][:4] == ["run", "complete", "10 / 10", 0]
    assert overview["held-out accuracy"]["series"][0]["x"] == [0.0, 10.0]
    assert overview["held-out accuracy"]["series"][0]["y"] == [0.1, 0.8]
    assert overview["reward"]["series"][0]["y"] == numbers([step / 10 for step in range(1, 11)])
    terms = {one["name"]: one["y"][9] for one in charts(page, "rewards")["Reward by its terms"]["series"]}
    assert terms == {"answer_in_format": 0.5, "format": 0.2}  # weights 1 and 0.2
    [swap] = [rows for rows in charts(page, "machine").values() if rows["kind"] == "table" and "plan" in rows["head"]]
    assert swap["rows"] == [["run", "2.00 MB", "10.0 ms", "0.20 GB/s", "2.0 %", "10 by hashes", "abc"]]
    assert len(samples(page)["samples"]) == 46
    assert not re.search(r"(?:src|href)=\"(?!data:|#)", page.partition("packed-samples")[0])


def test_seeds_are_a_mean_and_a_band_and_others_are_apart(tmp_path: Path) -> None:
    folders = [small(tmp_path / "a"), small(tmp_path / "b", 1), small(tmp_path / "c", 0, "rollout.group_size=4")]
    runs = [read_run(str(folder)) for folder in folders]
    both, other = experiments(runs)
    assert [run.name for run in both.runs] == ["a", "b"] and other.label == "c"
    found = curve(both, "rl", number("reward"))
    assert found is not None
    assert found["y"] == numbers([step / 10 + 0.5 for step in range(1, 11)])
    assert found["low"] == numbers([step / 10 for step in range(1, 11)])
    assert found["high"] == numbers([step / 10 + 1 for step in range(1, 11)])
    assert differences(runs) == [("rollout.group_size", [8, 8, 4])]
    page = charts(make_page(read_runs([str(folder) for folder in folders])), "provenance")
    assert ["run.seed", "0", "1", "0"] in page["Options that differ"]["rows"]


def test_seeds_are_compared_at_the_steps_that_all_have(tmp_path: Path) -> None:
    folders = [
        make_run(tmp_path / name, [made.numbers(step) for step in range(1, n)]) for name, n in (("a", 4), ("b", 9))
    ]
    [one] = experiments([read_run(str(folder)) for folder in folders])
    found = curve(one, "rl", number("reward"))
    assert found is not None and found["x"] == [1.0, 2.0, 3.0]


def test_hostile_texts_stay_texts(tmp_path: Path) -> None:
    run = small(tmp_path / "run", response=HOSTILE, prompt=HOSTILE, id=HOSTILE, extra={HOSTILE: 1})
    page = make_page(read_runs([str(run)]))
    assert "window.hurt" not in page  # it is packed
    assert page.count("</script>") == 4
    found = [one for one in samples(page)["samples"] if one["id"] == HOSTILE]
    assert len(found) == 40 and all("".join(text for _, text in one["pieces"]) == HOSTILE for one in found)
    run = make_run(tmp_path / "two", [made.numbers(1) | {HOSTILE: 1.0}, made.numbers(2) | {HOSTILE: 2.0}])
    page = make_page(read_runs([str(run)]))
    assert page.count("</script>") == 4 and HOSTILE in charts(page, "curves")


def test_json_of_a_script_element() -> None:
    text = as_json({"a": "</script><!--", "b": "\u2028", "c": "\ud800é"})
    assert "<" not in text and "\u2028" not in text
    assert json.loads(text) == {"a": "</script><!--", "b": "\u2028", "c": "\ud800é"}


def test_every_mark_of_the_template_is_filled() -> None:
    marks = set(re.findall(r"{{(\w+)}}", template("page.html")))
    page = filled(dict.fromkeys(marks, "{{STYLE}}"))
    assert marks == {"STYLE", "CONTENT", "SCRIPT", "SAMPLES", "PLOTLY"} and page.count("{{STYLE}}") == 5


def test_a_run_without_rows_has_a_page_that_says_so(tmp_path: Path) -> None:
    page = make_page(read_runs([str(make_run(tmp_path / "run", []))]))
    [notes] = [block for block in content(page)["sections"][0]["blocks"] if block["kind"] == "notes"]
    said = " ".join(text for _, text in notes["notes"])
    assert "no rows yet" in said and "not complete (0 of 10 steps)" in said and "no completions" in said


def test_bad_input(tmp_path: Path) -> None:
    one = str(small(tmp_path / "one"))
    with pytest.raises(InputError, match="given twice"):
        make_page(read_runs([one, one]))
    with pytest.raises(InputError, match="same name"):
        make_page(read_runs([one, str(small(tmp_path / "other" / "one"))]))


def test_a_completion_is_cut_at_its_stages_and_loses_nothing() -> None:
    response = completion(2, 0)["response"]
    for prompt, text in (("Q", response), ("Q <think>", response.removeprefix("<think>")), ("Q", "é😀 " + response)):
        found = pieces(prompt, text)
        assert "".join(piece for _, piece in found) == text
        named = {kind: piece for kind, piece in found if kind}
        if text.startswith("é"):
            continue  # not of the right form: no answer is known
        assert sorted(named) == [1, 2, 3, 4, 5] and named[5] == " basket "
        assert named[1].startswith("Cue Encoding") and named[4].startswith("Response Generation")
    assert pieces("Q", "") == [] and pieces("Q", "no form") == [(0, "no form")]


def test_choice_keeps_ends_of_evaluations_and_best_and_worst_of_steps(tmp_path: Path) -> None:
    rows = [evaluated(label, 0, i, True) for label in ("before", "step 5", "after RL") for i in range(30)]
    rows += [completion(step, i, reward=float(i)) for step in range(1, 31) for i in range(10)]
    folder = make_run(tmp_path / "run", [made.numbers(1)], rows)
    seen = read_completions(read_run(str(folder)))
    chosen = choose(seen, 120)
    assert len(chosen) <= 120 and chosen == sorted(chosen, key=lambda one: one.offset)
    of = {label: [one.id for one in chosen if one.evaluation == label] for label in ("before", "step 5", "after RL")}
    assert of["before"] == of["after RL"] and len(of["before"]) == 24 and of["step 5"] == []
    steps = sorted({one.step for one in chosen if not one.evaluation})
    assert steps[0] == 1 and steps[-1] == 30
    for step in steps:
        rewards = [one.reward for one in chosen if not one.evaluation and one.step == step]
        assert rewards[0] == 0.0 and rewards[-1] == 9.0
    assert choose(seen, len(seen)) == seen
    assert of_step(seen[:3], 5) == seen[:3]
    assert spread(list(range(10)), 4) == [0, 3, 6, 9] and spread([1, 2], 5) == [1, 2] and spread([1, 2, 3], 0) == []


def test_parts_of_a_step_add_up_to_it() -> None:
    row = {"time/step": 2.0, "time/generate": 5.0, "time/update": 1.2, "time/swap": 0.1, "time/reward": 0.3}
    found = parts(row)
    assert sum(found.values()) == pytest.approx(2.0) and found["generate"] == pytest.approx(0.7)
    assert found["update"] == 1.2 and found["reward"] == found["other"] == 0.0


def test_long_lines_are_thinned_to_means() -> None:
    x, y = thinned(list(range(1000)), [float(i % 2) for i in range(999)] + [float("nan")])
    assert len(x) == len(y) == 334 and x[0] == 1.0 and y[0] == pytest.approx(1 / 3, abs=1e-5) and y[-1] is None
    assert numbers([1.23456789, float("inf"), None]) == [1.2346, None, None]
    assert chart("empty", [line("none", [1.0], [float("nan")]), None]) is None


def test_numbers_that_are_not_finite_are_gaps(tmp_path: Path) -> None:
    rows = [made.numbers(step, reward=float("nan") if step == 3 else 1.0 + step) for step in range(1, 11)]
    page = make_page(read_runs([str(make_run(tmp_path / "run", rows, complete=10))]))
    assert charts(page, "overview")["reward"]["series"][0]["y"][1:4] == [3.0, None, 5.0]
    signs = charts(page, "behaviour")["Signs of reward hacking"]["rows"]
    assert [row[1] for row in signs] == ["cannot be told", "cannot be told", "no", "no"]


def test_runs_of_one_seed_are_runs_and_not_seeds(tmp_path: Path) -> None:
    runs = [read_run(str(make_run(tmp_path / name, [made.numbers(1)]))) for name in "abc"]
    [one] = experiments(runs)
    assert one.label == "a and 2 more: mean and range of 3 runs"
