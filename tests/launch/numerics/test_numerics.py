"""Layouts that compute what one rank computes, and broken ones that do not."""

import sys
from pathlib import Path
from typing import Any

import pytest

from megatron_rl.actor.config import ActorConfig, ModelConfig
from megatron_rl.algorithms.config import AlgorithmConfig
from megatron_rl.algorithms.published import settled
from megatron_rl.config import Config, RunConfig
from megatron_rl.launch.numerics.compare import TOLERANCE, Comparison
from megatron_rl.launch.numerics.run import numerics
from megatron_rl.launch.numerics.shape import shape
from megatron_rl.rewards.config import RewardsConfig
from megatron_rl.rollout.config import RolloutConfig
from tests.launch.numerics.architectures import ARCHITECTURES

BROKEN = Path(__file__).parent / "broken_rank.py"
SP = {"sequence_parallel": True}
# (architecture, options of the actor, of the algorithm): four ranks each, so that all share their processes
COMBINATIONS: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
    ("tied", dict(tensor_parallel=2, data_parallel=2), {"kl_coef": 0.1}),
    ("tied", dict(pipeline_parallel=2, virtual_pipeline=2, data_parallel=2), {"entropy_coef": 0.01}),
    ("tied", dict(tensor_parallel=2, pipeline_parallel=2, **SP), {"surrogate": "gspo"}),
    ("untied", dict(tensor_parallel=2, context_parallel=2, **SP), {"name": "ppo"}),
    ("untied", dict(context_parallel=2, pipeline_parallel=2), {"name": "reinforce_pp", "kl_coef": 0.1}),
    ("untied", dict(pipeline_parallel=4, first_stage=1, last_stage=1, recompute="full"), {}),
    ("moe", dict(expert_parallel=2, data_parallel=4), {}),
    ("moe", dict(tensor_parallel=2, expert_tensor_parallel=2, expert_parallel=2, data_parallel=2, **SP), {}),
    ("moe", dict(pipeline_parallel=2, context_parallel=2, expert_parallel=2), {}),
    ("moe", dict(pipeline_parallel=2, virtual_pipeline=2, tensor_parallel=2, **SP), {}),
]
NAMES = [f"{name}-" + "-".join(f"{k}={v}" for k, v in actor.items()) for name, actor, _ in COMBINATIONS]


def recipe(name: str, actor: dict[str, Any], algorithm: dict[str, Any]) -> Config:
    return Config(
        run=RunConfig(steps=1),
        model=ModelConfig(architecture=ARCHITECTURES[name]),
        rollout=RolloutConfig(temperature=0.7),
        rewards=RewardsConfig(terms={"right": 1.0, "format": 0.5}),
        algorithm=settled(AlgorithmConfig(**algorithm)),
        actor=ActorConfig(**actor),
    )


def of_pairs(stage: str, loss: str, **actor: Any) -> Config:
    """A recipe whose only stage learns from pairs."""
    config = recipe("tied", actor, {})
    config.run.steps, config.evaluation.prompts = 0, 0
    if stage == "reward_model":
        config.reward_model.steps = 1
    else:
        config.preference.steps, config.preference.loss = 1, loss
        config.preference.positive = config.preference.negative = "replaced"
    return config


OF_PAIRS = [
    of_pairs("preference", "cdpo", tensor_parallel=2, pipeline_parallel=2, **SP),
    of_pairs("preference", "sigmoid", context_parallel=2, data_parallel=2),
    of_pairs("reward_model", "", pipeline_parallel=2, tensor_parallel=2),
]


@pytest.fixture(scope="module")
def comparisons(tmp_path_factory: pytest.TempPathFactory) -> list[Comparison]:
    shapes = [shape(recipe(*case), ARCHITECTURES[case[0]]) for case in COMBINATIONS]
    shapes += [shape(config, ARCHITECTURES["tied"]) for config in OF_PAIRS]
    return numerics(shapes, tmp_path_factory.mktemp("numerics"))


@pytest.mark.parametrize("number", range(len(COMBINATIONS)), ids=NAMES)
def test_a_layout_computes_what_one_rank_does(number: int, comparisons: list[Comparison]) -> None:
    found, (name, _, algorithm) = comparisons[number], COMBINATIONS[number]
    assert not found.exceeding
    assert all(found.of(kind) for kind in TOLERANCE)
    layers = ARCHITECTURES[name]["num_hidden_layers"]
    for kind in ("gradients", "weights"):  # of every tensor, the critic's too
        names = [difference.where for difference in found.of(kind)]
        assert len([n for n in names if n.endswith("input_layernorm.weight") and "critic" not in n]) == layers
        assert ("lm_head.weight" in names) == (name != "tied")
        assert ("critic: score.weight" in names) == (algorithm.get("name") == "ppo")
        assert (f"model.layers.{layers - 1}.mlp.experts.3.down_proj.weight" in names) == (name == "moe")
    assert {"loss", "grad_norm", "entropy"} <= {difference.where for difference in found.of("metrics")}


def test_other_stages_are_compared_too(comparisons: list[Comparison]) -> None:
    for found in comparisons[len(COMBINATIONS) :]:
        assert not found.exceeding
        assert "loss" in {difference.where for difference in found.of("metrics")}
    assert "score.weight" in {difference.where for difference in comparisons[-1].of("gradients")}


def wrong(found: Comparison, kind: str) -> set[str]:
    return {difference.where for difference in found.exceeding if difference.kind == kind}


def test_broken_compositions_are_found(tmp_path: Path) -> None:
    """Each in the tensors that it is in, and in no others."""
    layouts = dict(tensor_parallel=2, **SP), dict(data_parallel=2), dict(tensor_parallel=2)
    shapes = [shape(recipe("tied", actor, {}), ARCHITECTURES["tied"]) for actor in layouts]
    norms, replicas, weight = numerics(shapes, tmp_path, [sys.executable, str(BROKEN)])

    every = {difference.where for difference in norms.of("gradients")}
    assert wrong(norms, "gradients") == {name for name in every if name.endswith("norm.weight")}
    assert not wrong(norms, "log-probs")
    assert "grad_norm" in wrong(norms, "metrics") and "loss" not in wrong(norms, "metrics")

    assert wrong(replicas, "gradients") and not wrong(replicas, "log-probs")
    assert min(d.size for d in replicas.exceeding if d.kind == "gradients") > 1e-2

    assert wrong(weight, "log-probs") and "grad_norm" in wrong(weight, "metrics")
    largest = weight.of("weights")[0]
    assert (largest.where, largest.rank) == ("model.layers.0.mlp.down_proj.weight", 1)
