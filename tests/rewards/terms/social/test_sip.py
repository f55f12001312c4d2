from itertools import chain, permutations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatron_rl.data.task import Sample
from megatron_rl.rewards.terms.social import sip
from megatron_rl.rewards.terms.social.sip import find_stages, grounded, sip_content, sip_structure, structure
from megatron_rl.rewards.terms.social.social_r1 import adjusted

CONTENT = "Sally leaves the room and Anne moves it."
HEADINGS = ["Cue Encoding", "Cue Interpretation", "Goal Clarification", "Response Generation"]
TAGS = ["encode", "interpret", "goal", "respond"]


def headed(order) -> str:
    return "\n".join(f"{HEADINGS[stage]}: {CONTENT}" for stage in order)


def score(text: str) -> float:
    return structure(text, find_stages(text))["score"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (headed([0, 1, 2, 3]), 1.0),
        (headed([0, 1, 3]), 0.541667),
        (headed([3, 2, 1, 0]), 0.5),
        ("", 0.0),
        ("Sally looks in the box.", 0.0),
        ("The answer is (B).\n" + headed([0, 1, 2, 3]), 0.5),
    ],
)
def test_known_values(text, expected):
    assert score(text) == pytest.approx(expected, abs=5e-7)


@pytest.mark.parametrize(
    "text",
    [
        "".join(f"{heading.upper()} {CONTENT}" for heading in HEADINGS),
        " ".join(f"{heading} : {CONTENT}" for heading in HEADINGS),
        "\n".join(f"{i + 1}. **{heading}**\n- {CONTENT}" for i, heading in enumerate(HEADINGS)),
        "\n".join(f"{i + 1}. {CONTENT}" for i in range(4)),
        "\n".join(f"**Step {i + 1}:** {CONTENT}" for i in range(4)),
        "".join(f"<{tag}>{CONTENT}</{tag}>" for tag in TAGS),
        "".join(f"<{tag}>\n{CONTENT}\n</{tag}>\n" for tag in ("cue_encoding", "interpretation", "goal", "response")),
        "The story says that Sally left. This suggests she does not know.\nThe question asks where she will look. "
        "Therefore she looks where she left it.",
        "I notice that Sally left first, because she had to go. Her goal is to find the ball. So the answer follows.",
        "İ" * 30 + headed([0, 1, 2, 3]),  # a letter that str.lower makes two characters of
    ],
)
def test_every_form_of_a_stage(text):
    assert structure(text, find_stages(text)) == {"score": 1.0, "coverage": 1.0, "order": 1.0, "answer_first": 0.0}


@pytest.mark.parametrize("stages", list(chain.from_iterable(permutations(range(4), k) for k in range(5))))
def test_every_arrangement(stages):
    place = {stage: i for i, stage in enumerate(stages)}
    ordered = [s for s in range(3) if s in place and s + 1 in place and place[s] < place[s + 1]]
    assert score(headed(stages)) == pytest.approx(len(stages) / 8 + len(ordered) / 6)


def test_a_stage_needs_content():
    text = headed([0, 1, 2]) + "\nResponse Generation:   say it is the box."
    assert score(text) == pytest.approx(0.375 + 1 / 3)  # 17 characters
    assert structure(text, find_stages(text, 17))["score"] == 1
    closed = "".join(f"<{tag}>short</{tag}>" for tag in TAGS)  # a closing tag is no content
    assert score(closed) == 0
    sample = Sample("", f"<think>{text}</think>", "")
    assert sip_structure(sample)["coverage"] == 0.75
    assert sip_structure(sample, min_characters=17)["coverage"] == 1


def test_headings_go_before_lines_and_phrases():
    text = f"Cue Encoding: the story says Anne wants it, because of her goal. 2. {CONTENT}\n3. {CONTENT}"
    assert structure(text, find_stages(text))["coverage"] == 0.25
    lone = f"1. {CONTENT} The story says it is there because Sally left it."  # one number is not a list of stages
    assert structure(lone, find_stages(lone))["coverage"] == 0.5


@pytest.mark.parametrize("commitment", ["The answer is B.", "answer is: (C)", "Answer is **D**", "Option A it is."])
def test_an_answer_before_the_interpretation_halves(commitment):
    assert score(f"Cue Encoding: {CONTENT} {commitment}\n" + headed([1, 2, 3])) == 0.5
    assert score(headed([0, 1, 2, 3]) + " " + commitment) == 1
    assert score(f"Cue Encoding: {CONTENT} {commitment}\n" + headed([2, 3])) == pytest.approx((0.375 + 1 / 6) / 2)


@pytest.mark.parametrize("remark", ["The answer is a place.", "The answer is Anne's.", "Some options are odd."])
def test_a_remark_is_no_commitment(remark):
    assert score(f"{remark}\n" + headed([0, 1, 2, 3])) == 1


@pytest.mark.parametrize(
    ("encoding", "share", "adj"),
    [
        ("Sally basket dragon castle, and so on", 0.5, 2.297397),
        ("the dragon is in the castle!", 0.0, 0.0),
        ("SALLY put the ball (basket).", 1.0, 5.278032),
        ("and then it was all over again", 0.0, 0.0),  # no content word
    ],
)
def test_grounding(encoding, share, adj):
    sample = Sample(
        "prompt", f"<think>Cue Encoding: {encoding}\nCue Interpretation: {CONTENT}</think>", "A",
        extra={"story": "Sally put the ball, her own, into Anne's basket."},
    )  # fmt: skip
    score = sip_content(sample)
    assert score == {"score": 4 * share - 2, "grounded": share}
    assert adjusted(score["score"]) == pytest.approx(adj, abs=5e-7)


def test_grounding_without_a_story_reads_the_prompt():
    response = "<think>Cue Encoding: Sally has the ball in the basket</think>"
    assert sip_content(Sample("Sally: ball, basket", response, "A"))["grounded"] == 1
    assert sip_content(Sample("", response, "A"))["grounded"] == 0
    assert sip_content(Sample("Sally: ball, basket", "<think>Sally has the ball</think>", "A"))["grounded"] == 0


def test_grounding_in_chinese():
    text = "Cue Encoding: 小明把球放进了篮子里，然后小明就离开了这个房间。"
    assert 0 < grounded(text, find_stages(text), "小明把球放进篮子。") < 1


@given(st.text(alphabet=st.characters(max_codepoint=127)))
def test_words_are_the_expressions_matches(text):
    assert sip._words(text) == set(sip._WORD.findall(text.lower()))


@given(st.lists(st.sampled_from([*HEADINGS, "1.", "2.", "<goal>", "</goal>", "option B", CONTENT, "wants", " ", "\n"])))
def test_bounds(pieces):
    text = "".join(pieces)
    stages = find_stages(text)
    components = structure(text, stages)
    assert all(0 <= value <= 1 for value in components.values())
    assert all(0 <= s < c <= e <= len(text) or s == c < e <= len(text) for s, c, e in filter(None, stages))
