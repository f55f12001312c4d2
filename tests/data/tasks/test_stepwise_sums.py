"""The sums of one_shot.tiny: right answers, two ways to answer, and what is held out."""

from megatron_rl.data.config import DataConfig
from megatron_rl.data.task import UNBOUNDED, sample_of
from megatron_rl.data.tasks import stepwise_sums as s
from megatron_rl.data.tokenizer import load_tokenizer

ROWS = 2000


def terms(example) -> list[int]:
    return [int(word) for word in example.prompt.split() if word.isdigit()]


def test_targets_work_it_out_or_guess():
    task = s.stepwise_sums(0, ROWS)
    assert (len(task.train), len(task.heldout), len(s.stepwise_sums(0).train)) == (ROWS, s.HELDOUT, UNBOUNDED)
    guesses = right = 0
    for example in task.train:
        assert example.answer == str(sum(terms(example)))
        report = task.report(sample_of(example, example.target.removesuffix(s.EOS)))
        assert report["answered"] == 1
        if report["worked_out"]:
            assert report["correct"] == 1
        else:
            guesses, right = guesses + 1, right + report["correct"]
    assert abs(guesses / ROWS - s.GUESSES) < 0.04 and abs(right / guesses - 1 / (2 * s.SPREAD + 1)) < 0.03


def test_every_addition_is_right():
    for example in s.stepwise_sums(1, 200).heldout:
        *steps, answer = example.target.removesuffix(s.EOS).split(" , ")
        assert steps[0].startswith(s.STEPS)
        steps[0] = steps[0].removeprefix(s.STEPS)
        totals = [terms(example)[0]]
        for step in steps:
            left, total = step.split(" = ")
            one, other = map(int, left.split(" + "))
            assert one == totals[-1] and one + other == int(total)
            totals.append(int(total))
        assert answer.split()[1] == str(totals[-1]) == example.answer and len(steps) == s.TERMS - 1


def test_no_held_out_question_is_trained_on():
    task = s.stepwise_sums(2, ROWS)
    assert not {e.prompt for e in task.train} & {e.prompt for e in task.heldout}


def test_tokenizer_and_lengths(tmp_path):
    s.write_tokenizer(tmp_path)
    tokenizer = load_tokenizer(tmp_path)
    task = s.stepwise_sums(3, ROWS)
    prompts = [tokenizer.encode(e.prompt, add_special_tokens=False) for e in task.train]
    targets = [tokenizer.encode(e.target, add_special_tokens=False) for e in task.train]
    assert {len(p) for p in prompts} == {s.LONGEST_PROMPT} and max(map(len, targets)) == s.LONGEST_COMPLETION
    assert tokenizer.decode(targets[0]) == task.train[0].target
    found = s.check_options(DataConfig(task="stepwise_sums", max_prompt_tokens=6))
    assert found == ["data.max_prompt_tokens is 6; data.task=stepwise_sums needs 7 or more."]
