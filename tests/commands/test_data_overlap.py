"""``megatron-rl data overlap``: what it says of rows that were and were not trained on."""

import json
from pathlib import Path

import pytest

from megatron_rl.cli import main


@pytest.fixture
def files(tmp_path: Path) -> tuple[str, str]:
    def question(i: int) -> str:
        return " ".join(f"word{i}and{j}" for j in range(20)) + "?"

    test = [{"question": question(i), "answer": f"#### {i}"} for i in range(12)]
    train = [{"messages": [{"role": "user", "content": f"So: {question(i)}"}]} for i in (3, 99, 5)]
    for name, rows in (("test", test), ("train", train)):
        (tmp_path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return str(tmp_path / "train.jsonl"), str(tmp_path / "test.jsonl")


def test_it_names_them(files, tmp_path: Path, capsys) -> None:
    train, test = files
    out = tmp_path / "report.json"
    assert main(["data", "overlap", train, "gsm8k", "--data", test, "--out", str(out), "gsm8k.limit=8"]) == 0
    said = capsys.readouterr().out
    assert (
        "gsm8k: 8 questions" in said
        and "2 ( 25.0 %) share half of theirs or more" in said
        and "2 ( 25.0 %) stand there whole" in said
    )
    report = json.loads(out.read_text())
    assert (report["questions"], report["share_any"], report["n"]) == (8, 2, 13)
    assert [row["row"] for row in report["items"]] == [None, None, None, 1, None, 3, None, None]
    assert main(["data", "overlap", test, "gsm8k", "--data", test]) == 0
    assert "12 (100.0 %) share half" in capsys.readouterr().out


def test_bad_input(files, capsys) -> None:
    train, test = files
    for arguments, said in (
        ([train, "gsm"], "There is no suite 'gsm'; did you mean gsm8k?"),
        ([train, "gsm8k", "--data", test, "--n", "0"], "--n 0 must be 1 or more."),
        ([train, "gsm8k", "limit=3"], "write gsm8k.key=value"),
        (["no.jsonl", "gsm8k", "--data", test], "does not exist"),
    ):
        assert main(["data", "overlap", *arguments]) == 2
        assert said in capsys.readouterr().err
