"""Rows of a stage's own: conversations to imitate and pairs to compare, and what is said of bad ones."""

import json

import pytest

from megatron_rl.data.config import DataConfig
from megatron_rl.data.sets.config import SetConfig
from megatron_rl.data.sets.conversations import read_conversations
from megatron_rl.data.sets.pairs import read_pairs
from megatron_rl.data.sets.selection import select
from megatron_rl.errors import InputError

USER = {"role": "user", "content": "Two and two?"}
PAIR = {"prompt": "Two and two?", "chosen": "Four.", "rejected": "Five."}


def said(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


@pytest.fixture
def write(tmp_path):
    def write(rows, **options) -> SetConfig:
        path = tmp_path / "rows.jsonl"
        path.write_text("\n".join(json.dumps(row) for row in rows))
        return SetConfig(path=str(path), **options)

    return write


@pytest.fixture
def imitated(write, chat_tokenizer):
    return lambda rows, **o: read_conversations(write(rows, **o), DataConfig(), chat_tokenizer, "sft.data")


@pytest.fixture
def paired(write, chat_tokenizer):
    return lambda rows, **o: read_pairs(write(rows, **o), DataConfig(), chat_tokenizer, "preference.data")


def test_a_prompt_is_rendered_and_a_target_ended(imitated, chat_tokenizer) -> None:
    rows = imitated([{"prompt": "Two and two?", "completion": " 4"}, {"prompt": [USER], "completion": "4<|im_end|>"}])
    prompt = chat_tokenizer.apply_chat_template([USER], tokenize=False, add_generation_prompt=True)
    assert [row.parts for row in rows.rows] == [
        ((prompt, False), (f"{reply}{chat_tokenizer.eos_token}", True)) for reply in (" 4", "4")
    ]
    [raw] = imitated([{"raw_prompt": "<s> x ", "target": "y"}]).rows
    assert raw.parts[0] == ("<s> x ", False)  # as it is


def test_the_assistants_turns_of_a_conversation_are_learned(imitated, chat_tokenizer) -> None:
    messages = [USER, said("Four."), {"role": "user", "content": "And two?"}, said("Six.")]
    [row] = imitated([{"id": 1, "messages": messages}]).rows
    assert (
        "".join(text for text, _ in row.parts) == chat_tokenizer.apply_chat_template(messages, tokenize=False).rstrip()
    )
    assert [text for text, learned in row.parts if learned] == ["Four.<|im_end|>", "Six.<|im_end|>"]
    assert [learned for _, learned in row.parts] == [False, True, False, True]


def test_turns_that_a_template_changes_later_are_rows_of_their_own(write, chat_tokenizer) -> None:
    """As templates do that take the thinking of earlier turns away."""
    template = chat_tokenizer.chat_template
    chat_tokenizer.chat_template = (
        "{% for m in messages %}{{ m.role }}:{% if m.role == 'assistant' and loop.last %}<think>{% endif %}"
        "{{ m.content }}|{% endfor %}{% if add_generation_prompt %}assistant:{% endif %}"
    )
    try:
        options = write([{"id": 1, "messages": [USER, said("Four."), USER, said("Still four.")]}])
        rows = read_conversations(options, DataConfig(), chat_tokenizer, "sft.data").rows
    finally:
        chat_tokenizer.chat_template = template
    first = "user:Two and two?|assistant:"
    assert [row.parts for row in rows] == [
        ((first, False), ("<think>Four.|", True)),
        ((f"{first}Four.|user:Two and two?|assistant:", False), ("<think>Still four.|", True)),
    ]


def test_pairs_are_texts_or_messages_and_a_prefix_is_given(paired, chat_tokenizer) -> None:
    end = chat_tokenizer.eos_token
    plain = paired([PAIR]).rows
    assert plain == paired([{"chosen": [USER, said("Four.")], "rejected": [USER, said("Five.")]}]).rows
    assert (plain[0].chosen, plain[0].rejected) == (f"Four.{end}", f"Five.{end}")
    [step] = paired([PAIR | {"prefix": "Step 1. "}]).rows
    assert (step.prefix, step.chosen) == ("Step 1. ", "Four.")  # a step is no end
    assert step.sequences()[1] == [plain[0].prompt, "Step 1. ", "Five."]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"chosen": ""}, "row 2: chosen is empty.*preference.data.bad_rows=drop"),
        ({"rejected": None}, "row 2: rejected is empty"),
        ({"rejected": "Four."}, "row 2: chosen and rejected are equal"),
        ({"prompt": "Two? " * 60}, "row 2: it is too long, with .* tokens where max_tokens is 60"),
        ({"chosen": [USER]}, "row 2, column 'chosen'.*is no reply"),
        ({"prompt": 7}, "row 2, column 'prompt': the prompt is 7"),
    ],
)
def test_bad_pairs_are_named_by_their_row(changes, message, paired) -> None:
    rows = [PAIR, PAIR | changes, PAIR]
    with pytest.raises(InputError, match=message):
        paired(rows, max_tokens=60)
    if "column" not in message:
        left = paired(rows, max_tokens=60, bad_rows="drop")
        assert len(left.rows) == 2 and [*left.notes.values()] == [1]
        assert next(iter(left.notes)).startswith("preference.data: rows left out, ")
        with pytest.raises(InputError, match=r"no row that can be used: 1 preference\.data"):
            paired([rows[1]], max_tokens=60, bad_rows="drop")


def test_missing_columns_are_named(paired, imitated) -> None:
    with pytest.raises(InputError, match=r"no column 'rejected'; it has .*preference.data.columns.OUR_NAME=ITS_NAME"):
        paired([{"prompt": "a", "chosen": "b"}])
    with pytest.raises(InputError, match=r"no column 'prompt'; it has 'chosen', 'rejected'"):
        paired([{"chosen": "b", "rejected": "c"}])
    assert paired([{"prompt": "a", "win": "b", "lose": "c"}], columns={"chosen": "win", "rejected": "lose"}).rows
    with pytest.raises(InputError, match="no column 'target'"):
        imitated([{"prompt": "a"}])
    with pytest.raises(InputError, match="row 1: there is nothing to imitate"):
        imitated([{"prompt": "a", "target": ""}])
    with pytest.raises(InputError, match=r"row 1, column 'messages'.*is no conversation"):
        imitated([{"id": 1, "messages": [USER]}])


def test_selection_takes_what_is_good_enough() -> None:
    def drawn(prompt, response, reward, **more):
        return {"prompt": prompt, "response": response, "reward": reward, "finish_reason": "stop"} | more

    rows = [
        *(drawn("p", "a", 1.0), drawn("p", "b", 0.5), drawn("p", "c", 1.2), drawn("p", "c", 1.2), drawn("q", "d", 0.0)),
        *(
            drawn("r", "e", 2.0, finish_reason="length"),
            drawn("p", "f", 3.0, evaluation="before"),
            drawn("r", "g", 1.0),
        ),
    ]
    found = select(rows, 1.0)
    assert (found.completions, found.prompts, found.cut_off) == (7, 3, 1)
    assert [(r["raw_prompt"], r["target"]) for r in found.rows] == [("p", "c"), ("p", "a"), ("r", "g")]
    assert [r["target"] for r in select(rows, 1.0, best_of=1).rows] == ["c", "g"]
    assert select(rows, 1.0, pairs=True).rows == [{"raw_prompt": "p", "chosen": "c", "rejected": "b"}]
