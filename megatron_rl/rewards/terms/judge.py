"""The score of a language model that is asked with a rubric of the user's."""

from megatron_rl.data.task import Sample
from megatron_rl.rewards.registry import Score
from megatron_rl.rewards.serving.judge import KEY, PATTERN, Judge, judge_of


async def judge(
    sample: Sample,
    url: str,
    model: str,
    rubric: str,
    pattern: str = PATTERN,
    low: float = 0.0,
    high: float = 1.0,
    default: float | None = None,
    timeout: float = 3.0,
    retries: int = 2,
    temperature: float = 0.0,
    max_tokens: int = 1024,
    cache: str = "",
    key: str = KEY,
) -> Score:
    """A number from ``low`` to ``high`` in the judge's answer, the last match of ``pattern``, scaled to 0 … 1.

    ``url``: http://HOST:PORT of a server with ``/v1/chat/completions``, where ``model`` is served. ``rubric``: a text
    file with {prompt}, {response}, {reasoning}, {answer}, {data_source} and columns of the row, such as {question}.
    Without an answer, or with one that has no such number, the score is ``default``, or the run ends; a refusal ends it
    in any case. Components: what a call cost; means over all samples, a cached one costs nothing.
    """
    asked = judge_of(
        **{"url": url, "model": model, "rubric": rubric, "pattern": pattern, "low": low, "high": high},
        **{"default": default, "timeout": timeout, "retries": retries, "temperature": temperature},
        **{"max_tokens": max_tokens, "cache": cache, "key": key},
    )
    judgement = await asked(sample)
    return {"score": judgement.score, **judgement.counts}


def judge_services(**args: object) -> list[Judge]:
    """As ``registry.Reward`` says."""
    return [judge_of(**args)]
