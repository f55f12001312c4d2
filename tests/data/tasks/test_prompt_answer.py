"""Questions with answers that are checked as they are, from files of several kinds."""

import json
import pickle

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from megatron_rl.data.config import DataConfig
from megatron_rl.data.registry import make_task, require_targets
from megatron_rl.data.task import Sample
from megatron_rl.data.tasks import prompt_answer
from megatron_rl.errors import InputError

GSM8K = {"question": "Two and two?", "answer": "2+2 = <<2+2=4>>4\nand so on.\n#### 1,004"}
MATH = {"problem": "Half of $x$?", "solution": r"It is \boxed{1} or \boxed{\frac{x}{2}}.", "level": 3}


def verl(**changes) -> dict:
    row = {
        "data_source": "maths",
        "prompt": [{"role": "user", "content": "Two and two?"}],
        "ability": "math",
        "reward_model": {"style": "rule", "ground_truth": "4"},
        "extra_info": {"index": 7},
    }
    return row | changes


@pytest.fixture
def load(tmp_path, chat_tokenizer):
    def load(rows, tokenizer=chat_tokenizer, name="rows.jsonl", **options):
        path = tmp_path / name
        if path.suffix == ".parquet":
            pq.write_table(pa.Table.from_pylist(rows), path)
        else:
            path.write_text("\n".join(json.dumps(r) for r in rows))
        return make_task(DataConfig(task="prompt_answer", path=str(path), **options), 0, tokenizer)

    return load


def chat(text: str) -> str:
    return f"<|im_start|>user\n{text}<|im_end|>\n<|im_start|>assistant\n"


@pytest.mark.parametrize("name", ["rows.parquet", "rows.jsonl"])
def test_verl_rows(load, name):
    task = load([verl()] * 3, name=name)
    assert task.notes == {"training rows": 3}
    example = task.train[1]
    assert (example.id, example.prompt, example.answer) == ("train/2", chat("Two and two?"), "4")
    assert (example.data_source, example.target) == ("maths", "")
    assert example.extra == {
        "ability": "math",
        "reward_model": {"style": "rule", "ground_truth": "4"},
        "extra_info": {"index": 7},
    }


def test_gsm8k_rows(load):
    example = load([GSM8K]).train[0]
    assert (example.prompt, example.answer) == (chat("Two and two?"), "1004")
    assert example.extra == {"solution": "2+2 = <<2+2=4>>4\nand so on."}


def test_math_rows_with_and_without_an_answer(load):
    (without,) = load([MATH]).train
    assert (without.prompt, without.answer) == (chat("Half of $x$?"), r"\frac{x}{2}")
    assert without.extra == {"level": 3, "solution": MATH["solution"]}
    (given,) = load([MATH | {"answer": "x/2"}]).train
    assert given.answer == "x/2" and given.extra["solution"] == MATH["solution"]


@pytest.mark.parametrize(
    "answer", ["7", 7, 27.0, True, False, 0, ["a", "b"], {"A": "Knife", "B": 2}, [{"label": 1}], "## a heading"]
)
def test_answers_of_any_type_reach_the_rewards_as_they_are(load, answer):
    (example,) = load([{"question": "q", "answer": answer}]).train
    assert example.answer == answer and type(example.answer) is type(answer)
    objects = (
        {"training rows whose answer is an object (correct: the same JSON)": 1} if isinstance(answer, dict) else {}
    )
    assert load([{"question": "q", "answer": answer}]).notes == {"training rows": 1} | objects


def test_a_template_is_filled_once_from_any_columns(load):
    row = {"story": "A {question} in braces.", "question": "q?", "n": 3, "answer": "x"}
    task = load([row], template=r"{story} {question} {n} {{literally}} \boxed{}", columns={"question": "question"})
    assert task.train[0].prompt == chat(r"A {question} in braces. q? 3 {literally} \boxed{}")
    assert task.train[0].extra == {"story": "A {question} in braces.", "question": "q?", "n": 3}
    with pytest.raises(InputError, match=r"no column 'storry' \(data.template\).*The nearest is 'story'"):
        load([row], template="{storry}")
    with pytest.raises(InputError, match=r"row 1, column 'n': a list where a text is needed"):
        load([row | {"n": [1]}], template="{n}")


