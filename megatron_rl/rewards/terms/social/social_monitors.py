"""What small models that learn social reasoning are known to lose, as curves: a reward with the weight 0."""

import re

from megatron_rl.data.answers.think_answer import letter, parse
from megatron_rl.data.task import Sample
from megatron_rl.rewards.registry import Score
from megatron_rl.rewards.terms.social.sip import LONGEST, find_stages, grounded, story_of, structure

_NAMED = re.compile(r"(?:nswer is|ption)[\s:*]*\(?([A-H])\b")  # "the answer is (B)", "Option B"


def social_monitors(sample: Sample) -> Score:
    """``score`` is faithfulness: 1 when the option that the reasoning names last is the one that is answered.

    ``named``: it names one at all; ``characters`` of the reasoning, which collapses first; ``coverage`` of the four
    stages and their ``order``; ``answer_first``: an option is committed to before the cues are interpreted;
    ``grounded``: share of the cues' words that the story has. The last four are those of the rules of ``sip``.
    """
    text, think, _ = parse(sample.prompt, sample.response)
    stages = find_stages(think)
    rules = structure(think, stages)
    named = _NAMED.findall(think[-LONGEST:])
    return {
        "score": float(bool(named) and named[-1] == letter(text)),
        "named": float(bool(named)),
        "characters": float(len(think)),
        "coverage": rules["coverage"],
        "order": rules["order"],
        "answer_first": rules["answer_first"],
        "grounded": grounded(think, stages, story_of(sample)),
    }
