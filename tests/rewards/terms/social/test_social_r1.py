import asyncio
import inspect
from pathlib import Path
from typing import Any

import pytest

from megatron_rl.data.task import Sample
from megatron_rl.rewards.config import RewardsConfig
from megatron_rl.rewards.registry import check_rewards
from megatron_rl.rewards.serving.judge import judge_of
from megatron_rl.rewards.terms.social.sip import sip_content, sip_structure
from megatron_rl.rewards.terms.social.social_r1 import (
    adjusted,
    combine,
    content_prompt,
    content_reply,
    social_r1,
    weights,
)
from megatron_rl.rewards.terms.style.length import length_window, window_factor
from tests.conftest import PATIENCE, free_port
from tests.rewards.serving import Server, said, serving

STORY = "Sally puts the ball into the basket and leaves. Anne moves the ball to the box."
THINK = (
    "Cue Encoding: Sally puts the ball into the basket and leaves; a dragon watches Anne, who has moved it.\n"
    "Cue Interpretation: Sally did not see the move, so what she has in mind is the basket and no other place.\n"
    "Goal Clarification: she wants her ball back, and the question is where she turns first when she returns.\n"
    "Response Generation: she looks where she believes it to be, which is where she had left it herself before.\n"
)
RIGHT = f"<think>{THINK}</think>\n<Answer>A</Answer>"


@pytest.mark.parametrize(
    ("numbers", "expected"),
    [
        ((1, 1, 0.8, 0.5, 0, window_factor(1000)), 5.602777),
        ((1, 0, 0.8, 0.5, 0, window_factor(1000)), 0.920557),
        ((0, 1, 0.8, 0.5, 0, window_factor(1000)), 0.0),
        ((1, 0, 0, -2, 0, window_factor(100)), 0.01),
        ((1, 1, 0.8, 0.5, 0, window_factor(3000)), 2.801406),
    ],
)
def test_known_values(numbers, expected):
    assert combine(*numbers) == pytest.approx(expected, abs=5e-7)


def test_curriculum():
    assert weights(0) == (2, 1)
    assert weights(100) == (1.5, 2)
    assert weights(200) == weights(10_000) == (1, 3)
    assert combine(1, 1, 0.8, 0.5, 200, 1) == pytest.approx(1 + 0.8 + 3 * 2.5**1.2)
    assert combine(1, 1, 0.8, 0.5, 200, 1) == combine(1, 1, 0.8, 0.5, 999, 1)


def test_adjusted():
    assert [adjusted(c) for c in (-3, -2, 0, 2)] == pytest.approx([0, 0, 2.297397, 5.278032], abs=5e-7)


@pytest.mark.parametrize(
    ("variant", "expected"),
    [
        ("full", (1 + 1.5 * 0.8 + 2 * 2.5**1.2) * 0.5),
        ("outcome", 2.0),
        ("structure", (1 + 1.5 * 0.8) * 0.5),
        ("content", (1 + 2 * 2.5**1.2) * 0.5),
        ("no_length", 1 + 1.5 * 0.8 + 2 * 2.5**1.2),
    ],
)
def test_variants(variant, expected):
    assert combine(1, 1, 0.8, 0.5, 100, 0.5, variant) == pytest.approx(expected)


def test_variants_without_the_format():
    assert combine(0, 1, 1, 2, 0, 1, "outcome") == 1
    assert [combine(0, 1, 1, 2, 0, 1, v) for v in ("full", "structure", "content", "no_length")] == [0, 0, 0, 0]
    with pytest.raises(ValueError, match="no_length"):
        combine(1, 1, 1, 1, 0, 1, "nothing")  # type: ignore[arg-type]


def test_the_reward_is_the_combination_of_the_single_rules():
    sample = Sample("Q?", RIGHT, "A", extra={"story": STORY}, step=50)
    score = social_r1(sample)
    s, c = sip_structure(sample)["score"], sip_content(sample)["score"]
    length = length_window(sample)["score"]
    assert (s, c) == (1, 4 * 6 / 9 - 2)  # of nine content words dragon, watches and moved are not in the story
    assert score == {
        "score": combine(1, 1, s, c, 50, length),
        "fmt": 1,
        "em": 1,
        "structure": s,
        "content": c,
        "adj": adjusted(c),
        "length": length,
        "w_structure": 1.75,
        "w_content": 1.5,
        "tau": 1,
    }


