"""The score of a reward model that ``megatron-rl serve`` serves, asked over HTTP."""

from megatron_rl.data.task import Sample
from megatron_rl.rewards.registry import Score
from megatron_rl.rewards.serving.reward_model import RewardModel, model_of


async def reward_model(
    sample: Sample, url: str, timeout: float = 3.0, retries: int = 2, default: float | None = None
) -> Score:
    """What the model at ``url`` (http://HOST:PORT) gives prompt and response, unclamped.

    A call may take ``timeout`` seconds and is repeated up to ``retries`` times while the server cannot be reached or
    is not well; all together must stay below rewards.deadline. Then the score is ``default`` (component ``failed``: 1),
    or, without one, the run ends. A refusal (another key, a text that is too long) ends it in any case.
    """
    model = model_of(url=url, timeout=timeout, retries=retries, default=default)
    given = await model(sample.prompt, sample.response)
    return {"score": given.score, **given.counts}


def reward_model_services(**args: object) -> list[RewardModel]:
    """As ``registry.Reward`` says."""
    return [model_of(**args)]
