"""simplerl_zoo on a CPU: generated sums are learned; rows in GSM8K's form from random weights."""

import json

from tests.conftest import ROOT
from tests.runs.pages import check, commands, run, train


def test_the_page(tmp_path):
    rows = [
        {"question": f"Ann has {i} pears and buys {i + 1} more. How many?", "answer": f"{i}+{i + 1}\n#### {2 * i + 1}"}
        for i in range(60)
    ]
    (tmp_path / "train.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "tools").symlink_to(ROOT / "tools")
    _, make, tiny, *real = commands("simplerl_zoo")
    done = run(make, tmp_path)
    assert done.returncode == 0, done.stderr
    steps = train(tiny, tmp_path, "run.steps=4", "rewards.terms.reasoning_style=0")["rl"]
    assert len(steps) == 4
    for row in steps:
        assert {"pass_at_k", "truncated", "length_wrong", "reward/reasoning_style/keywords"} <= set(row)
        assert row["reward"] == row["reward/exact_answer/score"] == row["accuracy"]
    assert len(real) == 2
    for command in real:
        said = check(command, tmp_path)
        assert said and all(
            "SGLang" in line or "no such folder" in line or "does not exist" in line for line in said
        ), said


def test_sums_are_learned(tmp_path):
    rows = train(commands("simplerl_zoo")[0], tmp_path, "sft.steps=250", "run.steps=10", "evaluation.prompts=96")
    _, before, after = rows["eval"]
    assert after["sampled/worked_out"] > before["sampled/worked_out"] + 0.1
    first, *_, last = rows["rl"]
    assert len(rows["rl"]) == 10 and last["reward"] > first["reward"] and last["length"] > first["length"]
