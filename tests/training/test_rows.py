"""From scored rollouts to a step's rows: weights, what goes with a token, and what is left out."""

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from megatron_rl.actor.rows import IMITATE
from megatron_rl.algorithms.algorithm import CreditBatch
from megatron_rl.algorithms.config import AlgorithmConfig
from megatron_rl.algorithms.published import settled
from megatron_rl.algorithms.terms.advantages import centred, in_groups
from megatron_rl.config import Config, RunConfig
from megatron_rl.data.task import Example
from megatron_rl.rewards.config import RewardsConfig
from megatron_rl.rewards.workers.pool import Scored
from megatron_rl.rollout.config import RolloutConfig
from megatron_rl.rollout.rollout import Rollout
from megatron_rl.tracking.run_folder import RunFolder
from megatron_rl.training.batch import Drawn, Step
from megatron_rl.training.progress import Progress
from megatron_rl.training.stages.rl import RL


def rollout(length: int, reward: float, source: str = "", finish: str = "stop", **more) -> Rollout:
    tokens = np.arange(2 + length)
    scored = Scored(reward, {"right/score": reward / 2, "format/score": 0.0})
    return Rollout(
        example=Example("one", "question", "", data_source=source),
        tokens=tokens,
        drawn=tokens >= 2,
        logprobs=np.full(len(tokens), -1.0, np.float32),
        prompt=2,
        text="answer",
        finish=finish,
        versions=((0, length),),
        scored=scored,
        **more,
    )


def made(tmp_path: Path, groups: list[list[Rollout]], **algorithm) -> tuple[Step, list[str]]:
    """The step, and what the user was told."""
    config = Config(
        run=RunConfig(name="run", folder=str(tmp_path)),
        rollout=RolloutConfig(max_new_tokens=10),
        rewards=RewardsConfig(terms={"right": 2.0, "format": 0.5}),
        algorithm=settled(AlgorithmConfig(**algorithm)),
    )
    (tmp_path / "run").mkdir()
    said: list[str] = []
    source = SimpleNamespace(take=lambda at: Drawn(groups, {}, {}), warn=said.append)
    return RL(config, RunFolder(tmp_path / "run")).batch(source, Progress("rl", step=4)), said


def test_completions_without_a_finite_reward_or_log_prob_are_left_out(tmp_path: Path) -> None:
    """They have no weight, no say in their group and in the denominators, and lie in a file."""
    broken = rollout(3, 1.0)
    broken.logprobs[3] = np.nan
    groups = [[rollout(4, np.nan), rollout(2, 1.0), rollout(6, 0.0)], [rollout(1, 1.0), broken, rollout(1, np.inf)]]
    step, said = made(tmp_path, groups, minibatches=2)
    weights = [[row.columns["weight"].sum() for row in rows] for rows in step.minibatches]
    assert weights == [[0.0, pytest.approx(2 / 8), pytest.approx(6 / 8)], [1.0, 0.0, 0.0]]
    assert step.rewards.tolist() == [0.0, 1.0, 0.0, 1.0, 0.0, 0.0]
    assert step.groups.tolist() == [2, 0, 0, 1, 3, 4] and step.metrics["dropped_samples"] == 3
    assert step.terms["right"].scores.tolist() == [0.0, 0.5, 0.0, 0.5, 0.0, 0.0]
    file = tmp_path / "run" / "dropped" / "rl-000005.jsonl"
    kept = [json.loads(line) for line in file.read_text().splitlines()]
    reasons = ["its reward is nan (right/score is nan)", "the engine's log-prob of its token 3 is nan"]
    reasons += ["its reward is inf (right/score is inf)"]
    assert [row["reason"] for row in kept] == reasons
    assert said == [f"step 5: 3 completions left out, the first as {reasons[0]}; they are in {file}."]


def test_a_step_of_which_nothing_is_left_is_said(tmp_path: Path) -> None:
    groups = [[rollout(10, 1.0, finish="length"), rollout(10, 0.0, finish="length")]]
    step, said = made(tmp_path, groups, truncated="mask")
    assert step.learnable() == [False] and not (tmp_path / "run" / "dropped").exists()
    assert said == ["step 5: Nothing can be learned from any completion; the step changes nothing."]


def test_columns_of_tokens(tmp_path: Path) -> None:
    """Sums have a share for their metrics; weights, rewards and KL coefficients of tokens come where there are any."""
    own = dict(rewards=np.array([0, 0, 0.5, 0], np.float32), weights=np.array([0, 0, 1, 0.25], np.float32))
    groups = [[rollout(2, 1.0, "maths", **own), rollout(4, 0.0, "social")]]
    options = dict(aggregation="seq-mean-token-sum-norm", kl_coef=0.1, kl_coefs={"maths": 0.01})
    step, said = made(tmp_path, groups, **options)
    first, second = (row.columns for row in step.minibatches[0])
    assert first["weight"].tolist() == pytest.approx([0, 0, 1 / 20, 1 / 80])  # 2 sequences x 10 tokens
    assert second["weight"].tolist() == pytest.approx([0, 0, *[1 / 20] * 4])
    assert first["share"].tolist() == pytest.approx([0, 0, 1 / 6, 1 / 6])
    assert first["token_reward"].tolist() == [0, 0, 0.5, 0] and not second["token_reward"].any()
    assert first["kl_coef"].tolist() == pytest.approx([0.01] * 4)
    assert second["kl_coef"].tolist() == pytest.approx([0.1] * 6)
    assert said == [] and first.keys() == second.keys()
    assert sum(term.scores * term.weights for term in step.terms.values()).tolist() == step.rewards.tolist()


def test_hints_are_imitated_and_all_rounds_compared(tmp_path: Path) -> None:
    """A hint's token weighs hint_coef x what a drawn token of its completion does; all rounds are one group."""
    groups = [[rollout(6, float(reward), round=number) for number, reward in enumerate((1, 0, 0, 0))]]
    for number, made_of in enumerate(groups[0][:3]):  # the last has none
        made_of.drawn[2 : 2 + number] = False
        made_of.hinted = (made_of.tokens >= 2) & ~made_of.drawn
    step, _ = made(tmp_path, groups, name="dr_grpo", hint_coef=0.001)
    [rows] = step.minibatches
    for number, row in enumerate(rows):
        told = number if number < 3 else 0
        weight = 1 / (4 * 10)  # four completions, rollout.max_new_tokens
        assert row.columns["weight"].tolist() == pytest.approx([0] * (2 + told) + [weight] * (6 - told))
        assert row.columns[IMITATE].tolist() == pytest.approx([0, 0] + [0.001 * weight] * told + [0] * (6 - told))
    assert step.groups.tolist() == [0, 0, 0, 0] and step.rewards.tolist() == [1, 0, 0, 0]
    credit = CreditBatch([], step.rewards, step.groups)
    assert in_groups(credit, step.rewards, centred).tolist() == [0.75, -0.25, -0.25, -0.25]


def test_without_a_coefficient_a_hint_is_no_more_than_a_prompt(tmp_path: Path) -> None:
    told = rollout(4, 1.0, hinted=np.array([False, False, True, True, False, False]))
    told.drawn[:4] = False
    step, _ = made(tmp_path, [[told, rollout(4, 0.0)]], name="dr_grpo")
    assert IMITATE not in step.minibatches[0][0].columns
    assert not step.minibatches[0][0].columns["weight"][:4].any()