def test_wrong_and_formless_answers():
    wrong = social_r1(Sample("Q?", RIGHT, "B", extra={"story": STORY}))
    assert (wrong["em"], wrong["tau"]) == (0, 0.2)
    assert 0.01 < wrong["score"] < social_r1(Sample("Q?", RIGHT, "A", extra={"story": STORY}))["score"] * 0.2
    cut_off = social_r1(Sample("Q?", f"<think>{THINK}", "A", extra={"story": STORY}))
    assert (cut_off["score"], cut_off["fmt"], cut_off["structure"]) == (0, 0, 1)  # what it reasoned is still logged
    assert social_r1(Sample("Q?", RIGHT, "B", extra={"story": STORY}), variant="outcome")["score"] == 1


def asked(server: Server | None, sample: Sample, tmp_path: Path, **args: Any) -> dict[str, float]:
    (tmp_path / "rubric.txt").write_text("{reasoning}")
    url = server.url if server else f"http://127.0.0.1:{free_port()}"
    judge_of.cache_clear()
    patient = {"retries": 0, "timeout": PATIENCE}
    score = social_r1(
        sample,
        structure="judge",
        content="reward_model",
        judge={"url": url, "model": "gpt", "rubric": str(tmp_path / "rubric.txt"), **patient},
        reward_model={"url": url, **patient},
        **args,
    )
    assert inspect.isawaitable(score)

    async def awaited() -> Any:
        return await score

    return asyncio.run(awaited())


def test_a_judge_and_a_reward_model_are_asked(tmp_path: Path) -> None:
    sample = Sample("Q?", RIGHT, "A", extra={"story": STORY, "question": "Where?"}, step=50)
    by_rules = social_r1(sample)

    def reply(body: Any) -> Any:
        return (200, {"scores": [0.5]}) if "inputs" in body else (200, said("<Score>0.8</Score>"))

    with serving(reply) as server:
        found = asked(server, sample, tmp_path)
        assert found["score"] == combine(1, 1, 0.8, 0.5, 50, by_rules["length"])
        assert (found["structure"], found["content"], found["adj"]) == (0.8, 0.5, adjusted(0.5))
        assert found["disagreement"] == pytest.approx(0.2)  # the rules give 1
        assert (found["judge/calls"], found["judge/failures"], found["reward_model/failed"]) == (1, 0, 0)
        (scored,) = [body["inputs"] for body in server.asked if "inputs" in body]
        assert scored == [{"prompt": content_prompt(STORY, "Where?"), "response": content_reply(THINK)}]
        alone = asked(server, sample, tmp_path, variant="structure")
        assert alone["score"] == combine(1, 1, 0.8, 0.5, 50, by_rules["length"], "structure")


@pytest.mark.parametrize("there", [True, False])
def test_whoever_does_not_answer_or_talks_nonsense_gives_0(there: bool, tmp_path: Path) -> None:
    sample = Sample("Q?", RIGHT, "A", extra={"story": STORY})
    with serving(lambda body: (200, b"nonsense")) as server:
        found = asked(server if there else None, sample, tmp_path)
    assert (found["structure"], found["content"], found["adj"]) == (0, 0, pytest.approx(2.297397))
    assert (found["judge/failures"], found["reward_model/failed"]) == (1, 1)
    assert found["score"] == combine(1, 1, 0, 0, 0, found["length"])


def test_what_is_asked_is_checked() -> None:
    def found(**args: Any) -> list[str]:
        return check_rewards(RewardsConfig(terms={"social_r1": 1.0}, args={"social_r1": args}))

    assert found() == found(variant="content") == []
    for args, sentence in (
        ({"structure": "judges"}, "rewards.args.social_r1.structure is 'judges'; it must be rules or judge."),
        (
            {"judge": {"url": "x"}},
            "rewards.args.social_r1.judge does nothing without rewards.args.social_r1.structure=",
        ),
        ({"structure": "judge"}, "rewards.args.social_r1.judge: missing 3 required positional arguments: 'url'"),
        ({"structure": "judge", "judge": {"modle": "x"}}, "got an unexpected keyword argument 'modle'; it takes the"),
        ({"content": "reward_model"}, "rewards.args.social_r1.reward_model: missing 1 required positional argument"),
    ):
        (violation,) = found(**args)
        assert sentence in violation
