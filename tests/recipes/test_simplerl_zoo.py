"""SimpleRL-Zoo's published settings."""

import pytest

from megatron_rl.settings.recipes import recipe
from megatron_rl.settings.rules import violations

SIZES = ("qwen2_5_0_5b", "qwen2_5_7b", "qwen2_5_14b", "llama3_1_8b")


@pytest.mark.parametrize("name", SIZES)
def test_the_papers_settings(name):
    config = recipe(f"simplerl_zoo.{name}")
    assert (config.rollout.prompts_per_step, config.rollout.group_size, config.rollout.max_new_tokens) == (
        1024,
        8,
        8192,
    )
    assert config.rollout.prompts_per_step // config.algorithm.minibatches == 256 and config.rollout.temperature == 1
    algorithm = config.algorithm
    assert (algorithm.name, algorithm.kl_coef, algorithm.kl_estimator, algorithm.entropy_coef) == (
        *("grpo", 1e-4, "k3"),
        0.001,
    )
    assert config.actor.optimizer.lr == 5e-7 and config.run.steps == 100
    assert {name: weight for name, weight in config.rewards.terms.items() if weight} == {"exact_answer": 1.0}
    assert config.actor.sizes().world == config.rollout.engines == 8 and violations(config) == {}
