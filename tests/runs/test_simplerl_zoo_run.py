"""simplerl_zoo.tiny on rows in GSM8K's form, from random weights."""

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
    make, tiny, *real = commands("simplerl_zoo")
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
