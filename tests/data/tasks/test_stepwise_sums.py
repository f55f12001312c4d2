"""Generated sums: right answers, ways to answer, slips, pairs, and what is held out."""

import pytest

from megatron_rl.data.config import DataConfig, SumsConfig
from megatron_rl.data.task import UNBOUNDED, sample_of
from megatron_rl.data.tasks import stepwise_sums as s
from megatron_rl.data.tokenizer import load_tokenizer
from recipes.simplerl_zoo import SIMPLE

ROWS = 2000


def task(seed: int = 0, limit: int = ROWS, template: str = "", **sums):
    config = DataConfig(task="stepwise_sums", limit=limit, template=template, sums=SumsConfig(**sums))
    assert s.check_options(config) == []
    return s.make_stepwise_sums(config, seed, None)


def digits(example) -> list[int]:
    return [int(word) for word in example.prompt.split() if word.isdigit()]


def test_targets_work_it_out_or_guess():
    found = task()
    assert (len(found.train), len(found.heldout), len(task(limit=0).train)) == (ROWS, s.HELDOUT, UNBOUNDED)
    guesses = right = 0
    for example in found.train:
        assert example.answer == str(sum(digits(example)) % 10) and len(digits(example)) == 3
        report = found.report(sample_of(example, example.target.removesuffix(s.EOS)))
        assert report["answered"] == 1
        if report["worked_out"]:
            assert report["correct"] == 1
        else:
            guesses, right = guesses + 1, right + report["correct"]
    assert abs(guesses / ROWS - 0.6) < 0.04 and abs(right / guesses - 0.1) < 0.03
    assert all(found.report(sample_of(e, e.target.removesuffix(s.EOS)))["correct"] for e in found.heldout)


def test_steps_add_digit_by_digit_and_slip_as_often_as_is_asked_for():
    slipped = steps = 0
    for example in task(terms="7-9", guess=0, slip=0.35).train:
        total, *more = digits(example)
        assert len(example.extra["steps"]) == len(more) == example.extra["terms"] - 1
        words = example.target.split()
        for digit in more:
            at = words.index("+")
            before, added, after = words[at - 1], words[at + 1], words[at + 3]
            assert (int(before), int(added)) == (total, digit) and (int(after) - total - digit) % 10 in (0, 1)
            slipped, steps = slipped + (int(after) != (total + digit) % 10), steps + 1
            total, words = int(after), words[at + 4 :]
        assert words[-4:] == [r"\boxed{", str(total), "}", s.EOS]
    assert abs(slipped / steps - 0.35) < 0.02


def test_pairs_are_of_solutions_or_of_steps():
    for example in task(limit=200, compare="solutions").train:
        prefix, chosen, rejected = example.compared
        assert prefix == "" and chosen.split() == " ".join(example.extra["steps"]).split() != rejected.split()
        assert chosen.split()[-2] == example.answer != rejected.split()[-2]
    for example in task(limit=200, terms="4-6", compare="steps").train:
        prefix, chosen, rejected = example.compared
        steps = example.extra["steps"]
        at = steps.index(chosen)
        assert prefix.split() == " ".join(steps[:at]).split() and rejected.split()[:-1] != chosen.split()[:-1]


def test_no_held_out_question_is_trained_on():
    found = task(2)
    assert not {e.prompt for e in found.train} & {e.prompt for e in found.heldout}


@pytest.mark.parametrize(
    ("template", "terms", "longest"), [("", "3", 8), ("", "7-9", 20), (SIMPLE["template"], "5", 18)]
)
def test_tokenizer_and_lengths(tmp_path, template, terms, longest):
    s.write_tokenizer(tmp_path)
    tokenizer = load_tokenizer(tmp_path)
    found = task(3, 300, template, terms=terms)
    prompts = [tokenizer.encode(e.prompt, add_special_tokens=False) for e in found.train]
    assert max(map(len, prompts)) == longest
    target = found.train[0].target
    assert tokenizer.decode(tokenizer.encode(target, add_special_tokens=False)) == target
    config = DataConfig(task="stepwise_sums", template=template, sums=SumsConfig(terms), max_prompt_tokens=longest - 1)
    said = f"data.max_prompt_tokens is {longest - 1}; data.task=stepwise_sums needs {longest} or more."
    assert s.check_options(config) == [said]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"sums": SumsConfig("2-4")}, "data.sums.terms is '2-4'; it must be a number from 3 to 9, or a range"),
        ({"sums": SumsConfig("9-7")}, "data.sums.terms is '9-7'"),
        ({"template": "{question} please"}, "data.template has the word 'please', which the tokenizer"),
        ({"template": "sum"}, "must have a {column} in it"),
        ({"template": "{sum}"}, "has no column 'sum' (data.template)"),
    ],
)
def test_options_that_are_wrong(options, said):
    (found,) = s.check_options(DataConfig(task="stepwise_sums", **options))
    assert said in found