def test_a_question_that_has_a_story_or_options_beside_it_needs_a_template(load):
    for beside in ("story", "context", "choices"):
        with pytest.raises(InputError, match=rf"has a column '{beside}', and the prompt would be 'question' alone"):
            load([GSM8K | {beside: "x"}])
    assert load([verl(story="x")]).train[0].prompt == chat("Two and two?")


@pytest.mark.parametrize("form", ["auto", "chat", "plain", "raw"])
def test_messages_and_texts_give_the_same_prompt(load, form):
    message = [{"role": "user", "content": "Two?\n"}]
    cells = [{"messages": message}, {"prompt": message}, {"prompt": "Two?\n"}, {"problem": "Two?\n"}]
    prompts = {load([cell | {"answer": "2"}], prompt=form).train[0].prompt for cell in cells}
    prompts.add(load([{"prompt": json.dumps(message), "answer": "2"}], prompt=form).train[0].prompt)
    expected = {"plain": "Two?\n\n\nResponse:\n", "raw": "Two?\n"}.get(form, chat("Two?\n"))
    assert prompts == {expected}


def test_a_raw_prompt_is_fed_as_it_is_and_one_with_chat_marks_is_never_wrapped_unasked(load):
    text = "<|im_start|>user\nTwo?<|im_end|>\n<|im_start|>assistant\n<think>"
    row = {"prompt": [{"role": "user", "content": text}], "answer": "2"}
    assert load([row], prompt="raw").train[0].prompt == text
    with pytest.raises(InputError, match=r"row 2: the prompt holds '<\|im_start\|>', so it went .*data.prompt=raw"):
        load([row | {"prompt": "x"}, row])
    assert load([row], prompt="chat").train[0].prompt == chat(text)
    two = [{"role": "user", "content": "x"}, {"role": "user", "content": "y"}]
    with pytest.raises(InputError, match=r"row 1: the prompt cannot be used: it has 2 messages, and data.prompt=raw"):
        load([row | {"prompt": two}], prompt="raw")


def test_system_messages_and_a_reply_that_is_begun(load):
    system, user, reply = (
        {"role": role, "content": text} for role, text in (("system", "Own."), ("user", "Two?"), ("assistant", "It is"))
    )
    start = "<|im_start|>system\n{}<|im_end|>\n<|im_start|>user\nTwo?<|im_end|>\n<|im_start|>assistant\n"
    task = load([{"prompt": [user], "answer": 2}, {"prompt": [system, user], "answer": 2}], system_prompt="Ours.")
    assert [e.prompt for e in task.train] == [start.format("Ours."), start.format("Own.")]
    assert load([{"prompt": [user, reply], "answer": 2}]).train[0].prompt == chat("Two?") + "It is"


def test_targets_are_a_column_of_any_name(load):
    (example,) = (task := load([GSM8K], columns={"target": "answer"})).train
    assert example.target == GSM8K["answer"] + "<|im_end|>" and example.answer == "1004"
    require_targets(task)
    assert load([MATH], columns={"target": "solution"}).train[0].target == MATH["solution"] + "<|im_end|>"
    with pytest.raises(InputError, match="train/1 has no target"):
        require_targets(load([GSM8K]))


