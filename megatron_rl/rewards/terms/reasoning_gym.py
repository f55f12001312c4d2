"""What reasoning-gym's own verifier says of an answer."""

from megatron_rl.data.task import Sample
from megatron_rl.data.tasks.reasoning_gym import judge
from megatron_rl.rewards.registry import Score


def reasoning_gym(sample: Sample) -> Score:
    """The verifier's score, 0..1; ``answered``: there is an answer between <answer> tags or in \\boxed{}."""
    score, answered = judge(sample)
    return {"score": score, "answered": float(answered)}
