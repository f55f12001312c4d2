"""The reward of Social-R1 (arXiv 2603.09249): the whole trajectory is scored, its structure first, its content later.

The authors ask a judge for the structure S and a reward model for the content C. Both can be asked here; without them
the rules of ``sip`` stand for them.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Literal, get_args

from megatron_rl.data.answers.think_answer import letter_matches, parse
from megatron_rl.data.task import Sample
from megatron_rl.errors import InputError
from megatron_rl.rewards.registry import Score, Service
from megatron_rl.rewards.serving.judge import Judge, judge_of
from megatron_rl.rewards.serving.reward_model import RewardModel, model_of
from megatron_rl.rewards.terms.social.sip import find_stages, grounded, story_of
from megatron_rl.rewards.terms.social.sip import structure as structure_of
from megatron_rl.rewards.terms.style.length import repetition_factor, window_factor

CURRICULUM = 200  # steps over which the weights move
FLOOR = 0.01  # the least reward of a completion in the right form
WRONG = 0.2  # share of the process credit that a wrong answer keeps
NOTHING = 1e-100  # of a length window: whatever it multiplies is below the floor
INSTRUCTION = (  # of the reward model of the content
    "Judge whether the [Reasoning], given the [Story] and the [Question], is how a person would reason: human-like, "
    "resting on social cues, logically consistent and concise."
)

Variant = Literal["full", "outcome", "structure", "content", "no_length"]
"""The authors' data sources socialR1, R0, R2, R3 and R4: everything; format and answer alone; S alone as process
credit; C alone; everything but the length factor."""
VARIANTS = get_args(Variant)


def weights(step: int) -> tuple[float, float]:
    """Weights of structure (2 to 1) and of content (1 to 3) at an RL step."""
    progress = min(1.0, step / CURRICULUM)
    return 2.0 - progress, 1.0 + 2.0 * progress


def adjusted(content: float) -> float:
    """max(0, C + 2) ** 1.2 of the content's score C."""
    return max(0.0, content + 2.0) ** 1.2


def credit(em: float) -> float:
    """tau: the share of the process credit that is given."""
    return 1.0 if em > 0.5 else WRONG


def combine(
    fmt: float,
    em: float,
    structure: float,
    content: float,
    step: int,
    length_factor: float,
    variant: Variant = "full",
) -> float:
    """fmt^3 (em + tau (w_s S + w_c adj(C))) R_len, at least 0.01; 0 without the format.

    ``fmt`` and ``em`` are 0 or 1, ``structure`` is S, ``content`` is C before ``adjusted``, ``length_factor`` is R_len.
    """
    if variant not in VARIANTS:
        raise ValueError(f"social_r1 variant {variant!r} is none of {', '.join(VARIANTS)}")
    if variant == "outcome":
        return em + fmt
    if fmt < 0.1:
        return 0.0
    w_structure, w_content = weights(step)
    process = 0.0
    if variant != "content":
        process += w_structure * structure
    if variant != "structure":
        process += w_content * adjusted(content)
    score = fmt**3 * (em + credit(em) * process)
    return max(FLOOR, score if variant == "no_length" else score * length_factor)


def social_r1(
    sample: Sample,
    variant: Variant = "full",
    structure: Literal["rules", "judge"] = "rules",
    content: Literal["rules", "reward_model"] = "rules",
    judge: Mapping[str, Any] | None = None,
    reward_model: Mapping[str, Any] | None = None,
) -> Score | Awaitable[Score]:
    """The combined reward and everything it is made of; ``sample.answer`` is the right letter.

    With ``structure=judge`` S is what a judge says (``judge``: the arguments of the reward ``judge``), with
    ``content=reward_model`` C is what a served reward model gives (``reward_model``: those of ``reward_model``) for
    ``content_prompt`` and ``content_reply``; one that does not answer gives 0 unless it has another ``default``, as the
    authors'. What they are asked is counted, and ``disagreement`` is |S of the judge - S of the rules|.
    """
    found = _by_rules(sample)
    asked = _asked(structure, content, judge, reward_model)
    return _with_asked(sample, found, variant, *asked) if any(asked) else _combined(sample, found, variant)


