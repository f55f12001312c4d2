"""What the tasks that are made from files share."""

import pytest

from megatron_rl.data.config import DataConfig
from megatron_rl.data.files import Table
from megatron_rl.data.rows.parts import Part, load_parts, texts
from megatron_rl.data.task import Example
from megatron_rl.data.tokenizer import load_tokenizer, write_word_tokenizer
from megatron_rl.errors import InputError


def make(table: Table, part: str) -> Part:
    examples = [Example(f"{part}/{i}", text, "") for i, text in enumerate(table.column("text"), start=1)]
    return Part(examples, {"that are odd": sum(len(e.prompt) % 2 for e in examples), "that are not there": 0})


@pytest.fixture
def load(tmp_path, word_tokenizer):
    def load(train: list[str], heldout: list[str] | None = None, **options):
        for name, rows in (("train", train), ("test", heldout or [])):
            (tmp_path / f"{name}.csv").write_text("text\n" + "".join(f"{row}\n" for row in rows))
        paths = {"path": str(tmp_path / "train.csv"), "eval_path": str(tmp_path / "test.csv") if heldout else ""}
        return load_parts(DataConfig(**paths, **options), word_tokenizer, make)

    return load


def test_both_files_and_what_is_counted_of_them(load):
    train, heldout, notes = load(["ball", "cup", "box"], ["cup", "key", "hat now"])
    assert [e.id for e in (*train, *heldout)] == [f"train/{i}" for i in (1, 2, 3)] + [f"heldout/{i}" for i in (1, 2, 3)]
    assert notes == {
        "training rows": 3,
        "training rows that are odd": 2,
        "held-out rows": 3,
        "held-out rows that are odd": 3,
        "held-out rows that are trained on too": 1,
    }
    assert load(["ball", "cup"], limit=1)[2] == {"training rows": 1}


def test_what_is_wrong_with_both_files_is_said_at_once(load):
    with pytest.raises(InputError, match=r"train\.csv, row 2: .*test\.csv, row 1: .* has 3 tokens"):
        load(["ball", "cup box"], ["hat box key"], max_prompt_tokens=1)


def test_prompts_with_words_that_the_tokenizer_does_not_know(tmp_path):
    write_word_tokenizer(tmp_path, ["ball", "<bos>", "<eos>", "<pad>"], "<bos>", "<eos>", "<pad>")
    file = tmp_path / "train.csv"
    file.write_text("text\nball\nball cup\n")
    with pytest.raises(InputError, match=r"cannot encode .*train\.csv, row 2 \("):
        load_parts(DataConfig(path=str(file)), load_tokenizer(tmp_path), make)


def test_prompts_of_more_tokens_than_allowed(load):
    rows = ["ball", "ball cup", "ball cup box", "cup"]
    with pytest.raises(InputError, match=r"train.csv, row 2: .* has 2 tokens, .*=1. 2 of 4 rows .* longest has 3"):
        load(rows, max_prompt_tokens=1)
    train, _, notes = load(rows, max_prompt_tokens=1, bad_rows="drop")
    assert [e.id for e in train] == ["train/1", "train/4"]
    assert notes["training rows left out, longer than 1 tokens"] == 2
    assert len(load(rows, max_prompt_tokens=3)[0]) == 4


def test_texts_names_the_row_that_has_something_else():
    assert texts(Table("t", {"a": [" x ", None, 1.5]}, 3), "a") == ["x", "", "1.5"]
    with pytest.raises(InputError, match=r"t, row 2, column 'a': a list where a text is needed: \[1\]"):
        texts(Table("t", {"a": ["x", [1]]}, 2), "a")
