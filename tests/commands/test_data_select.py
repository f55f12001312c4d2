"""``megatron-rl data select``: what it writes, and what it says where there is nothing to choose from."""

import json
from pathlib import Path

import pytest

from megatron_rl.cli import main
from tests.analysis.made import completion, make_run

TWO = [completion(1, 0), completion(1, 1, prompt=completion(1, 0)["prompt"])]  # of one prompt: wrong, right
ONE = [completion(1, 0), completion(1, 1)]  # of each prompt
OPTIONS = ["--reward-at-least", "1"]


def made(folder: Path, rows: list[dict], *overrides: str) -> list[str]:
    run = make_run(folder, [], rows, overrides)
    return ["data", "select", str(run), *OPTIONS, "--out", str(folder / "out.jsonl")]


def test_pairs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*made(tmp_path / "run", TWO), "--pairs"]) == 0
    [row] = map(json.loads, (tmp_path / "run" / "out.jsonl").read_text().splitlines())
    assert row == {"raw_prompt": TWO[0]["prompt"], "chosen": TWO[1]["response"], "rejected": TWO[0]["response"]}
    assert "1 pairs in" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("rows", "overrides", "said"),
    [
        (ONE, [], "no prompt has two different completions among those kept. Train with tracking.completions=128,"),
        (ONE, ["tracking.completions=128"], "among those kept. Draw more of each prompt with rollout.group_size."),
        (ONE, ["rollout.group_size=1", "tracking.completions=1"], "Draw more of each prompt"),
        ([row | {"reward": 1.0} for row in TWO], [], "has one for --reward-at-least 1 and one below it among those"),
    ],
)
def test_without_pairs_it_says_what_to_do(rows, overrides, said, tmp_path, capsys) -> None:
    assert main([*made(tmp_path / "run", rows, *overrides), "--pairs"]) == 2
    shown = capsys.readouterr().err
    assert "There are no pairs: no prompt has " in shown and said in shown


def test_the_best_of_one_is_no_choice(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*made(tmp_path / "run", ONE), "--best-of", "1"]) == 0
    assert "note: --best-of had no choice: no prompt has two" in capsys.readouterr().out
    assert main([*made(tmp_path / "other", TWO), "--best-of", "1"]) == 0
    assert "note:" not in capsys.readouterr().out
    assert main([*made(tmp_path / "third", ONE[:1])]) == 2
    assert "None of them has what is asked for with --reward-at-least 1." in capsys.readouterr().err
    cut = [row | {"finish_reason": "length"} for row in ONE]
    assert main([*made(tmp_path / "cut", cut)]) == 2
    assert "All of them were cut off, and those are left out: train with more" in capsys.readouterr().err
