"""Generators and verifiers of reasoning-gym: a stand-in with its interface, and the package where it is there."""

import importlib.util
import sys
from types import ModuleType

import pytest

from megatron_rl.data.check import check_data
from megatron_rl.data.config import DataConfig
from megatron_rl.data.registry import held_out, make_task
from megatron_rl.data.task import UNBOUNDED, Sample, sample_of
from megatron_rl.data.tasks import reasoning_gym as gym
from megatron_rl.errors import InputError
from megatron_rl.rewards.terms.reasoning_gym import reasoning_gym


class Sums:
    """A generator as reasoning-gym has them."""

    def __init__(self, seed: int, size: int, most: int = 9) -> None:
        assert most > 0, "most must be positive"
        self.seed, self.most = seed, most

    def __getitem__(self, index):
        number = (self.seed + index) % self.most
        return {
            "question": f"{number} + 1 =",
            "answer": str(number + 1),
            "metadata": {"difficulty": {"most": self.most}},
        }

    def score_answer(self, answer, entry):
        return 1.0 if int(answer) == int(entry["answer"]) else 0.25


@pytest.fixture
def stand_in(monkeypatch):
    package, factory = ModuleType("reasoning_gym"), ModuleType("reasoning_gym.factory")
    factory.DATASETS = {"sums": Sums, "mazes": Sums}
    package.create_dataset = lambda name, **options: factory.DATASETS[name](**options)
    monkeypatch.setitem(sys.modules, "reasoning_gym", package)
    monkeypatch.setitem(sys.modules, "reasoning_gym.factory", factory)
    gym._verifier.cache_clear()
    yield
    gym._verifier.cache_clear()


def test_questions(stand_in, chat_tokenizer):
    config = DataConfig(task="reasoning_gym:sums", gym={"most": 7})
    assert check_data(config) == []
    task = make_task(config, 3, chat_tokenizer)
    assert (len(task.train), len(task.heldout), held_out(config)) == (UNBOUNDED, gym.HELDOUT, gym.HELDOUT)
    assert task.heldout[0].answer == "4" and task.train[0].answer == str((3 + gym.HELDOUT) % 7 + 1)
    assert task.train[2**61].answer == str((3 + gym.HELDOUT + 2**61 % (2**31 - gym.HELDOUT)) % 7 + 1)
    assert "3 + 1 =" in task.heldout[0].prompt and "<answer>" in task.heldout[0].prompt
    assert task.heldout[0].data_source == "reasoning_gym/sums"
    assert task.train[:2] == [task.train[0], task.train[1]]
    assert task.fingerprint() == make_task(config, 3, chat_tokenizer).fingerprint()
    assert len(make_task(DataConfig(task="reasoning_gym:sums", limit=5), 0, chat_tokenizer).train) == 5


@pytest.mark.parametrize(
    ("response", "score", "answered"),
    [
        ("<answer>4</answer>", 1.0, 1.0),
        ("I think \\boxed{4}", 1.0, 1.0),
        ("<answer>3</answer>", 0.25, 1.0),
        ("<answer>four</answer>", 0.0, 1.0),  # on which the verifier raises
        ("4", 0.0, 0.0),
        ("<think>4 <answer>4</answer>", 0.0, 0.0),
    ],
)
def test_scores(stand_in, chat_tokenizer, response, score, answered):
    task = make_task(DataConfig(task="reasoning_gym:sums"), 3, chat_tokenizer)
    sample = sample_of(task.heldout[0], response)
    assert reasoning_gym(sample) == {"score": score, "answered": answered}
    assert task.report(sample) == {"correct": float(score == 1), "partial": score, "answered": answered}


@pytest.mark.parametrize(
    ("task", "options", "said"),
    [
        ("reasoning_gym:sum", {}, "reasoning-gym has no such generator among its 2; the nearest are sums."),
        ("reasoning_gym", {}, "reasoning-gym has no such generator among its 2; the nearest are mazes, sums."),
        ("reasoning_gym:sums", {"mots": 3}, "does not suit reasoning_gym:sums: TypeError"),
        ("reasoning_gym:sums", {"most": 0}, "does not suit reasoning_gym:sums: AssertionError: most must be positive"),
        ("reasoning_gym:sums", {"seed": 1}, "data.gym.seed: the run decides this"),
    ],
)
def test_names_and_options_that_are_wrong(stand_in, task, options, said):
    [found] = check_data(DataConfig(task=task, gym=options))
    assert said in found


def test_where_the_package_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "reasoning_gym", None)
    [said] = check_data(DataConfig(task="reasoning_gym:chain_sum"))
    assert "data.task=reasoning_gym:chain_sum needs reasoning-gym" in said and "pip install megatron-rl[gym]" in said


def test_other_questions():
    with pytest.raises(InputError, match=r"has no 'generator' among its columns"):
        reasoning_gym(Sample("", "<answer>4</answer>", "4"))


def test_the_package_itself(chat_tokenizer):
    """Nothing to see where it is not installed: the tests above have its interface."""
    if importlib.util.find_spec("reasoning_gym") is None:
        return
    config = DataConfig(task="reasoning_gym:chain_sum", gym={"max_terms": 3})
    assert check_data(config) == []
    task = make_task(config, 0, chat_tokenizer)
    for example in (*task.heldout[:20], *task.train[:20], task.train[2**61 + 5]):
        assert reasoning_gym(sample_of(example, f"<answer>{example.answer}</answer>"))["score"] == 1
        assert reasoning_gym(sample_of(example, "<answer>none</answer>"))["score"] < 1


def test_a_verifier_that_is_not_there_is_an_error_and_no_score(stand_in):
    row = {"generator": "no_such_thing", "options": "{}", "entry": {"answer": "1"}}
    with pytest.raises(InputError, match="no_such_thing"):
        gym.judge(Sample("1 + 0 =", "<answer>1</answer>", "1", extra=row))
    row["generator"] = "sums"
    assert gym.judge(Sample("1 + 0 =", "<answer>one</answer>", "1", extra=row)) == (0.0, True)  # on which it raises
