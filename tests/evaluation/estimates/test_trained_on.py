"""What is said of suites whose questions stand in data that are trained on."""

from pathlib import Path

import pytest

from megatron_rl.evaluation.estimates import trained_on
from megatron_rl.evaluation.estimates.trained_on import warnings
from megatron_rl.evaluation.registry import card, suite_config
from tests.evaluation.suites.asked import suite_of, write_rows


def question(i: int) -> str:
    return " ".join(f"word{i}and{j}" for j in range(20)) + "?"


def suites(name: str, path: str, made: bool = True) -> dict:
    return {name: (card(name), suite_config(name, {"path": path})[0], suite_of(name, path=path) if made else None)}


@pytest.fixture
def gsm8k(tmp_path: Path) -> dict:
    rows = [{"question": question(i), "answer": f"#### {i}"} for i in range(12)]
    return suites("gsm8k", write_rows(tmp_path / "test.jsonl", rows))


def test_shared_questions_are_counted(gsm8k, tmp_path: Path) -> None:
    seen = [{"messages": [{"role": "user", "content": f"So: {question(i)}"}]} for i in (3, 99, 5)]
    other = [{"prompt": question(i)} for i in range(50, 60)]
    files = {
        "data.path": write_rows(tmp_path / "a.jsonl", seen),
        "sft.data.path": write_rows(tmp_path / "b.jsonl", other),
    }
    (said,) = warnings(gsm8k, files)
    assert said.startswith(f"2 of the 12 questions of the suite gsm8k stand in data.path={files['data.path']} (half")
    assert f"`megatron-rl data overlap {files['data.path']} gsm8k --data {tmp_path / 'test.jsonl'}` names them." in said


def test_large_files_are_not_looked_through(gsm8k, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(trained_on, "LARGEST", 1000)
    small, large = (write_rows(tmp_path / f"{n}.jsonl", [{"prompt": question(3)}] * n) for n in (1, 30))
    assert len(warnings(gsm8k, {"data.path": small})) == 1
    (said,) = warnings(gsm8k, {"data.path": large})
    assert "so nobody has looked whether questions of gsm8k stand in it" in said


def test_a_suite_that_forbids_it_is_trained_on(tmp_path: Path) -> None:
    """Its file, or one of its folder's; under any way to write its name."""
    file = write_rows(tmp_path / "bench" / "false.jsonl", [{"STORY": "x"}])
    folder = suites("tombench", str(tmp_path / "bench"), made=False)
    for source in (file, str(tmp_path / "bench" / ".." / "bench" / "false.jsonl")):
        (said,) = warnings(folder, {"data.path": source})
        assert said == (
            f"data.path={source} is the suite tombench's own data, and training on it is {card('tombench').training}."
        )
    assert warnings(folder, {"data.path": write_rows(tmp_path / "other.jsonl", [{"STORY": "x"}])}) == []


def test_nothing_to_say(gsm8k, tmp_path: Path) -> None:
    (tmp_path / "broken.jsonl").write_text("{")
    files = {"data.path": "openai/gsm8k", "sft.data.path": str(tmp_path / "broken.jsonl")}
    assert warnings(gsm8k, files) == [] and warnings({}, {"data.path": str(tmp_path / "test.jsonl")}) == []
