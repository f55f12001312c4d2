from dataclasses import replace

import pytest

from megatron_rl.data.task import Sample
from megatron_rl.rewards.config import RewardsConfig
from megatron_rl.rewards.workers.trial import try_rewards

SAMPLE = Sample("Where?", "<think>r</think><Answer>box</Answer>", "box")
MODULE = """
import os, time

def fine(sample, least=0.0):
    print("half a line", end="", flush=True)
    return least

def listed(sample):
    return [1.0]

def leaves(sample):
    os._exit(4)

def hangs(sample):
    time.sleep(1000)

def reads(sample):
    return len(sample.response) / sample.extra["length"]

def report(sample):
    return {"right": 1.0}
"""


@pytest.fixture
def module(tmp_path, monkeypatch):
    (tmp_path / "tried_rewards.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path / "tried_rewards.py"


def terms(*names: str) -> RewardsConfig:
    return RewardsConfig(terms={f"tried_rewards.{name}": 1.0 for name in names}, deadline=5.0, first_deadline=5.0)


def test_rewards_that_work_are_called_once_and_nothing_is_said(module, capfd):
    config = replace(terms("fine"), args={"tried_rewards.fine": {"least": 0.5}})
    assert try_rewards(config, SAMPLE) == []
    assert capfd.readouterr().out == ""  # somebody may read what this process prints


def test_every_reward_that_fails_is_named(module):
    found = try_rewards(terms("fine", "listed", "reads", "leaves"), SAMPLE)
    assert len(found) == 3
    called = "Rewards called with a row of the data and the response '<think>r</th...nswer>box</Answer>': "
    assert all(sentence.startswith((called, "Rewards called with")) for sentence in found)
    assert f"The reward 'tried_rewards.listed' (listed in {module}, line 8) returned [1.0] (list)" in found[0]
    assert f"The reward 'tried_rewards.reads' (reads in {module}, line 17) raised KeyError: 'length'" in found[1]
    assert "No completion of step 1 got a score: 1 ended the worker (exit code 4)" in found[2]


def test_a_reward_that_hangs_is_ended(module):
    (found,) = try_rewards(terms("hangs"), SAMPLE)
    assert "1 ran past rewards.deadline=5 s. Look at tried_rewards.hangs" in found


def test_the_report_is_tried_too(module):
    import tried_rewards

    (found,) = try_rewards(terms("fine"), SAMPLE, tried_rewards.report)
    assert "The report of the task (report in " in found and "'right', but not 'correct'" in found
    (found,) = try_rewards(terms("fine"), SAMPLE, lambda sample: {"correct": 1.0})
    assert "cannot be sent to them" in found and "def report(sample: Sample)" in found


def test_options_that_are_refused_are_not_tried():
    assert try_rewards(RewardsConfig(terms={"formt": 1.0}), SAMPLE) == []
