"""Whether the answer that a completion gives is the right one: a number, a formula or a text, in the usual forms."""

from typing import Literal

from megatron_rl.data.answers.exact_answer import judge
from megatron_rl.data.answers.think_answer import parse
from megatron_rl.data.task import Sample
from megatron_rl.rewards.registry import Score


def exact_answer(sample: Sample, form: Literal["any", "boxed", "tag", "number"] = "any") -> Score:
    """1 when the completion's answer equals ``sample.answer``, a text, a number, an object or a list of right answers.

    ``form`` says where it stands after the thinking: in the last ``boxed`` (\\boxed{…}), in the last ``tag``
    (<answer>…</answer>), as the last ``number``, or ``any``: the first of these that there is, a number only where the
    right answer is one. ``answered``: an answer was found.
    """
    correct, answered = judge(parse(sample.prompt, sample.response).text, sample.answer, form)
    return {"score": float(correct), "answered": float(answered)}
