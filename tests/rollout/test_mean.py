"""Means of reports."""

from megatron_rl.rollout.mean import summarise


def test_each_key_is_averaged_over_the_reports_that_have_it():
    reports = [{"correct": 1.0, "rare": 1.0}, {"correct": 0.0}, {"correct": 0.0, "other": 0.5}, {"correct": 0.0}]
    summary = summarise(reports)
    assert summary == {"correct": 0.25, "rare": 1.0, "other": 0.5}
    assert list(summary) == ["correct", "rare", "other"]


def test_sums_are_exact():
    assert summarise([{"x": 0.1}] * 10) == {"x": 0.1}
    assert summarise(iter([])) == {}
