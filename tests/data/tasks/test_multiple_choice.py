"""Multiple-choice questions from files in ToM-RL's and in other forms."""

import json
import pickle

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from megatron_rl.data.config import DataConfig
from megatron_rl.data.registry import make_task
from megatron_rl.data.task import sample_of
from megatron_rl.errors import InputError

PLACES = ["red_box", "blue_crate", "green_jar", "tin"]


def tom_rl_row(i: int, source: str = "hi_tom") -> dict:
    """One row with ToM-RL's columns; the prompt column is made for another answer format and is not used."""
    first, last = PLACES[i % 4], PLACES[(i + 1) % 4]
    story = f"Ada entered the hall. The pear is in the {first}. Bo moved the pear to the {last}. Bo saw {i} cats."
    return {
        "prompt": [{"role": "user", "content": "unused <answer>"}],
        "answer": last,
        "data_source": source,
        "question": " Where is the pear really?",
        "story": story,
        "ability": "theory_of_mind",
        "reward_model": {"style": "rule", "ground_truth": last},
        "extra_info": {"question_order": float(i % 3)},
    }


def write(path, rows) -> str:
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    else:
        path.write_text("\n".join(json.dumps(r) for r in rows))
    return str(path)


def given(**changes) -> dict:
    row = {"story": "Ada has a hat.", "question": "Who has it?", "answer": "B", "options": ["Bo", "Ada", "Cy", "Di"]}
    return {k: v for k, v in (row | changes).items() if v is not ...}


@pytest.fixture
def load(tmp_path, chat_tokenizer):
    def load(rows, tokenizer=chat_tokenizer, name="rows.jsonl", **options):
        path = write(tmp_path / name, rows)
        return make_task(DataConfig(path=path, **options), 0, tokenizer)

    return load


def test_tom_rl_rows_get_four_options_and_none_is_lost(tmp_path, load):
    heldout = write(tmp_path / "test.parquet", [tom_rl_row(i, ("hi_tom", "tomi")[i % 2]) for i in range(6)])
    task = load([tom_rl_row(i) for i in range(20)], name="train.parquet", eval_path=heldout)
    assert (len(task.train), len(task.heldout)) == (20, 6)
    for i, example in enumerate(task.train):
        row = tom_rl_row(i)
        options = example.extra["options"]
        assert sorted(options) == sorted(PLACES)  # two of the story, two answers of other rows
        assert options["ABCD".index(example.answer)] == row["answer"]
        assert example.extra["story"] == row["story"] and example.extra["question"] == "Where is the pear really?"
        assert example.data_source == "hi_tom" and example.target == ""
    assert {e.answer for e in task.train} == set("ABCD")
    assert [e.id for e in task.heldout] == [f"heldout/{i}" for i in range(1, 7)]
    again = load([tom_rl_row(i) for i in range(20)], name="train.parquet", eval_path=heldout)
    assert again.train == task.train and again.fingerprint() == task.fingerprint()
    assert load([tom_rl_row(i) for i in range(20)]).fingerprint() != task.fingerprint()


def test_rooms_are_told_from_containers(load):
    def row(question, answer, room):
        story = (
            f"Ada entered the {room}. Ada moved the pen to the {room} bag, which is also located in the {room}. Ada "
            f"left the {room}. Ada entered the cellar."
        )
        return {"story": story, "question": question, "answer": answer}

    rows = [row("In which room is the pen?", room, room) for room in ("attic", "den", "hall")]
    rows += [row("In which container is the pen?", f"{room} bag", room) for room in ("attic", "den", "hall", "shop")]
    task = load(rows, derive_options="always")
    assert task.notes == {"training rows": 7, "training rows whose options are derived from other rows": 7}
    for example in task.train[:3]:
        assert set(example.extra["options"]) == {"attic", "den", "hall", "cellar"}
    for example in task.train[3:]:
        assert set(example.extra["options"]) == {"attic bag", "den bag", "hall bag", "shop bag"}


