"""Reading data files, and what is said about those that cannot be read."""

import csv
import json
import logging
import os
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from megatron_rl.data.files import Table, is_local, read_table
from megatron_rl.errors import InputError
from tests.conftest import ROOT

ROWS = [{"story": "a", "question": "None", "answer": "007"}, {"story": "", "question": "NA", "answer": "B"}]


def rows(table):
    cells = {name: table.column(name) for name in table.columns}
    return [{name: cells[name][row] for name in cells} for row in range(table.length)]


def empty(*columns):
    return Table("q.jsonl", dict.fromkeys(columns, ()), 0)


def write(path, rows):
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    elif path.suffix == ".csv":
        with path.open("w", encoding="utf-8", newline="") as file:
            csv.writer(file).writerows([rows[0], *(row.values() for row in rows)])
    elif path.suffix == ".json":
        path.write_text(json.dumps(rows, ensure_ascii=False), encoding="utf-8")
    else:
        path.write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in rows), encoding="utf-8")
    return str(path)


@pytest.mark.parametrize("ending", ["parquet", "jsonl", "json", "csv"])
def test_every_format_gives_the_same_rows(tmp_path, ending):
    table = read_table(write(tmp_path / f"rows.{ending}", ROWS), "unused")
    assert rows(table) == ROWS
    assert table.columns == ["story", "question", "answer"]
    assert rows(read_table(table.name, "unused", limit=1)) == ROWS[:1]
    assert rows(read_table(table.name, "unused", limit=5)) == ROWS


@pytest.mark.parametrize("ending", ["jsonl", "json", "csv"])
def test_a_file_is_utf_8_with_or_without_a_mark_whatever_the_locale_is(tmp_path, ending):
    told = [{"story": "Zoë sagt „nein“ – 你好", "answer": "é"}]
    path = Path(write(tmp_path / f"ü.{ending}", told))
    program = (
        "import sys; from megatron_rl.data.files import read_table; "
        "print(ascii(read_table(sys.argv[1], '').column('story')))"
    )
    environment = os.environ | {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    done = subprocess.run([sys.executable, "-c", program, path], env=environment, capture_output=True, cwd=ROOT)
    assert done.stdout.decode().strip() == ascii([told[0]["story"]]), done.stderr
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert rows(read_table(str(path), "")) == told
    path.write_bytes(path.read_text(encoding="utf-8-sig").replace("–", "").encode("utf-16"))
    with pytest.raises(InputError, match=r"line 1 is not UTF-8"):
        read_table(str(path), "")


def test_csv_cells_are_the_text_of_the_file(tmp_path):
    (tmp_path / "n.csv").write_text('a,b,c\n007,1.50,"1,000"\n1e3,,12345678901234567890123\n\n"two\nlines",NA," x "\n')
    assert rows(read_table(str(tmp_path / "n.csv"), "")) == [
        {"a": "007", "b": "1.50", "c": "1,000"},
        {"a": "1e3", "b": "", "c": "12345678901234567890123"},
        {"a": "two\nlines", "b": "NA", "c": " x "},
    ]


@pytest.mark.parametrize("name", ["q[1].jsonl", "q*.jsonl", "a::b.jsonl", "exp[1]/q.jsonl", "hf:q?.jsonl", "q.JSONL"])
def test_the_file_that_was_named_is_read_not_one_that_a_pattern_finds(tmp_path, name):
    for other in ("q1.jsonl", "qx.jsonl"):
        (tmp_path / other).write_text('{"story": "another file"}')
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text('{"story": "the file"}')
    assert rows(read_table(str(tmp_path / name), "")) == [{"story": "the file"}]


def test_a_column_that_appears_late_or_with_other_types_is_read(tmp_path):
    told = [{"a": 1}] * 3 + [{"a": "x", "b": [1]}, {"b": {"c": None}, "a": 2.0}]
    assert rows(read_table(write(tmp_path / "late.jsonl", told), "")) == [
        {"a": 1, "b": None},
        {"a": 1, "b": None},
        {"a": 1, "b": None},
        {"a": "x", "b": [1]},
        {"a": 2.0, "b": {"c": None}},
    ]


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ('[{"a": 1}, {"a": 2}]', [{"a": 1}, {"a": 2}]),
        ('[\n {"a": 1},\n {"a": 2}\n]', [{"a": 1}, {"a": 2}]),
        ('{"data": [{"a": 1}], "version": 2}', [{"a": 1}]),
        ('{\n"rows": [{"a": 1}]}', [{"a": 1}]),
        ('{"a": 1}', [{"a": 1}]),
        ('{\n"a": [1, 2]\n}', [{"a": [1, 2]}]),
        ('\n{"a": 1}\n\n{"a": 2}\n', [{"a": 1}, {"a": 2}]),
    ],
)
@pytest.mark.parametrize("ending", ["json", "jsonl"])
def test_json_documents_and_json_lines(tmp_path, content, expected, ending):
    (tmp_path / f"q.{ending}").write_text(content)
    assert rows(read_table(str(tmp_path / f"q.{ending}"), "")) == expected