def test_a_column_that_is_asked_for_goes_first(load):
    row = verl(question="other", answer="5")
    assert load([row], columns={"question": "question"}).train[0].prompt == chat("other")
    assert load([row]).train[0].answer == "5"
    assert load([row], columns={"answer": "reward_model.ground_truth"}).train[0].answer == "4"
    assert load([row], columns={"answer": "extra_info.index"}).train[0].answer == 7


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"q": "x", "answer": 1}], r"has no column 'question'; it has 'q', 'answer'"),
        ([{"question": "x", "anser": 1}], "has no column 'answer'.*The nearest is 'anser'"),
        ([{"question": "x", "solution": "no box"}], "has no column 'answer'"),
        (
            [GSM8K, GSM8K | {"question": " "}],
            "row 2, column 'question': the prompt is ' '. It must be a text, or a list",
        ),
        ([verl(prompt=[])], r"row 1, column 'prompt': the prompt is \[\]"),
        ([verl(prompt=[{"role": "user"}])], "column 'prompt': the prompt is .*list of messages"),
        ([verl(prompt=[{"role": "system", "content": "x"}])], "of which the last is the user's"),
        (
            [verl(), verl(reward_model={"ground_truth": ""})],
            r"row 2, column 'reward_model.ground_truth': the answer is e",
        ),
        ([GSM8K, GSM8K, GSM8K | {"answer": "4"}], "row 3, column 'answer': the answer does not end in #### n. 1 of 3"),
        ([MATH, MATH | {"solution": "It is."}], r"row 2, column 'solution': the answer has no \\boxed\{\}"),
        ([GSM8K | {"target": ["x"]}], "row 1, column 'target': a list where a text is needed"),
    ],
)
def test_bad_rows_are_named(load, rows, message):
    with pytest.raises(InputError, match=message):
        load(rows)


def test_rows_without_an_answer_are_left_out_and_counted_where_that_is_asked_for(load):
    rows = [verl(), verl(reward_model={"ground_truth": None}), verl(reward_model={"ground_truth": "5"})]
    task = load(rows, bad_rows="drop")
    assert [(e.id, e.answer) for e in task.train] == [("train/1", "4"), ("train/3", "5")]
    assert task.notes == {"training rows": 2, "training rows left out, without an answer": 1}
    with pytest.raises(InputError, match="2 of 2 rows have none"):
        load([verl(answer=" ")] * 2, bad_rows="drop")


def test_held_out_rows_that_are_trained_on_are_counted(load, tmp_path):
    heldout = tmp_path / "test.jsonl"
    heldout.write_text("\n".join(json.dumps({"question": q, "answer": 1}) for q in ("Two and two?", "Else?")))
    task = load([GSM8K], eval_path=str(heldout))
    assert task.notes["held-out rows"] == 2 and task.notes["held-out rows that are trained on too"] == 1
    heldout.write_text('{"problem": "x", "label": 1}')
    with pytest.raises(InputError, match=r"test.jsonl has no column 'answer'; it has 'problem', 'label'"):
        load([GSM8K], eval_path=str(heldout))


def test_the_fingerprint_is_of_prompts_answers_and_targets(load):
    rows = [GSM8K, GSM8K | {"answer": "#### 5"}]
    first = load(rows).fingerprint()
    assert load(rows).fingerprint() == first
    assert first not in (load(rows[::-1]).fingerprint(), load(rows, columns={"target": "answer"}).fingerprint())
    assert (
        load([{"question": "q", "answer": 1}]).fingerprint() != load([{"question": "q", "answer": "1"}]).fingerprint()
    )


def test_reports(load):
    example = load([GSM8K]).train[0]
    for response, expected in (
        (r"<think>x</think> \boxed{1004}", (1, 1)),
        ("It is 1,004.", (1, 1)),
        ("<answer>7</answer>", (0, 1)),
        ("No idea.", (0, 0)),
    ):
        report = {"correct": expected[0], "answered": expected[1]}
        assert prompt_answer.report(Sample(example.prompt, response, example.answer)) == report


def test_reports_by_source_where_the_held_out_file_has_several(load, tmp_path):
    heldout = tmp_path / "test.jsonl"
    heldout.write_text("\n".join(json.dumps(verl(data_source=source)) for source in ("a", "b")))
    task = load([verl()], eval_path=str(heldout))
    assert task.report(Sample("", "4", "4", "b")) == {"correct": 1, "answered": 1, "correct/b": 1}
    assert pickle.loads(pickle.dumps(task.report))(Sample("", "5", "4", "a"))["correct/a"] == 0
    assert load([verl()]).report is prompt_answer.report
