from collections import Counter
from functools import partial
from math import isfinite

import psutil
import pytest

from megatron_rl.data.task import Sample
from megatron_rl.rewards.config import RewardsConfig
from megatron_rl.rewards.workers.pool import RewardPool, Scored
from megatron_rl.rewards.workers.terms import RewardError, bind, score_sample
from tests.rewards.workers.conftest import config, rewards_of_a_user, samples, wait_for_end, workers


def test_the_pool_scores_what_is_scored_in_process_in_order():
    options = RewardsConfig(
        terms={"social_r1": 1.0, "format": 0.2, "sip_content": 0.0},
        args={"social_r1": {"variant": "no_length"}},
        batch_size=7,
    )
    think = "Cue Encoding: Sally puts the ball away. Cue Interpretation: it is safe there now."
    drawn = [
        Sample("Q?", f"<think>{think}{'!' * i}</think>{'<Answer>A</Answer>' * (i % 3)}", "AB"[i % 2], step=4 * i)
        for i in range(100)
    ]
    expected = [Scored(*score_sample(bind(options), sample)) for sample in drawn]
    with RewardPool(options) as pool:
        assert pool.score(drawn) == expected
        assert pool.score(drawn[::-1]) == expected[::-1]  # the same workers again
        assert pool.score([]) == []
    with pytest.raises(RuntimeError, match="closed"):
        pool.score(drawn)
    weights = {scored.components["social_r1/w_content"] for scored in expected}
    assert len(weights) == 51  # the step reaches the workers: 0, 4 … 200, and constant from there
    assert len({scored.reward for scored in expected}) > 30


@pytest.mark.parametrize("form", ["spin", "backtrack", "sleep"])
def test_a_hanging_sample_is_killed_and_nothing_is_lost(form, user_module, capsys):
    drawn = samples(*(f"fine-{i}" for i in range(5)), form, *(f"fine-{i}" for i in range(5, 12)))
    with RewardPool(config(user_module)) as pool:
        before = workers()
        scored = pool.score(drawn)
        children = psutil.Process().children(recursive=True)
        assert [p.name() for p in children if p.name() == "sleep"] == []  # what the reward started is gone too
        assert len(workers()) == 2
        assert len(set(workers()) - set(before)) == 1
        assert [s.reward for s in pool.score(samples("a", "bc", "def"))] == [2, 4, 6]
    assert scored[5] == Scored(-7.0, timed_out=True, failure="ran past rewards.deadline=5 s")
    said = "warning: step 1: 1 of 13 completions have no score (1 ran past rewards.deadline=5 s); their reward is"
    assert capsys.readouterr().out == f"{said} rewards.deadline_score=-7\n"
    fine = [s for s in drawn if s.response != form]
    assert [s.reward for s in scored if not s.timed_out] == [2.0 * len(s.response) for s in fine]
    assert not any(s.crashed or s.components["rewards_of_a_user.reward/torch"] for i, s in enumerate(scored) if i != 5)
    calls = Counter(user_module.read_text().split())
    assert set(calls.values()) == {1}  # scored once each, before and after the kill
    assert len(calls) == len(drawn) + 3


@pytest.mark.parametrize("form", ["segfault", "exit"])
def test_a_crashing_sample_is_counted_and_nothing_is_lost(form, user_module):
    drawn = samples(f"{form}-1", "a", "bc", f"{form}-2", f"{form}-3", "def")
    with RewardPool(config(user_module, workers=1, deadline=30.0)) as pool:
        scored = pool.score(drawn)
    assert [s.reward for s in scored] == [-7, 2, 4, -7, -7, 6]
    assert [s.crashed for s in scored] == [True, False, False, True, True, False]
    how = {"segfault": "SIGSEGV", "exit": "exit code 3"}[form]
    assert Counter(s.failure for s in scored) == {f"ended the worker ({how})": 3, "": 3}
    assert set(Counter(user_module.read_text().split()).values()) == {1}


def test_a_raising_reward_ends_the_run(user_module):
    pool = RewardPool(config(user_module))
    running = workers()
    with pytest.raises(RewardError) as error:
        pool.score(samples("a", "b", "c", "d", "e", "raise-7", "f"))
    for part in ("rewards_of_a_user.reward", "LookupError: no such thing", "number 5 of 7", "'raise-7'", "'Q?'"):
        assert part in str(error.value)
    assert wait_for_end(running) == []
    with pytest.raises(RewardError, match="no such thing"):  # another thread may ask before this one has said it
        pool.score(samples("a"))
    pool.close()


def test_a_score_that_is_not_finite_is_the_samples_own(user_module):
    """Whoever learns leaves that completion out; the others are scored."""
    with RewardPool(config(user_module)) as pool:
        rewards = [scored.reward for scored in pool.score(samples("a", "infinite", "b"))]
    assert rewards[1] == float("inf") and all(map(isfinite, (rewards[0], rewards[2])))


@pytest.mark.parametrize(("form", "raised"), [("leave", "SystemExit: 3"), ("interrupt", "KeyboardInterrupt")])
def test_a_reward_that_ends_its_process_is_named_like_one_that_raises(form, raised, user_module):
    with RewardPool(config(user_module)) as pool, pytest.raises(RewardError) as error:
        pool.score(samples("a", form))
    assert f"The reward 'rewards_of_a_user.reward' (reward in {user_module.parent}" in str(error.value)
    assert raised in str(error.value) and f"response {form!r}" in str(error.value)


