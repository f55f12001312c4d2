"""The panel of a run that goes on."""

import sys

import pytest

from megatron_rl.system.supervision.screen import LIVE, SHOWN
from megatron_rl.tracking.console import RL_COLUMNS, Progress
from megatron_rl.tracking.live import BARS, WIDTH, panel, trend

NUMBERS = {
    "reward": 1.164,
    "reward/answer_in_format/score": 0.95,
    "reward/format/score": 1.0,
    "reward/answer_in_format/other": 7.0,
    "accuracy": 0.969,
    "length": 41.27,
    "truncated": 0.0,
    "kl": 0.0213,
    "entropy": 0.0061,
    "clip_fraction": 0.0012,
    "engine_kl_k3": 1.2e-9,
    "tokens_per_second": 2167.4,
    "time/step": 2.0,
    "time/generate": 0.5,
    "time/update": 1.4,
    "time/reward": 0.001,
    "time/swap": 0.1,
}


def test_a_panel_of_rl() -> None:
    rule, head, *rows = panel("rl", 30, 40, NUMBERS, [0.1, 0.9], 21.0, ["held-out    98.0 %"]).splitlines()
    assert rule == "─" * WIDTH
    assert head == "rl step 30 of 40   reward 1.164 ▁█   21 s left"
    assert [" ".join(row.split()) for row in rows] == [
        "reward answer_in_format 0.950 format 1.000",
        "completions accuracy 96.9 % length 41.3 cut off 0.0 %",
        "policy KL 0.021 entropy 0.0061 clipped 0.1 % mismatch 1e-09",
        "speed 2,167 tokens/s step 2 s: generate 25 %, update 70 %, swap 5 %",
        "held-out 98.0 %",
    ]
    assert all(row.startswith("  ") and len(row) <= WIDTH for row in rows)


def test_a_panel_of_a_stage_without_rewards() -> None:
    text = panel("sft", 1, 1000, {"loss": 2.5, "grad_norm": 0.5, "time/step": 0.0}, [2.5], None)
    assert panel("rl", 3, 0, {}, [], None).splitlines()[1:] == ["rl step 3"]
    assert text.splitlines()[1:] == ["sft step 1 of 1,000   loss 2.500 ", "  policy      gradient 0.5"]


def test_the_trend_goes_from_the_least_to_the_greatest() -> None:
    assert trend([1.0]) == "" and trend([2.0, 2.0, 2.0]) == BARS[0] * 3
    assert trend([float(i) for i in range(8)]) == BARS
    assert trend([0.0, float("nan"), float("inf"), 1.0]) == BARS[0] + BARS[-1]
    assert trend([float("nan")] * 3) == ""
    long = trend([float(i) for i in range(1000)])
    assert len(long) == 24 and long[0] == BARS[0] and long[-1] == BARS[-1] and list(long) == sorted(long)


def test_on_a_terminal_steps_go_to_the_panel_with_a_line_now_and_then(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(SHOWN, "1")
    monkeypatch.setenv(LIVE, "1")
    progress = Progress("rl", 100, RL_COLUMNS)
    progress.out = sys.stdout
    for step in range(100):
        progress.step(step, NUMBERS)
    lines = capsys.readouterr().out.split("\n")[:-1]
    panels = [line for line in lines if line.startswith("\x1e\x1d")]
    assert len(panels) == 100 and "rl step 100 of 100" in panels[-1]
    assert len(lines) - len(panels) == 1 + 1 + 20  # titles, the first, and every fifth
