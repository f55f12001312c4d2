"""Options of the data that cannot work."""

from pathlib import Path

import pytest

from megatron_rl.data.check import check_data
from megatron_rl.data.config import DataConfig, SelectionConfig
from megatron_rl.settings.rules import violations


def found(**options) -> list[str]:
    data = DataConfig(**options)
    return [*violations(data, "data.").values(), *check_data(data)]


def test_nothing_to_say(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text("{}")
    assert found(task="false_belief") == []
    assert found(path=str(path), eval_path=str(path), columns={"story": "context", "option_c": "c"}) == []
    assert found(path="someone/questions") == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"task": "false_beleif"}, "did you mean false_belief?"),
        (
            {"task": "false_belief", "max_prompt_tokens": 37},
            "data.max_prompt_tokens is 37; data.task=false_belief needs 38 or more.",
        ),
        ({"task": "false_belief", "prompt": "caht"}, "data.prompt is 'caht'; it must be auto, chat, plain or raw."),
        ({"task": "false_belief", "limit": -1}, "data.limit is -1"),
        ({"path": "rows.jsonl"}, "data.path: the file rows.jsonl does not exist."),
        ({"path": "a/b", "eval_path": "rows.csv"}, "data.eval_path: the file rows.csv does not exist."),
        ({"path": __file__}, "must end in .parquet, .jsonl, .json, .csv."),
        (
            {"path": "a/b", "columns": {"storry": "x"}},
            "has no column storry. Did you mean story? It has story, question",
        ),
        ({"path": "a/b", "columns": {"context": "story"}}, "the other way round: data.columns.story=context."),
        (
            {"path": "a/b", "task": "prompt_answer", "columns": {"story": "x"}},
            "It has messages, prompt, question, problem",
        ),
        ({"path": "a/b", "derive_options": "yes"}, "data.derive_options is 'yes'; it must be auto, always or never."),
        ({"path": "a/b", "bad_rows": "skip"}, "data.bad_rows is 'skip'; it must be error or drop."),
        ({"path": "a/b", "prompt": "raw"}, "data.prompt=raw feeds a prompt of the file as it is"),
        ({"path": "a/b", "template": "{question}"}, "data.template is for data.task=prompt_answer"),
        ({"path": "a/b", "selection": SelectionConfig(least=2.0)}, "are used with data.selection.column only"),
        ({"path": "a/b", "selection": SelectionConfig(column="level")}, "data.selection.column=level needs data.selec"),
        (
            {"path": "a/b", "task": "prompt_answer", "template": "no.txt"},
            "the file no.txt cannot be read: No such file",
        ),
        ({"path": "a/b", "task": "prompt_answer", "template": "Think."}, "it must have a {column} in it"),
        ({"path": "a/b", "task": "prompt_answer", "prompt": "raw", "system_prompt": "x"}, "data.prompt=raw feeds"),
        ({"path": str(Path(__file__).parent)}, "is a folder. Name one file in it"),
        (
            {"path": "a/b", "task": "prompt_answer", "eval_path": "x.csv"},
            "data.eval_path: the file x.csv does not exist.",
        ),
    ],
)
def test_violations(options, message):
    (said,) = found(**options)
    assert message in said


def test_every_violation_is_found_at_once():
    assert len(found(prompt="x", limit=-1, max_prompt_tokens=0, columns={"x": "y"})) == 4


def test_files_that_a_generator_would_not_read():
    (said,) = check_data(DataConfig(task="stepwise_sums", path="rows.jsonl"))
    assert said.startswith("data.path=rows.jsonl: data.task=stepwise_sums makes its own questions and reads no file")
    assert check_data(DataConfig(task="stepwise_sums")) == []
