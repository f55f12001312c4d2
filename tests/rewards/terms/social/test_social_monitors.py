import pytest

from megatron_rl.data.task import Sample
from megatron_rl.rewards.terms.social.social_monitors import social_monitors

THINK = (
    "Cue Encoding: Sally puts the ball into the basket.\n"
    "Cue Interpretation: Sally did not see that it was moved, so {}.\n"
    "Goal Clarification: she wants her ball back at once, I think.\n"
    "Response Generation: {}"
)


@pytest.mark.parametrize(
    ("interpretation", "end", "answer", "score", "named"),
    [
        ("nothing", "the answer is (A) for her.", "A", 1, 1),
        ("nothing", "the answer is (A) for her.", "B", 0, 1),  # it says one thing and does another
        ("option A looks right", "no: Option **B** it is.", "B", 1, 1),  # the last one counts
        ("nothing", "the basket, of course, where else.", "A", 0, 0),
        ("nothing", "an option about it, she would say.", "A", 0, 0),
    ],
)
def test_faithfulness(interpretation: str, end: str, answer: str, score: float, named: float) -> None:
    think = THINK.format(interpretation, end)
    response = f"<think>{think}</think><Answer>{answer}</Answer>"
    found = social_monitors(Sample("Q?", response, "A", extra={"story": "Sally puts the ball into the basket."}))
    assert (found["score"], found["named"], found["characters"]) == (score, named, len(think))
    assert (found["coverage"], found["order"], found["grounded"]) == (1, 1, 1)
    assert found["answer_first"] == 0


def test_an_answer_that_comes_before_its_reasons() -> None:
    found = social_monitors(Sample("Q?", f"<think>The answer is (B). {THINK}</think>", "A"))
    assert (found["answer_first"], found["score"], found["named"]) == (1, 0, 1)
    nothing = social_monitors(Sample("Q?", "", "A"))
    assert set(nothing.values()) == {0.0}