def test_chat_prompt(load, chat_tokenizer):
    example = load([given()]).train[0]
    assert example.prompt.startswith("<|im_start|>user\nRead the story")
    assert example.prompt.endswith(
        "Story: Ada has a hat.\n\nQuestion: Who has it?\n\nOptions:\nA. Bo\nB. Ada\nC. Cy\nD. Di<|im_end|>\n"
        "<|im_start|>assistant\n"
    )
    for mark in ("<think>", "</think>", "<Answer>", "</Answer>"):
        assert example.prompt.count(mark) == 1
    ids = chat_tokenizer.encode(example.prompt, add_special_tokens=False)
    assert chat_tokenizer.decode(ids) == example.prompt
    assert ids.count(chat_tokenizer.convert_tokens_to_ids("<|im_start|>")) == 2


def test_the_prompt_form_is_chosen_by_the_configuration(load, chat_tokenizer, word_tokenizer):
    auto, chat, plain = (load([given()], prompt=form).train[0].prompt for form in ("auto", "chat", "plain"))
    assert auto == chat != plain
    assert plain.startswith("Read the story") and plain.endswith("D. Di\n\nResponse:\n")
    with pytest.raises(InputError, match=r"data.prompt=chat, but the tokenizer .* has no chat template"):
        load([given()], word_tokenizer, prompt="chat")


def test_a_plain_prompt_begins_with_bos_where_the_tokenizer_adds_it(load, tiny_model, tmp_path):
    from tokenizers.processors import TemplateProcessing

    from megatron_rl.data.tokenizer import load_tokenizer

    tokenizer = load_tokenizer(tiny_model)
    tokenizer.bos_token = "<|endoftext|>"
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<|endoftext|> $A", special_tokens=[("<|endoftext|>", tokenizer.bos_token_id)]
    )
    assert load([given()], tokenizer, prompt="plain").train[0].prompt.startswith("<|endoftext|>Read the story")


@pytest.mark.parametrize(
    ("row", "columns"),
    [
        (given(), {}),
        (given(answer="Ada"), {}),
        (given(answer="(B)"), {}),
        (given(options=..., choices="A. Bo, B. Ada, C. Cy, D. Di"), {}),
        (given(options=..., question="Who has it? A. Bo B. Ada C. Cy D. Di"), {}),
        (given(options=..., **{"OPTION-A": "Bo", "OPTION-B": "Ada", "OPTION-C": "Cy", "OPTION-D": "Di"}), {}),
        (
            given(options=..., story=..., context="Ada has a hat.", w="Bo", x="Ada", y="Cy", z="Di"),
            {"story": "context", "option_a": "w", "option_b": "x", "option_c": "y", "option_d": "z"},
        ),
    ],
)
def test_forms_in_which_options_are_given(load, row, columns):
    example = load([row], columns=columns).train[0]
    assert example.answer == "B"
    assert example.extra == {"story": "Ada has a hat.", "question": "Who has it?", "options": ["Bo", "Ada", "Cy", "Di"]}


def test_rows_with_fewer_options(load):
    rows = [given(), given(options=["Bo", "Ada", None, None])]
    assert [len(e.extra["options"]) for e in load(rows).train] == [4, 2]


def test_targets_end_with_the_end_token(load):
    think = "<think>hm</think><Answer>B</Answer>"
    task = load([given(target=think), given(target=think + "<|im_end|>")])
    assert [e.target for e in task.train] == [think + "<|im_end|>"] * 2


