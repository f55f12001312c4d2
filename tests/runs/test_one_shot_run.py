"""one_shot.tiny: RL on one sum carries over to others."""

from tests.runs.pages import check, commands, train

FEWER = ["sft.steps=250", "run.steps=10", "evaluation.prompts=96"]


def test_the_page(tmp_path):
    one, sixteen, real = commands("one_shot")
    rows = train(one, tmp_path, *FEWER)
    _, before, after = rows["eval"]
    assert before["sampled/worked_out"] < 0.6
    assert after["sampled/worked_out"] > before["sampled/worked_out"] + 0.1
    assert rows["rl"][-1]["reward"] > rows["rl"][0]["reward"] and len(rows["rl"]) == 10
    rows = train(sixteen, tmp_path, "sft.steps=2", "run.steps=2", "evaluation.prompts=4")
    assert len(rows["rl"]) == 2
    said = check(real, tmp_path)
    print(said, before, after)
    assert said and all(
        "SGLang" in line or "no such folder" in line or "does not exist" in line or ".json" in line for line in said
    ), said


def test_one_example_fills_every_batch(tmp_path):
    more = ["sft.steps=2", "run.steps=2", "evaluation.prompts=0", "tracking.completions=128"]
    train("megatron-rl train one_shot.tiny", tmp_path, *more)
    lines = (tmp_path / "runs" / "run" / "completions.jsonl").read_text().splitlines()
    assert len(lines) == 256 and all('"train/0"' in line for line in lines)