def test_what_objects_hold_is_a_column_too(tmp_path):
    told = [{"r": {"truth": "x", "deep": {"er": 1}}}, {"r": None}]
    for name in ("q.parquet", "q.jsonl"):
        table = read_table(write(tmp_path / name, told), "")
        assert table.find("r.truth", {}) == "r.truth" and table.column("r.truth") == ["x", None]
        assert table.column("r.deep.er") == [1, None]
        assert table.find("answer", {"answer": "r.deep.er"}) == "r.deep.er"
        assert table.find("r.lie", {}) is None and table.find("x.y", {}) is None


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("missing.parquet", None, "missing.parquet does not exist"),
        ("missng.csv", None, r"missng.csv does not exist; did you mean .*missing.csv\?"),
        ("missing.json", None, r"missing.json does not exist; did you mean .*missing.csv\?"),
        ("issues.jsonl", None, r"issues.jsonl does not exist\. data.path"),
        ("rows.txt", "x", r"rows.txt must end in .parquet, .jsonl, .json, .csv"),
        ("empty.jsonl", "", r"is empty \(0 bytes\)"),
        ("broken.parquet", "no parquet", "broken.parquet cannot be read as parquet: .*Check that it is complete"),
        (
            "broken.jsonl",
            '{"story": "x"}\n\n{story',
            r"broken.jsonl cannot be read as jsonl: line 3, column 2: Expecting",
        ),
        (
            "broken.json",
            '[\n{"story": "x"},\n{"story"]',
            r"broken.json cannot be read as json: line 3, column 9: Expect",
        ),
        ("texts.json", '[{"a": 1}, "b"]', "row 2 is a str, not an object"),
        ("half.jsonl", '{"story": "x"}\n{"story": "\\ud800"}', "line 2, column 12: half of a surrogate pair"),
        ("short.csv", 'a,b\n1,2\n"x\ny"\n', "the row that ends on line 4 has 1 cells, and the header 2"),
        ("twice.csv", "a,b,a\n1,2,3\n", "two columns 'a'"),
        ("quote.csv", 'a,b\n1,"2\n', "quote.csv cannot be read as csv"),
        ("header.csv", "story,question,answer\n", "header.csv has no rows"),
        ("none.json", "[]", "none.json has no rows"),
        ("blank.jsonl", "\n", "blank.jsonl cannot be read as jsonl: line"),
        ("pointer.jsonl", "version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "is a Git LFS pointer"),
    ],
)
def test_unreadable_files(tmp_path, name, content, message):
    (tmp_path / "missing.csv").touch()
    if content is not None:
        (tmp_path / name).write_text(content)
    with pytest.raises(InputError, match=message):
        read_table(str(tmp_path / name), "train")


def test_a_folder_is_answered_with_a_file_in_it(tmp_path):
    with pytest.raises(InputError, match=r"is a folder. Name one file in it that ends in .*; it has none"):
        read_table(str(tmp_path), "train")
    for name in ("b.jsonl", "a.parquet", "LICENSE"):
        (tmp_path / name).touch()
    with pytest.raises(InputError, match=r"is a folder. Name one file in it, such as .*/a.parquet\."):
        read_table(str(tmp_path), "train")


def test_a_hub_id_without_a_network_is_explained(monkeypatch):
    import datasets

    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    with pytest.raises(InputError, match=r"someone/questions \(split 'train'\) cannot be loaded.*give a local file"):
        read_table("someone/questions", "train")


def test_attempts_to_reach_the_hub_are_not_told_one_by_one(monkeypatch, caplog):
    import datasets

    def load(*_, **__):
        logging.getLogger("huggingface_hub.utils._http").warning("Retrying in 1s [Retry 1/5].")
        raise ConnectionError("Couldn't reach it")

    monkeypatch.setattr(datasets, "load_dataset", load)
    with caplog.at_level(logging.WARNING, logger="huggingface_hub"):
        with pytest.raises(InputError, match="Couldn't reach it"):
            read_table("someone/questions", "train")
        assert not caplog.records
        assert logging.getLogger("huggingface_hub").level == logging.WARNING


def test_what_is_a_local_path(tmp_path):
    assert is_local("rows/train.jsonl") and is_local("/rows") and is_local("rows") and is_local(str(tmp_path))
    assert not is_local("allenai/social_i_qa") and not is_local("Jincenzi/ToMBench_Hard")


TABLE = empty("STORY", "QUESTION", "OPTION-A", "答案\nANSWER", "故事", "label")


def test_columns_are_found_by_name_by_rename_or_by_spelling():
    assert TABLE.find("story", {}) == "STORY"
    assert TABLE.find("option_a", {}) == "OPTION-A"
    assert TABLE.find("answer", {}) == "答案\nANSWER"
    assert TABLE.find("answer", {"answer": "label"}) == "label"
    assert TABLE.find("target", {}) is None
    assert TABLE.find("story", {"story": "故事"}) == "故事"
    with pytest.raises(InputError, match="no column '事'"):  # nothing in it to compare the spelling of
        TABLE.find("story", {"story": "事"})
    assert empty("Story", "story").find("story", {}) == "story"


def test_missing_and_ambiguous_columns():
    with pytest.raises(InputError, match=r"no column 'answers'.*it has 'STORY'.*The nearest is '答案.*data.columns"):
        TABLE.require("answers", {})
    with pytest.raises(InputError, match=r"no column 'lable' \(data.columns.answer\).*The nearest is 'label'"):
        TABLE.find("answer", {"answer": "lable"})
    with pytest.raises(InputError, match=r"'Story', 'STORY' could all be 'story'. Say which with data.columns.story"):
        empty("Story", "STORY").find("story", {})


def test_a_message_lists_no_more_columns_than_can_be_read():
    with pytest.raises(InputError, match=r"it has 'c0', .*, 'c29' and 970 more\. Set"):
        empty(*(f"c{i}" for i in range(1000))).require("story", {})
