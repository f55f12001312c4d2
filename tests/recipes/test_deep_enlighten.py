"""DeepEnlighten's published settings."""

import pytest

from megatron_rl.data.tasks.social_iqa import check_options
from megatron_rl.settings.recipes import recipe
from megatron_rl.settings.rules import violations

PUBLISHED = {  # template, temperature, longest completion
    "llama3_2_3b": ("llama-instruct", 0.7, 1024),
    "qwen2_5_3b": ("base", 0.6, 2048),
    "qwen2_5_3b_instruct": ("qwen-instruct", 0.6, 2048),
}


@pytest.mark.parametrize("name", PUBLISHED)
@pytest.mark.parametrize(("suffix", "world"), [("", 4), ("_8gpus", 8)])
def test_run_scripts(name, suffix, world):
    config = recipe(f"deep_enlighten.{name}{suffix}")
    assert (config.data.template, config.rollout.temperature, config.rollout.max_new_tokens) == PUBLISHED[name]
    assert (config.rollout.prompts_per_step, config.rollout.group_size, config.algorithm.minibatches) == (4, 8, 1)
    algorithm = config.algorithm
    assert (algorithm.name, algorithm.gamma, algorithm.kl_in, algorithm.kl_estimator) == (
        "reinforce_pp",
        1,
        "loss",
        "k3",
    )
    assert (algorithm.kl_coef, algorithm.entropy_coef, algorithm.std) == (0.001, 0.001, "sample")
    assert (config.actor.optimizer.lr, config.actor.optimizer.clip_grad) == (1e-6, 1.0)
    assert (config.data.max_prompt_tokens, config.evaluation.prompts, config.run.steps) == (512, 1954, 1000)
    assert config.actor.sizes().world == config.rollout.engines == world
    assert violations(config) == {} and check_options(config.data) == []


def test_tiny_follows_them():
    config, published = recipe("deep_enlighten.tiny"), recipe("deep_enlighten.qwen2_5_3b")
    assert config.algorithm == published.algorithm and config.rewards.terms == published.rewards.terms
    assert (config.rollout.engine, config.model.path, config.data.path) == ("embedded", "", "")
