"""1-shot RLVR's published settings."""

from megatron_rl.settings.recipes import recipe
from megatron_rl.settings.rules import violations


def test_the_papers_settings():
    config = recipe("one_shot.qwen2_5_math_1_5b")
    rollout, algorithm = config.rollout, config.algorithm
    assert (rollout.prompts_per_step, rollout.group_size, rollout.temperature) == (128, 8, 0.6)
    assert rollout.prompts_per_step * rollout.group_size // algorithm.minibatches == 128 and algorithm.epochs == 1
    assert (config.data.max_prompt_tokens, rollout.max_new_tokens, config.data.repeat_to_batch) == (1024, 3072, 1)
    assert (algorithm.name, algorithm.kl_coef, config.actor.optimizer.lr) == ("grpo", 0.001, 1e-6)
    assert algorithm.entropy_coef == 0.001  # a bonus: the paper's entropy loss has the weight -0.001
    assert config.rewards.terms == {"exact_answer": 1.0}
    assert config.actor.sizes().world == 8 and violations(config) == {}


def test_tiny_ones_differ_in_the_number_of_examples():
    one, sixteen = recipe("one_shot.tiny"), recipe("one_shot.tiny16")
    assert (one.data.repeat_to_batch, sixteen.data.repeat_to_batch) == (1, 16)
    sixteen.data.repeat_to_batch, sixteen.run.name = 1, one.run.name
    assert one == sixteen and one.algorithm == recipe("one_shot.qwen2_5_math_1_5b").algorithm
