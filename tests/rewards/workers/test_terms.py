import warnings
from decimal import Decimal

import numpy as np
import pytest
import torch

from megatron_rl.data.task import Sample
from megatron_rl.rewards.config import RewardsConfig
from megatron_rl.rewards.workers.terms import RewardError, Term, bind, located, report_sample, score_sample

SAMPLE = Sample("Q?", "R", "A")


def score(function) -> tuple[float, dict[str, float]]:
    return score_sample([Term("own", 2.0, function)], SAMPLE)


def test_score_sample_adds_weighted_terms():
    config = RewardsConfig(terms={"answer_in_format": 1.0, "format": 0.2}, args={"format": {}})
    terms = bind(config)
    right = Sample("Q?", "<think>r</think><Answer>box</Answer>", "box")
    wrong = Sample("Q?", "<think>r</think><Answer>jar</Answer>", "box")
    assert score_sample(terms, right) == (1.2, {"answer_in_format/score": 1.0, "format/score": 1.0})
    assert score_sample(terms, wrong) == (0.2, {"answer_in_format/score": 0.0, "format/score": 1.0})


@pytest.mark.parametrize(
    "number", [0.5, np.float32(0.5), np.array(0.5), torch.tensor(0.5), torch.tensor(0.5).bfloat16(), Decimal("0.5")]
)
def test_a_number_of_any_library_is_a_score(number):
    assert score(lambda sample: number) == (1.0, {"own/score": 0.5})
    total, components = score(lambda sample: {"score": number, "part": number})
    assert (total, components) == (1.0, {"own/score": 0.5, "own/part": 0.5})
    assert {type(value) for value in (total, *components.values())} == {float}  # JSON takes it


@pytest.mark.parametrize("number", [True, 1, np.True_, np.int64(1), torch.tensor(True), torch.tensor(1)])
def test_truth_and_whole_numbers_are_scores(number):
    assert score(lambda sample: number) == (2.0, {"own/score": 1.0})


async def later(sample):
    return 1.0


async def streamed(sample):
    yield 1.0


@pytest.mark.parametrize(
    ("function", "reason"),
    [
        (lambda sample: None, "returned None; it must return a number, or numbers by name with the key 'score'."),
        (lambda sample: [1.0], r"returned [1.0] (list); it must return a number"),
        (lambda sample: "1.0", "returned '1.0' (str); it must"),
        (lambda sample: 1j, "returned 1j (complex); it must"),
        (lambda sample: np.ones(1), "returned array([1.]) (ndarray); it must"),
        (lambda sample: torch.ones(2), "returned tensor([1., 1.]) (Tensor); it must"),
        (lambda sample: (part for part in "ab"), "(generator); it must"),
        (later, "is asynchronous (async def); make it a plain function"),
        (streamed, "is asynchronous (async def); make it a plain function"),
        (lambda sample: {}, "returned nothing, but not 'score'"),
        (lambda sample: {"value": 1.0, "part": 2}, "returned 'value', 'part', but not 'score', which is required"),
        (lambda sample: {"score": "high"}, "returned 'score': 'high' (str), which is no number"),
        (lambda sample: {"score": 1.0, "predicted": None}, "returned 'predicted': None, which is no number"),
        (lambda sample: {"score": 1.0, 3: 1.0}, "returned the key 3 (int); names are texts"),
        (lambda sample: {str(i): 1.0 for i in range(1000)}, "returned 1000 numbers; 256 is the most"),
    ],
)
def test_what_is_no_score_is_refused_with_the_place_of_the_function(function, reason):
    with warnings.catch_warnings(), pytest.raises(RewardError) as error:
        warnings.simplefilter("error")  # a coroutine that nobody awaits
        score(function)
    said = str(error.value)
    assert said.startswith(f"The reward 'own' ({located(function)}) ") and reason in said
    assert f"in {__file__}, line {function.__code__.co_firstlineno}" in said


@pytest.mark.parametrize(
    ("raised", "said"),
    [
        (OSError("no judge"), "raised OSError: no judge"),
        (SystemExit(3), "raised SystemExit: 3"),
        (KeyboardInterrupt(), "raised KeyboardInterrupt"),
        (ValueError("first\nsecond"), "raised ValueError: first\nsecond"),
    ],
)
def test_what_a_reward_raises_is_named_with_the_line_that_raised_it(raised, said):
    def reward(sample):
        raise raised

    with pytest.raises(RewardError) as error:
        score(reward)
    assert said in str(error.value)
    assert "raise raised" in str(error.value)  # the trace begins in the reward
    assert "in _call" not in str(error.value)


def test_a_long_error_keeps_its_ends():
    def reward(sample):
        raise ValueError("<" + "x" * 1_000_000 + ">")

    with pytest.raises(RewardError) as error:
        score(reward)
    assert len(str(error.value)) < 10_000
    assert "raised ValueError: <x" in str(error.value) and str(error.value).endswith("x>\n")


def test_a_report_needs_the_key_correct():
    assert report_sample(lambda sample: {"correct": np.float32(1), "x": 0}, SAMPLE) == {"correct": 1.0, "x": 0.0}
    for returned, reason in (
        ({"score": 1.0}, "returned 'score', but not 'correct', which is required."),
        (1.0, "returned 1.0 (float); it must return numbers by name."),
    ):
        with pytest.raises(RewardError) as error:
            report_sample(lambda sample: returned, SAMPLE)  # noqa: B023
        assert "The report of the task (" in str(error.value) and str(error.value).endswith(reason)