def test_reports(tmp_path, load):
    task = load([given()])
    example, think = task.train[0], "<think>Ada has it.</think>"
    assert task.report(sample_of(example, f"{think} <Answer>B</Answer>")) == {"correct": 1, "format": 1}
    assert task.report(sample_of(example, f"{think} <Answer>A</Answer>")) == {"correct": 0, "format": 1}
    assert task.report(sample_of(example, "Well. <Answer>B. Ada</Answer>")) == {"correct": 1, "format": 0}
    assert task.report(sample_of(example, "")) == {"correct": 0, "format": 0}
    heldout = write(tmp_path / "test.jsonl", [given(data_source="x"), given(data_source="y")])
    task = load([given()], eval_path=heldout)
    judged = sample_of(task.heldout[1], "<Answer>B</Answer>")
    assert task.report(judged) == {"correct": 1, "format": 0, "correct/y": 1}
    assert pickle.loads(pickle.dumps(task.report))(judged) == task.report(judged)  # as a reward worker gets it


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([given(story=...)], r"rows.jsonl has no column 'story'; it has 'question', 'answer', 'options'"),
        ([given(answer=..., anser="B")], "no column 'answer'.*The nearest is 'anser'"),
        ([given(), given(story="  ")], r"rows.jsonl, row 2, column 'story': the story is empty"),
        ([given(), given(), given(question=None)], r"row 3, column 'question': the question is empty"),
        ([given(answer="")], "row 1, column 'answer': the answer is empty"),
        ([given(answer="E")], r"row 1, column 'answer': the answer 'E' is not exactly one of the options \['Bo'"),
        ([given(), given(answer="Zed")], "row 2, column 'answer': the answer 'Zed' is not exactly one"),
        ([given(answer="Bo", options=["Bo", "bo"])], "the answer 'Bo' is not exactly one"),
        ([given(options=["Ada"])], r"row 1, column 'options': the options are \['Ada'\]; a question needs 2 to 26"),
        ([given(), given(options=[])], r"row 2, column 'options': the options are \[\]"),
        ([given(options=["Bo", "", "Ada"])], "none may be empty"),
        ([given(options=...)], r"row 1 has no options, and its answer is 'B'. Give options.*prompt_answer.*=always"),
        ([given(story={"text": "x"})], "row 1, column 'story': an object where a text is needed: {'text': 'x'}"),
        ([given(), given(answer=["B"])], "row 2, column 'answer': a list where a text is needed"),
        (
            [given(options=[{"n": "A", "t": "x"}])],
            r"row 1, column 'options': an option is .*\. Write an option as a",
        ),
        (
            [given(options=[{"A": "x"}, {"B": "y"}], answer="C")],
            r"one of the options \['x', 'y'\], labelled \['A', 'B'\]",
        ),
        ([given(answer="1"), given(answer="2")], "'1' is not exactly .*can count from 0 or from 1.*write letters"),
        ([given(answer="0"), given(answer="9")], "row 2, .*'9' is not exactly .*Other rows count from 0"),
    ],
)
def test_bad_rows_are_named(load, rows, message):
    with pytest.raises(InputError, match=message):
        load(rows)


def test_a_prompt_that_is_too_long_is_named_before_anything_is_trained(load, chat_tokenizer):
    rows = [given(), given(story="Ada has a hat. " * 10), given(story="Ada has a hat. " * 15)]
    free = load(rows)
    lengths = [len(chat_tokenizer.encode(e.prompt, add_special_tokens=False)) for e in free.train]
    with pytest.raises(InputError) as error:
        load(rows, max_prompt_tokens=lengths[0])
    said = str(error.value)
    assert f"row 2: the prompt made from it has {lengths[1]} tokens" in said
    assert f"data.max_prompt_tokens={lengths[0]}. 2 of 3 rows are too long, the longest has {lengths[2]}" in said
    assert len(load(rows, max_prompt_tokens=lengths[2]).train) == 3


def test_prompts_that_are_too_long_are_left_out_and_counted_where_that_is_asked_for(load, chat_tokenizer, tmp_path):
    rows = [given(), given(story="Ada has a hat. " * 10), given(), given(story="Ada has a hat. " * 15)]
    heldout = write(tmp_path / "test.jsonl", rows[1:])
    (first,) = load(rows[:1]).train
    most = len(chat_tokenizer.encode(first.prompt, add_special_tokens=False))
    task = load(rows, bad_rows="drop", max_prompt_tokens=most, eval_path=heldout)
    assert [e.id for e in task.train] == ["train/1", "train/3"] and [e.id for e in task.heldout] == ["heldout/2"]
    assert task.notes == {
        "training rows": 2,
        f"training rows left out, longer than {most} tokens": 2,
        "held-out rows": 1,
        f"held-out rows left out, longer than {most} tokens": 2,
        "held-out rows that are trained on too": 1,
    }
    with pytest.raises(InputError, match=r"2 of 2 rows are too long.*raise data.max_prompt_tokens\.$"):
        load([rows[1], rows[3]], bad_rows="drop", max_prompt_tokens=most)


