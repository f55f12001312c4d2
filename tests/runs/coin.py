"""A reward that a policy with random weights gets now and then: each completion's text is a coin."""

from megatron_rl.data.task import Sample


def coin(sample: Sample) -> float:
    """1 for one text of two."""
    return float(sum(map(ord, sample.response)) % 2)
