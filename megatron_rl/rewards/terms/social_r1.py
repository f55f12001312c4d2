"""The reward of Social-R1 (arXiv 2603.09249): the whole trajectory is scored, its structure first, its content later.

Where the authors ask a judge for the structure S and a reward model for the content C, this asks the rules of ``sip``.
"""

from typing import Literal, get_args

from megatron_rl.data.answers.think_answer import letter_matches, parse
from megatron_rl.data.task import Sample
from megatron_rl.rewards.registry import Score
from megatron_rl.rewards.terms.length import repetition_factor, window_factor
from megatron_rl.rewards.terms.sip import find_stages, grounded, story_of, structure

CURRICULUM = 200  # steps over which the weights move
FLOOR = 0.01  # the least reward of a completion in the right form
WRONG = 0.2  # share of the process credit that a wrong answer keeps

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


def social_r1(sample: Sample, variant: Variant = "full") -> Score:
    """The combined reward and everything it is made of; ``sample.answer`` is the right letter."""
    text, think, parts = parse(sample.prompt, sample.response)
    stages = find_stages(think)
    fmt = float(parts is not None)
    em = float(letter_matches(text, sample.answer))
    ordered = structure(think, stages)["score"]
    content = 4 * grounded(think, stages, story_of(sample)) - 2
    length = window_factor(len(think)) * repetition_factor(think)
    w_structure, w_content = weights(sample.step)
    return {
        "score": combine(fmt, em, ordered, content, sample.step, length, variant),
        "fmt": fmt,
        "em": em,
        "structure": ordered,
        "content": content,
        "adj": adjusted(content),
        "length": length,
        "w_structure": w_structure,
        "w_content": w_content,
        "tau": credit(em),
    }
