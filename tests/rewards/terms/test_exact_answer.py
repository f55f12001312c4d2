"""The reward of an exact answer."""

from megatron_rl.data.task import Sample
from megatron_rl.rewards.config import RewardsConfig
from megatron_rl.rewards.registry import check_rewards
from megatron_rl.rewards.terms.exact_answer import exact_answer
from megatron_rl.rewards.workers.terms import bind, score_sample

NAME = "megatron_rl.rewards.terms.exact_answer.exact_answer"


def test_the_score_and_whether_there_is_an_answer():
    assert exact_answer(Sample("", r"<think>2</think> \boxed{72}", "72")) == {"score": 1.0, "answered": 1.0}
    assert exact_answer(Sample("…<think>", "2 </think> It is 71.", 72)) == {"score": 0.0, "answered": 1.0}
    assert exact_answer(Sample("…<think>", "72", 72)) == {"score": 0.0, "answered": 0.0}
    assert exact_answer(Sample("", "72", 72), form="boxed") == {"score": 0.0, "answered": 0.0}


def test_it_is_a_reward_like_any_other():
    config = RewardsConfig(terms={NAME: 2.0}, args={NAME: {"form": "boxed"}})
    assert check_rewards(config) == []
    total, parts = score_sample(bind(config), Sample("", r"\boxed{72}", "72"))
    assert (total, parts) == (2.0, {f"{NAME}/score": 1.0, f"{NAME}/answered": 1.0})
    config.args[NAME]["form"] = "letter"
    assert (
        f"rewards.args.{NAME}.form is 'letter'; it must be any or boxed or tag or number." in check_rewards(config)[0]
    )
