"""Social IQa in DeepEnlighten's form: rows of the data set, rows that upstream prepared, and templates."""

import json

import pytest

from megatron_rl.data.config import DataConfig
from megatron_rl.data.registry import make_task
from megatron_rl.data.task import Sample
from megatron_rl.data.tasks.social_iqa import TEMPLATES, check_options
from megatron_rl.errors import InputError

ROW = {
    "context": "Cameron put {it} on the table.",
    "question": "What will Robin want to do next?",
    "answerA": "eat",
    "answerB": "sleep",
    "answerC": "run",
    "label": "2",
}


def prepared(**changes) -> dict:
    truth = {"label": "3", "answerA": "eat", "answerB": "sleep", "answerC": "run"}
    return {
        "data_source": "social_iqa",
        "prompt": [{"role": "user", "content": "What? Assistant: <think>"}],
        "ability": "reasoning",
        "reward_model": {"style": "rule", "ground_truth": truth | changes},
        "extra_info": {"split": "train", "index": 0},
    }


@pytest.fixture
def load(tmp_path, chat_tokenizer):
    def load(rows, **options):
        path = tmp_path / "rows.jsonl"
        path.write_text("\n".join(map(json.dumps, rows)))
        config = DataConfig(task="social_iqa", path=str(path), **options)
        assert check_options(config) == []
        return make_task(config, 0, chat_tokenizer)

    return load


@pytest.mark.parametrize("name", TEMPLATES)
def test_templates(load, name):
    example = load([ROW], template=name).train[0]
    assert example.answer == "B" and example.data_source == "social_iqa"
    assert 'Based on the context: "Cameron put {it} on the table.", answer the question: "What will' in example.prompt
    assert "(A) eat, (B) sleep, (C) run." in example.prompt
    assert example.extra == {name: ROW[name] for name in ("context", "question", "answerA", "answerB", "answerC")}
    begin, end = {
        "base": ("A user asks", "Assistant: <think>"),
        "qwen-instruct": ("<|im_start|>system\n", "<|im_end|>\n<|im_start|>assistant\n<think>"),
        "llama-instruct": ("<|begin_of_text|><|start_header_id|>system", "assistant<|end_header_id|>\n<think>"),
    }[name]
    assert example.prompt.startswith(begin) and example.prompt.endswith(end)
    assert "<|eot_id|>" not in example.prompt


def test_base_is_the_default_and_a_file_is_a_template(load, tmp_path):
    assert load([ROW]).train[0].prompt.startswith("A user asks")
    (tmp_path / "mine.txt").write_text("{context} {question} {{x}} {answerA}/{answerB}/{answerC} <think>\n")
    prompt = load([ROW], template=str(tmp_path / "mine.txt")).train[0].prompt
    assert prompt == "Cameron put {it} on the table. What will Robin want to do next? {x} eat/sleep/run <think>"


def test_rows_that_upstream_prepared(load):
    task = load([prepared(), prepared(label="1")], template="base")
    assert [e.answer for e in task.train] == ["C", "A"]
    assert task.train[0].prompt == "What? Assistant: <think>"
    assert task.train[0].extra == {"answerA": "eat", "answerB": "sleep", "answerC": "run"}
    assert task.notes == {"training rows": 2, "training rows whose prompts are the file's own": 2}


def test_report(load):
    task = load([ROW])
    example = task.train[0]
    for response, correct, form in [
        (" r </think> <answer> (B) </answer>", 1, 1),
        (" r </think> so <answer> (B) </answer>", 1, 0),
        (" r </think> <answer> (A) </answer>", 0, 1),
        (" r", 0, 0),
    ]:
        assert task.report(Sample(example.prompt, response, "B")) == {"correct": correct, "format": form}


@pytest.mark.parametrize(
    ("row", "said"),
    [
        (
            ROW | {"label": "4"},
            "row 2, column 'label': the right answer is '4'; it must be A, B or C, or a label of",
        ),
        (ROW | {"context": " "}, "row 2, column 'context': it is empty. Fill it in or remove the row."),
        (ROW | {"label": None}, "row 2, column 'label': it is empty"),
    ],
)
def test_rows_that_cannot_be_used(load, row, said):
    with pytest.raises(InputError) as error:
        load([ROW, row])
    assert said in str(error.value) and "rows.jsonl" in str(error.value)


def test_columns_that_are_missing(load):
    with pytest.raises(InputError, match="has no column 'answerC'"):
        load([{k: v for k, v in ROW.items() if k != "answerC"}])
    with pytest.raises(InputError, match=r"has no column 'reward_model\.ground_truth'"):
        load([{"prompt": "What? <think>"}])
    with pytest.raises(InputError, match=r"row 1, column 'reward_model.ground_truth': the right answer is None"):
        load([prepared(label=None)])
    two = [{"role": "system", "content": "a"}, {"role": "user", "content": "b"}]
    with pytest.raises(InputError, match=r"row 1, column 'prompt': the prompt is .* one message"):
        load([prepared() | {"prompt": two}])


def test_options_that_do_not_fit():
    def wrong(**options):
        return check_options(DataConfig(task="social_iqa", **options))

    assert wrong(prompt="raw", template="llama-instruct") == []
    for options in ({"prompt": "chat"}, {"system_prompt": "x"}, {"chat_template_kwargs": {"a": 1}}):
        assert "feeds its prompts raw" in wrong(**options)[0]
    assert wrong(template="qwen")[0] == (
        "data.template is 'qwen'; it must have a {column} in it, such as {question}. data.task=social_iqa knows base, "
        "qwen-instruct, llama-instruct."
    )
    assert "the file missing.txt cannot be read: No such file" in wrong(template="missing.txt")[0]