@pytest.mark.parametrize(
    ("answers", "right"),
    [(["0", "3", "2"], "ADC"), ([1, 4, 2], "ADB"), ([1.0, 4.0, None], "AD"), (["b", "(c)", "Ada"], "BCB")],
)
def test_answers_that_count_the_options_and_small_letters(load, answers, right):
    rows = [given(answer=answer) for answer in answers if answer is not None]
    assert "".join(e.answer for e in load(rows).train) == right


def test_free_text_answers_become_choices_only_where_that_is_meant(load):
    rows = [tom_rl_row(i) for i in range(4)] + [tom_rl_row(4, "my_maths")]
    with pytest.raises(InputError, match=r"row 5 has no options, and its answer is 'blue_crate'"):
        load(rows)
    with pytest.raises(InputError, match=r"row 1 has no options"):
        load(rows, derive_options="never")
    assert load(rows[:4]).notes["training rows whose options are derived from other rows"] == 4
    assert len(load(rows, derive_options="always").train) == 5


def test_tombench_is_not_trained_on_unless_that_is_asked_for(load, tmp_path):
    row = {
        "能力\nABILITY": "Belief",
        "STORY": "s",
        "QUESTION": "q",
        "OPTION-A": "x",
        "OPTION-B": "y",
        "答案\nANSWER": "A",
    }
    with pytest.raises(InputError, match=r"rows.jsonl is ToMBench, .*nobody trains on it. Give it as data.eval_path"):
        load([row])
    heldout = write(tmp_path / "test.jsonl", [row])
    assert [e.answer for e in load([given()], eval_path=heldout).heldout] == ["A"]
    assert len(load([row], train_on_benchmarks=True).train) == 1


def test_a_system_prompt_and_variables_of_the_chat_template(load, chat_tokenizer, monkeypatch):
    assert (
        load([given()], system_prompt="Be brief.")
        .train[0]
        .prompt.startswith("<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nRead the story")
    )
    plain = load([given()], system_prompt="Be brief.", prompt="plain").train[0].prompt
    assert plain.startswith("Be brief.\n\nRead the story")
    with pytest.raises(InputError, match=r"data.chat_template_kwargs.enable_thinking: the chat template of .* no such"):
        load([given()], chat_template_kwargs={"enable_thinking": False})
    template = chat_tokenizer.chat_template + "{% if not enable_thinking %}<think></think>{% endif %}"
    monkeypatch.setattr(chat_tokenizer, "chat_template", template)
    on, off = (load([given()], chat_template_kwargs={"enable_thinking": on}).train[0].prompt for on in (True, False))
    assert off == on + "<think></think>"
    monkeypatch.setattr(chat_tokenizer, "chat_template", "{{ raise_exception('no system role') }}")
    with pytest.raises(
        InputError, match=r"rows.jsonl, row 1: the prompt cannot be used: .* does not take it: no system"
    ):
        load([given()])


def test_limit_and_evaluation_file_errors(load, tmp_path):
    assert len(load([given()] * 5, limit=2).train) == 2
    heldout = write(tmp_path / "test.jsonl", [given(story="")])
    with pytest.raises(InputError, match=r"test.jsonl, row 1, column 'story'"):
        load([given()], eval_path=heldout)


def test_no_file(chat_tokenizer):
    with pytest.raises(InputError, match=r"data.path is empty"):
        make_task(DataConfig(), 0, chat_tokenizer)
