import pytest

from megatron_rl.data.answers.languages import SCRIPTS, mix, share_of_letters
from megatron_rl.data.task import Sample
from megatron_rl.rewards.config import RewardsConfig
from megatron_rl.rewards.registry import check_rewards
from megatron_rl.rewards.terms.style.language import language


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("购买 Seekingjoy", "mixed"),
        ("hello", "english"),
        ("12 + 3", ""),
        ("购买", "chinese"),
        ("", ""),
        ("école", "english"),
    ],
)
def test_mix(text: str, expected: str) -> None:
    assert mix(text) == expected


@pytest.mark.parametrize(
    ("text", "of", "share"),
    [
        ("hello", "en", 1.0),
        ("12 + 3 = 15!", "en", 0.0),
        ("购买 Seekingjoy", "en", 10 / 12),
        ("购买 Seekingjoy", "zh", 2 / 12),
        ("Übergröße", "de", 1.0),
        ("привет, hello", "ru", 6 / 11),
        ("これは本です", "ja", 1.0),
        ("これは本です", "zh", 1 / 6),
        ("안녕 ab", "ko", 0.5),
        ("שלום", "he", 1.0),
        ("x²_3", "en", 1.0),  # digits and marks are no letters
    ],
)
def test_share_of_letters(text: str, of: str, share: float) -> None:
    assert share_of_letters(text, of) == pytest.approx(share)


def test_the_reward_reads_the_reasoning_or_all() -> None:
    sample = Sample("Q?", "<think>ab购买</think><Answer>А</Answer>", "A")  # the answer is Cyrillic
    assert language(sample) == {"score": 0.5, "mixed": 1.0}
    assert language(sample, "ru") == {"score": 0.0, "mixed": 1.0}
    assert language(sample, "ru", of="response")["score"] == pytest.approx(1 / 27)
    assert language(Sample("Q?", "no form", "A")) == {"score": 0.0, "mixed": 0.0}


def test_languages_that_are_known_are_allowed() -> None:
    for name in SCRIPTS:
        assert check_rewards(RewardsConfig(terms={"language": 1.0}, args={"language": {"language": name}})) == []
    (said,) = check_rewards(RewardsConfig(terms={"language": 1.0}, args={"language": {"language": "klingon"}}))
    assert "rewards.args.language.language is 'klingon'; it must be en or de or" in said
