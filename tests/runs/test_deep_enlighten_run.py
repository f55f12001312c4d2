"""deep_enlighten.tiny: a warm start with an error, which REINFORCE++ and the published reward undo."""

from tests.runs.pages import check, commands, train
from tests.test_docs import CARD

FEWER = ["sft.steps=350", "run.steps=8", "evaluation.prompts=96"]


def test_the_page(tmp_path):
    tiny, *real = commands("deep_enlighten")
    assert tiny == "megatron-rl train deep_enlighten.tiny" and len(real) == 2 and CARD
    rows = train(tiny, tmp_path, *FEWER)
    _, before, after = rows["eval"]
    assert before["sampled/format"] > 0.9 and before["sampled/correct"] < 0.75
    assert after["sampled/correct"] > before["sampled/correct"] + 0.1
    assert len(rows["rl"]) == 8 and rows["rl"][-1]["reward"] > rows["rl"][0]["reward"]
    assert all(row["reward/deep_enlighten/format"] > 1.5 for row in rows["rl"])
    for command in real:  # here are neither such models nor SGLang
        said = check(command, tmp_path)
        assert said and not any("option" in line or "template" in line for line in said)
        assert all("SGLang" in line or "no such folder" in line or "does not exist" in line for line in said), said
