"""Reading data files, and what is said about those that cannot be read."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from megatron_rl.data.files import Table, is_local, read_table
from megatron_rl.errors import InputError

ROWS = [{"story": "a", "question": "None", "answer": "007"}, {"story": "", "question": "NA", "answer": "B"}]


def write(path, rows):
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    elif path.suffix == ".csv":
        path.write_text("\n".join([",".join(rows[0]), *(",".join(map(str, r.values())) for r in rows)]))
    elif path.suffix == ".json":
        path.write_text(json.dumps(rows))
    else:
        path.write_text("\n".join(map(json.dumps, rows)))
    return str(path)


@pytest.mark.parametrize("ending", ["parquet", "jsonl", "json", "csv"])
def test_every_format_gives_the_same_rows(tmp_path, ending):
    table = read_table(write(tmp_path / f"rows.{ending}", ROWS), "unused")
    assert table.rows == ROWS
    assert table.columns == ["story", "question", "answer"]
    assert read_table(table.name, "unused", limit=1).rows == ROWS[:1]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("missing.parquet", None, "missing.parquet does not exist"),
        ("rows.txt", "x", r"ends in '.txt'; it must end in .parquet, .jsonl, .json, .csv"),
        ("empty.jsonl", "", r"is empty \(0 bytes\)"),
        ("broken.parquet", "no parquet", "broken.parquet cannot be read as parquet: .*Check that it is complete"),
        ("broken.jsonl", '{"story": "x"}\n{story', "broken.jsonl cannot be read as jsonl"),
        ("header.csv", "story,question,answer\n", "header.csv has no rows"),
    ],
)
def test_unreadable_files(tmp_path, name, content, message):
    if content is not None:
        (tmp_path / name).write_text(content)
    with pytest.raises(InputError, match=message):
        read_table(str(tmp_path / name), "train")


def test_a_hub_id_without_a_network_is_explained(monkeypatch):
    import datasets

    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    with pytest.raises(InputError, match=r"someone/questions \(split 'train'\) cannot be loaded.*give a local file"):
        read_table("someone/questions", "train")


def test_what_is_a_local_path(tmp_path):
    assert is_local("rows/train.jsonl") and is_local("/rows") and is_local("rows") and is_local(str(tmp_path))
    assert not is_local("allenai/social_i_qa") and not is_local("Jincenzi/ToMBench_Hard")


TABLE = Table("q.jsonl", ["STORY", "QUESTION", "OPTION-A", "答案\nANSWER", "故事", "label"], [])


def test_columns_are_found_by_name_by_rename_or_by_spelling():
    assert TABLE.find("story", {}) == "STORY"
    assert TABLE.find("option_a", {}) == "OPTION-A"
    assert TABLE.find("answer", {}) == "答案\nANSWER"
    assert TABLE.find("answer", {"answer": "label"}) == "label"
    assert TABLE.find("target", {}) is None
    assert TABLE.find("story", {"story": "故事"}) == "故事"
    with pytest.raises(InputError, match="no column '事'"):  # nothing in it to compare the spelling of
        TABLE.find("story", {"story": "事"})
    assert Table("t", ["Story", "story"], []).find("story", {}) == "story"


def test_missing_and_ambiguous_columns():
    with pytest.raises(InputError, match=r"no column 'answers'.*it has 'STORY'.*The nearest is '答案.*data.columns"):
        TABLE.require("answers", {})
    with pytest.raises(InputError, match=r"no column 'lable' \(data.columns.answer\).*The nearest is 'label'"):
        TABLE.find("answer", {"answer": "lable"})
    with pytest.raises(InputError, match=r"'Story', 'STORY' could all be 'story'. Say which with data.columns.story"):
        Table("t", ["Story", "STORY"], []).find("story", {})
