"""The generated situations of deep_enlighten.tiny: who feels what, and the error that is built into the targets."""

from megatron_rl.data.config import DataConfig
from megatron_rl.data.task import UNBOUNDED, sample_of
from megatron_rl.data.tasks import social_situations as s
from megatron_rl.data.tokenizer import load_tokenizer

ROWS = 3000


def test_answers_follow_from_the_context():
    task = s.social_situations(0, ROWS)
    assert (len(task.train), len(task.heldout)) == (ROWS, s.HELDOUT)
    assert len(s.social_situations(0).train) == UNBOUNDED
    wrong = asked = 0
    for example in [*task.train, *task.heldout]:
        extra = example.extra
        matched = [event for event in s.EVENTS if " ".join(event.split()[1:3]).split("{")[0] in extra["context"]]
        assert len(matched) == 1
        role = s.ROLES.index(extra["about"])
        words = s.EVENTS[matched[0]]
        options = [extra[f"answer{letter}"] for letter in "ABC"]
        kind = 0 if "feel" in extra["question"] else 1
        assert options["ABC".index(example.answer)] == words[role][kind]
        assert len(set(options)) == 3 and words[1 - role][kind] in options
        names = [word for word in extra["context"].split() if word in s.NAMES]
        assert len(set(names)) == 2 and (names[0], "others")[role] in extra["question"].split()
        assert task.report(sample_of(example, f"x </think> <answer> ({example.answer}) </answer>"))["correct"] == 1
        right = f"({example.answer})" in example.target
        if role == 0 or example.id.startswith("heldout"):
            assert right
        else:
            asked, wrong = asked + 1, wrong + (not right)
    assert abs(wrong / asked - s.BIAS) < 0.05


def test_no_held_out_triple_is_trained_on():
    task = s.social_situations(1, ROWS)

    def triples(examples):
        """Actor, other and what happened, whatever the thing was."""
        return {" ".join(w for w in e.extra["context"].split() if w not in s.THINGS) for e in examples}

    assert not triples(task.train) & triples(task.heldout)


def test_tokenizer_and_lengths(tmp_path):
    s.write_tokenizer(tmp_path)
    tokenizer = load_tokenizer(tmp_path)
    task = s.social_situations(2, ROWS)
    prompts = [tokenizer.encode(e.prompt, add_special_tokens=False) for e in task.train]
    targets = [tokenizer.encode(e.target, add_special_tokens=False) for e in task.train]
    assert max(map(len, prompts)) == s.LONGEST_PROMPT and max(map(len, targets)) == s.LONGEST_COMPLETION
    assert tokenizer.decode(targets[0]) == task.train[0].target
    found = s.check_options(DataConfig(task="social_situations", max_prompt_tokens=20))
    assert found == ["data.max_prompt_tokens is 20; data.task=social_situations needs 27 or more."]
