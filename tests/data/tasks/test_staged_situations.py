"""The generated situations of social_r1.tiny: what the reward says of targets with faults and without."""

from megatron_rl.data.config import DataConfig
from megatron_rl.data.task import sample_of
from megatron_rl.data.tasks import staged_situations as s
from megatron_rl.data.tokenizer import load_tokenizer
from megatron_rl.rewards.terms.social.social_monitors import social_monitors
from megatron_rl.rewards.terms.social.social_r1 import social_r1

ROWS = 1500


def scored(examples):
    samples = [sample_of(e, e.target.removesuffix(f" {s.EOS}")) for e in examples]
    return [social_r1(sample) | {"first": social_monitors(sample)["answer_first"]} for sample in samples]


def test_held_out_targets_have_all_that_is_rewarded():
    task = s.make_staged_situations(DataConfig(limit=ROWS), 0, None)
    assert (len(task.train), len(task.heldout)) == (ROWS, s.HELDOUT)
    for row in scored(task.heldout):
        assert (row["fmt"], row["em"], row["structure"], row["content"]) == (1, 1, 1, 2) and row["length"] > 0.5


def test_training_targets_have_each_fault_as_often_as_is_said():
    task = s.make_staged_situations(DataConfig(limit=ROWS), 1, None)
    rows = scored(task.train)
    others = [row for row, e in zip(rows, task.train, strict=True) if e.extra["about"] == "others"]
    actors = [row for row, e in zip(rows, task.train, strict=True) if e.extra["about"] == "actor"]
    assert all(row["em"] == 1 for row in actors) and all(row["fmt"] == 1 for row in rows)

    def share(rows, wrong):
        return sum(map(wrong, rows)) / len(rows)

    assert abs(share(others, lambda row: row["em"] == 0) - s.EGOCENTRIC) < 0.05
    assert abs(share(rows, lambda row: row["first"]) - s.ANSWER_FIRST) < 0.04
    assert abs(share(rows, lambda row: row["content"] < 2) - s.VAGUE) < 0.04
    assert abs(share(rows, lambda row: row["structure"] not in (0.5, 1)) - s.SHORT) < 0.04


def test_tokenizer_and_lengths(tmp_path):
    s.write_tokenizer(tmp_path)
    tokenizer = load_tokenizer(tmp_path)
    task = s.make_staged_situations(DataConfig(limit=ROWS), 2, None)
    prompts = [tokenizer.encode(e.prompt, add_special_tokens=False) for e in task.train]
    targets = [tokenizer.encode(e.target, add_special_tokens=False) for e in task.train]
    assert max(map(len, prompts)) <= s.LONGEST_PROMPT and max(map(len, targets)) == s.LONGEST_COMPLETION
    assert tokenizer.decode(targets[0]) == task.train[0].target
    found = s.check_options(DataConfig(task="staged_situations", max_prompt_tokens=20))
    assert found == [f"data.max_prompt_tokens is 20; data.task=staged_situations needs {s.LONGEST_PROMPT} or more."]
    assert not {e.extra["story"] for e in task.train} & {e.extra["story"] for e in task.heldout}
