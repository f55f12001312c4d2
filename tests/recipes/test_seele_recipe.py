"""The numbers of SEELE and of the methods around, as published."""

import pytest

from megatron_rl.algorithms.check import check_algorithm
from megatron_rl.algorithms.published import settled
from megatron_rl.rollout.check import check_rollout
from megatron_rl.settings.recipes import all_recipes, recipe
from megatron_rl.settings.rules import violations


@pytest.mark.parametrize("name", ["seele.qwen2_5_1_5b", "seele.qwen2_5_3b"])
def test_seele(name: str) -> None:
    config = recipe(name)
    rollout, algorithm = config.rollout, settled(config.algorithm)
    assert (rollout.strategy, rollout.hints.rounds, rollout.group_size, rollout.hints.target) == ("hinted", 4, 32, 0.5)
    assert (rollout.prompts_per_step, rollout.prompts_per_step // algorithm.minibatches) == (256, 64)
    assert (rollout.max_new_tokens, rollout.temperature, config.run.steps) == (2048, 1.0, 400)
    assert (algorithm.name, algorithm.hint_coef, algorithm.kl_coef) == ("dr_grpo", 0.001, 0.001)
    assert (algorithm.surrogate, algorithm.kl_in, algorithm.kl_estimator) == ("clip", "loss", "k3")
    assert algorithm.aggregation == "seq-mean-token-sum-norm"
    assert config.rewards.terms == {"math_answer": 1.0} and config.rewards.args == {}
    assert config.actor.sizes().world == 8 and rollout.engines == 8


def test_critical_tokens() -> None:
    contrast, pairs = recipe("cdpo.llama3_8b_contrast"), recipe("cdpo.llama3_8b")
    assert (contrast.actor.lora.rank, contrast.sft_optimizer.lr) == (8, 3e-4)
    assert (pairs.actor.lora.rank, pairs.preference_optimizer.lr) == (16, 4e-5)
    assert (pairs.preference.loss, pairs.preference.beta) == ("cdpo", 0.1)
    assert pairs.preference.steps == 3 * 7473 // pairs.preference.batch_size


def test_distillation() -> None:
    config = recipe("distillation.qwen3_8b")
    assert (config.algorithm.name, config.rollout.prompts_per_step) == ("distillation", 512)
    assert (config.actor.lora.rank, config.actor.optimizer.lr) == (128, 1e-4)


@pytest.mark.parametrize("name", ["seele", "infialign", "supercorrect", "cdpo", "distillation"])
def test_options_agree(name: str) -> None:
    for full in (listed for listed in all_recipes() if listed.startswith(f"{name}.")):
        config = recipe(full)
        config.rollout.engine = "embedded"  # SGLang need not be installed
        assert violations(config) == {} and check_rollout(config.rollout) == []
        if full != "distillation.tiny":  # which has to be given its teacher
            assert check_algorithm(config.algorithm) == []
