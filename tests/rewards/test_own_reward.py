"""A first reward of one's own, as the documentation shows it."""

import sys

import pytest

from megatron_rl.data.task import Sample
from megatron_rl.rewards.config import RewardsConfig
from megatron_rl.rewards.registry import check_rewards
from megatron_rl.rewards.workers.pool import RewardPool
from megatron_rl.rewards.workers.trial import try_rewards

EXAMPLE = '''\
"""my_rewards.py, in the folder where megatron-rl is started."""

from megatron_rl.data.task import Sample


def brevity(sample: Sample, words: int = 50) -> float:
    """1 up to a number of words, less beyond it, 0 for a completion that was cut off."""
    if sample.finish_reason == "length":
        return 0.0
    return min(1.0, words / max(1, len(sample.response.split())))
'''


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry])
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my_rewards.py").write_text(EXAMPLE)
    yield
    sys.modules.pop("my_rewards", None)


def test_the_example_scores_in_real_workers(here):
    config = RewardsConfig(terms={"format": 0.2, "my_rewards.brevity": 0.5}, args={"my_rewards.brevity": {"words": 4}})
    short, long = "<think>a</think><Answer>B</Answer>", "one two three four five six seven eight"
    assert check_rewards(config) == try_rewards(config, Sample("Q?", short, "B")) == []
    with RewardPool(config) as pool:
        scored = pool.score(
            [Sample("Q?", short, "B"), Sample("Q?", long, "B"), Sample("Q?", short, "B", finish_reason="length")]
        )
    assert [s.reward for s in scored] == [0.7, 0.25, 0.2]
    assert [s.components["my_rewards.brevity/score"] for s in scored] == [1.0, 0.5, 0.0]


def test_wrong_options_of_the_example_are_refused(here):
    config = RewardsConfig(terms={"my_rewards.brevity": 1.0}, args={"my_rewards.brevity": {"words": "few"}})
    assert check_rewards(config) == ["rewards.args.my_rewards.brevity.words is 'few'; it must be an integer."]
    config = RewardsConfig(terms={"my_rewards.brevty": 1.0})
    (found,) = check_rewards(config)
    assert "my_rewards has no brevty; did you mean brevity?" in found