def social_r1_services(
    variant: Variant = "full",
    structure: str = "rules",
    content: str = "rules",
    judge: Mapping[str, Any] | None = None,
    reward_model: Mapping[str, Any] | None = None,
) -> list[Service]:
    """As ``registry.Reward`` says. Raises InputError for arguments of the judge and the model that they do not take."""
    return [one for one in _asked(structure, content, judge, reward_model) if one is not None]


def _asked(
    structure: str, content: str, judge: Mapping[str, Any] | None, reward_model: Mapping[str, Any] | None
) -> tuple[Judge | None, RewardModel | None]:
    for name, args, used, option in (
        ("judge", judge, structure == "judge", "structure=judge"),
        ("reward_model", reward_model, content == "reward_model", "content=reward_model"),
    ):
        if args and not used:
            raise InputError(f"rewards.args.social_r1.{name} does nothing without rewards.args.social_r1.{option}.")
    return (
        _made("judge", judge_of, judge or {}) if structure == "judge" else None,
        _made("reward_model", model_of, reward_model or {}) if content == "reward_model" else None,
    )


def _made(name: str, make: Callable[..., Any], args: Mapping[str, Any]) -> Any:
    try:
        return make(**({"default": 0.0} | dict(args)))
    except TypeError as error:
        said = str(error).partition("() ")[2] or error
        raise InputError(
            f"rewards.args.social_r1.{name}: {said}; it takes the arguments of the reward {name}."
        ) from error


def content_prompt(story: str, question: str) -> str:
    """What the reward model of the content is given before the reasoning; rows of pairs have it as ``raw_prompt``."""
    return f"{INSTRUCTION}\n\n[Story] {story}\n\n[Question] {question}\n\n"


def content_reply(reasoning: str) -> str:
    """What it scores; rows of pairs have it as ``chosen`` and ``rejected``."""
    return f"[Reasoning] {reasoning}"


def _by_rules(sample: Sample) -> Score:
    """All parts of the reward; S and C by the rules."""
    text, think, parts = parse(sample.prompt, sample.response)
    stages = find_stages(think)
    length = window_factor(len(think))
    if length > NOTHING:
        length *= repetition_factor(think)
    return {
        "fmt": float(parts is not None),
        "em": float(letter_matches(text, sample.answer)),
        "structure": structure_of(think, stages)["score"],
        "content": 4 * grounded(think, stages, story_of(sample)) - 2,
        "length": length,
    }


async def _with_asked(
    sample: Sample, found: Score, variant: Variant, judge: Judge | None, reward_model: RewardModel | None
) -> Score:
    """The reward with S and C of whom is asked for them, at the same time."""
    asked = [_judged(judge, sample, found["structure"])] if judge else []
    asked += [_given(reward_model, sample)] if reward_model else []
    counts: Score = {}
    for part in await asyncio.gather(*asked):
        counts |= part
    for name in ("structure", "content"):
        found[name] = counts.pop(name, found[name])
    return _combined(sample, found, variant) | counts


async def _judged(judge: Judge, sample: Sample, by_rules: float) -> Score:
    said = await judge(sample)
    counts = {f"judge/{name}": count for name, count in said.counts.items()}
    return {"structure": said.score, "disagreement": abs(said.score - by_rules), **counts}


async def _given(reward_model: RewardModel, sample: Sample) -> Score:
    think = parse(sample.prompt, sample.response).think
    prompt = content_prompt(story_of(sample), str(sample.extra.get("question", "")))
    said = await reward_model(prompt, content_reply(think))
    return {"content": said.score, **{f"reward_model/{name}": count for name, count in said.counts.items()}}


def _combined(sample: Sample, found: Score, variant: Variant) -> Score:
    w_structure, w_content = weights(sample.step)
    fmt, em, s, c, length = (found[name] for name in ("fmt", "em", "structure", "content", "length"))
    return {
        "score": combine(fmt, em, s, c, sample.step, length, variant),
        "fmt": fmt,
        "em": em,
        "structure": s,
        "content": c,
        "adj": adjusted(c),
        "length": length,
        "w_structure": w_structure,
        "w_content": w_content,
        "tau": credit(em),
    }