def test_a_long_error_arrives_shortened(user_module):
    with RewardPool(config(user_module, workers=1)) as pool, pytest.raises(RewardError) as error:
        pool.score(samples("long"))
    assert "raised LookupError: one line\nand another\n" in str(error.value)
    assert len(str(error.value)) < 12_000


def test_what_a_reward_does_to_its_process_harms_nobody(user_module, capfd):
    forms = ["print", "fork", "chdir", "names"]
    drawn = samples(*(f"{form}-{i}" for i in range(3) for form in (*forms, "fine")))
    with RewardPool(config(user_module, deadline=30.0, first_deadline=30.0)) as pool:
        before = workers()
        scored = pool.score(drawn)
        assert workers() == before
    captured = capfd.readouterr()
    assert captured.out == ""
    assert captured.err.count("written without an end of line") == 3
    expected = [6.0 if s.response.startswith("names") else 2.0 * len(s.response) for s in drawn]
    assert [s.reward for s in scored] == expected
    assert len(scored[3].components) == 201


def test_the_end_of_a_worker_is_seen_though_what_it_forked_lives(user_module):
    others = set(psutil.Process().children(recursive=True))  # such as multiprocessing's, of other tests
    with RewardPool(config(user_module, workers=1, deadline=20.0)) as pool:
        scored = pool.score(samples("daemon", "ab"))
        assert len(set(psutil.Process().children(recursive=True)) - others) == 1
    assert [(s.reward, s.failure) for s in scored] == [(-7.0, "ended the worker (exit code 7)"), (4.0, "")]


def test_the_first_sample_of_a_worker_may_take_longer(user_module):
    options = RewardsConfig(terms={"rewards_of_a_user.slow_start": 1.0}, workers=1, deadline=5.0, first_deadline=60.0)
    with RewardPool(options, rewards_of_a_user().report) as pool:
        pool.judge(samples("a"))  # loads nothing
        assert [s.reward for s in pool.score(samples("a", "b", "c"))] == [1, 1, 1]


def test_workers_that_replace_hanging_ones_wait_no_longer_than_is_known_to_be_needed(user_module):
    with RewardPool(config(user_module, workers=1, first_deadline=60.0)) as pool:
        scored = pool.score(samples("a", "spin-1", "spin-2", "spin-3", "bc"))
    assert [s.failure for s in scored] == ["", *["ran past rewards.deadline=5 s"] * 3, ""]


def test_a_step_without_any_score_ends_the_run(user_module):
    options = RewardsConfig(terms={"rewards_of_a_user.hang": 1.0}, deadline=0.5, first_deadline=0.5)
    with RewardPool(options) as pool:
        with pytest.raises(RewardError) as error:
            pool.score([Sample("Q?", response, "A", step=6) for response in "abc"])
        said = str(error.value)
        assert said.startswith("No completion of step 7 got a score: 3 ran past rewards.deadline=0.5 s. Look at")
        assert "rewards.first_deadline" in said and "response 'a'" in said


def test_a_step_is_given_up_when_none_of_its_first_samples_gets_a_score(user_module, monkeypatch):
    monkeypatch.setattr("megatron_rl.rewards.workers.pool.HOPELESS", 4)
    with RewardPool(config(user_module, deadline=30.0)) as pool, pytest.raises(RewardError) as error:
        pool.score(samples(*(f"exit-{i}" for i in range(200))))
    assert "of the first 4, 4 ended the worker (exit code 3)" in str(error.value)
    assert len(user_module.read_text().split()) <= 4 + 2


def test_reports_are_made_in_the_workers_with_the_rewards_and_alone(user_module):
    report = partial(rewards_of_a_user().report, scale=3.0)
    with RewardPool(config(user_module), report) as pool:
        processes = {float(worker.pid) for worker in workers()}
        scored = pool.score(samples("a", "bc", "def"))
        assert [s.reward for s in scored] == [2, 4, 6]
        assert [s.report["correct"] for s in scored] == [3, 6, 9]
        called = user_module.read_text()
        judged = pool.judge(samples("abcd", "e"))
        assert user_module.read_text() == called  # no reward was wanted
    assert [report["correct"] for report in judged] == [12, 3]
    assert {r["process"] for r in [s.report for s in scored] + judged} <= processes
    with RewardPool(config(user_module)) as pool:
        assert pool.score(samples("a"))[0].report is None


def test_reports_have_the_deadline_of_rewards(user_module, capsys):
    with RewardPool(config(user_module), rewards_of_a_user().report) as pool:
        judged = pool.judge(samples("a", "unjudged", "bc"))
        assert [report and report["correct"] for report in judged] == [1, None, 2]
        assert capsys.readouterr().out == (
            "warning: evaluation: 1 of 3 completions have no report (1 ran past rewards.deadline=5 s) "
            "and do not count\n"
        )
        (scored,) = pool.score(samples("a", "unjudged"))[1:]
        assert (scored.reward, scored.report, scored.timed_out) == (-7.0, None, True)
        with pytest.raises(RewardError, match="'right', but not 'correct', which is required"):
            pool.judge(samples("a", "misjudged"))
