"""The reward of Social-R1 against the published rule, stated once more with plain regular expressions."""

import math
import random
import re
import string

import pytest

from megatron_rl.data.task import Sample
from megatron_rl.rewards.config import RewardsConfig
from megatron_rl.rewards.terms.social.social_r1 import VARIANTS, social_r1
from megatron_rl.rewards.workers.pool import RewardPool

PIECES = (
    *("<think>", "</think>", "<Answer>", "</Answer>", "<answer>", "</answer>", "<think", "think>", "< Answer>", "</"),
    *("A", "B", "b", "(A)", "A.", "A. box", "AB", "ab", "Ä", "猫", "A\n", "1", " ", "  ", "\n", "\t", "\u3000", "\x00"),
    *("Cue Encoding: the ball is in the box, she says.", "Cue Interpretation: Anne does not know of it.", "\ud800"),
    *("Goal Clarification: she wants the ball back now.", "Response Generation: she looks into the box."),
    *("1. the ball lies in the box there", "\n2) and Anne believes it", "\n3: what she wants", "the answer is (B)"),
    *("therefore", "because", "option A", "<encode>", "</encode>", "<goal>", "<|im_end|>", "abcdefghijklmnop" * 2),
)


def published(text: str, answer: str, s: float, c: float, step: int, variant: str) -> float:
    """methods: R_fmt, em, R_len and the sum, as the authors' code states them, of S and C."""
    form = re.match(r"^<think>(.*?)</think>(.*?)<Answer>(.*?)</Answer>$", text, re.DOTALL)
    fmt = 1.0 if form else 0.0
    letter = re.search(r"<Answer>\s*([A-Z])[\s\S]*?</Answer>", text)

    def normal(said: str) -> str:
        return " ".join("".join(ch for ch in said.lower() if ch not in string.punctuation).split())

    em = float(letter is not None and normal(letter[1]) == normal(answer))
    if variant == "outcome":
        return em + fmt
    if fmt < 0.1:
        return 0.0
    assert form is not None
    think = form[1]

    def sigmoid(x: float) -> float:
        return 0.5 * (1 + math.tanh(x / 2))

    window = sigmoid((len(think) - 400) / 50) * sigmoid((3000 - len(think)) / 50)
    grams = [think[i : i + 16] for i in range(len(think) - 15)]
    ratio = (len(grams) - len(set(grams))) / len(grams) if grams else 0.0
    penalty = 1.0 if len(think) < 16 or ratio <= 0.1 else math.exp(-8 * (ratio - 0.1))
    progress = min(1, step / 200)
    structure, content = (2 - progress) * s, (1 + 2 * progress) * max(0, c + 2) ** 1.2
    process = {"structure": structure, "content": content}.get(variant, structure + content)
    score = fmt**3 * (em + (1.0 if em > 0.5 else 0.2) * process)
    return max(0.01, score if variant == "no_length" else score * window * penalty)


def completion(rng: random.Random) -> str:
    """Mostly broken; some nearly or wholly in the form, some long."""
    inner = "".join(rng.choices(PIECES, k=rng.randrange(12)))
    if rng.random() < 0.4:
        inner += "".join(rng.choices(string.ascii_lowercase + " .\n", k=rng.randrange(300, 3300)))
    if rng.random() < 0.3:
        return f"<think>{inner}</think>{rng.choice(['', ' ', 'so '])}<Answer>{rng.choice('ABCab( ')}</Answer>"
    around = [rng.choice(PIECES) for _ in range(rng.randrange(6))]
    around.insert(rng.randrange(len(around) + 1), inner)
    return "".join(["<think>"] * rng.randrange(3) + around + ["</Answer>"] * rng.randrange(3))


def test_the_reward_is_the_published_rule_on_whatever_is_said() -> None:
    rng = random.Random(5)
    story, seen = "Anne sees the ball in the box and goes.", set()
    for number in range(12_000):
        response, variant = completion(rng), VARIANTS[number % len(VARIANTS)]
        prompt, step, answer = (
            rng.choice(["Q?", "Q?\n<think>\n"]),
            rng.randrange(0, 300),
            rng.choice(["A", "(B)", "a."]),
        )
        found = social_r1(Sample(prompt, response, answer, extra={"story": story}, step=step), variant)
        assert isinstance(found, dict)
        s, c = found["structure"], found["content"]
        assert 0 <= s <= 1 and -2 <= c <= 2
        text = ("<think>" if prompt.endswith("<think>\n") else "") + response.rstrip()
        expected = published(text, answer, s, c, step, variant)
        assert found["score"] == pytest.approx(expected, abs=1e-9), (prompt, response)
        seen.add((found["fmt"], found["em"], variant, s > 0, c > -2))
    assert len(seen) > 40  # the forms, the answers and the stages came in many mixtures


HOSTILE = (
    *("<think>", "<Answer>", "<Answer>A", "<Answer>A ", "</Answer><Answer>A", "<think></think>", "</think><Answer>"),
    *("<Answer>   ", "<goal>", "<goal></", "ption ", "nswer is (", "1.\n", " #*(\n", "\n", " ", "#", "。猫", "cue "),
    *("Cue Encoding: ", "step ", "therefore so the answer ", "<", "abcdefghijklmnop", "A\x00\ud800"),
)


@pytest.mark.parametrize("formed", [False, True])
def test_hostile_text_takes_linear_time(formed: bool) -> None:
    """1 MB of each: where one were quadratic, it would take hours, and be late."""
    texts = [piece * (1_000_000 // len(piece)) for piece in HOSTILE]
    if formed:
        texts = [f"<think>{text}</think>{text}<Answer>A</Answer>" for text in texts]
    terms = {"social_r1": 1.0, "social_monitors": 0.0, "format": 0.0, "multiple_choice": 0.0}
    with RewardPool(RewardsConfig(terms=terms, deadline=120.0, first_deadline=120.0, batch_size=1)) as pool:
        scored = pool.score([Sample("Q?", text, "A", extra={"story": "A ball."}) for text in texts])
    assert [text[:20] for text, of in zip(texts, scored, strict=True) if of.failure] == []
    assert {of.reward for of in scored} <= {0.0, 0.01}
