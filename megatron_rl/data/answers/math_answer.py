"""Mathematical answers: what stands in the last \\boxed{}, equal by value as math-verify sees it.

math-verify comes with the extra ``math``. Its own time limits are alarms of the process, and are off: who calls this
with what a model wrote does so where it can be killed, as the reward workers can.
"""

import logging
from functools import cache
from typing import Any

from megatron_rl.data.answers.exact_answer import boxed, equal, given
from megatron_rl.errors import InputError

LONGEST = 1000  # characters of an answer that is read as mathematics


def judge(response: str, answer: Any) -> tuple[bool, bool]:
    """Whether a completion's last box, wherever it stands, holds the right answer, and whether there is one."""
    found = boxed(response)
    return found is not None and same(found, answer), found is not None


def judge_number(response: str, answer: Any) -> bool:
    """Whether the last number of a completion is the right answer."""
    found = given(response, ("number",))
    return found is not None and same(found, answer)


def same(found: str, answer: Any) -> bool:
    """Whether an answer is the right one, or one of a list of right ones: the same text or number without LaTeX's
    dressing (``exact_answer.equal``), or equal as math-verify sees it. Raises InputError without the extra."""
    verify, parse = _math_verify()
    if isinstance(answer, list | tuple):
        return any(same(found, one) for one in answer)
    if equal(found, answer):
        return True
    right = str(answer)
    if max(len(found), len(right)) > LONGEST:
        return False
    return bool(verify(parse(right), parse(found)))


def missing() -> str:
    """What to install, where math-verify is not there; else empty."""
    try:
        _math_verify()
    except InputError as error:
        return str(error)
    return ""


@cache
def _math_verify() -> tuple[Any, Any]:
    """Its ``verify`` (right answer, other) and its ``parse``, of the content of a box; neither sets alarms."""
    try:
        from math_verify import parse, verify
    except ImportError as error:
        raise InputError(
            "Answers are compared by math-verify, which is not installed: pip install 'megatron-rl[math]'."
        ) from error
    logging.getLogger("math_verify").setLevel(logging.ERROR)  # it warns that its alarms are off

    def read(text: str) -> Any:
        return parse(f"\\boxed{{{text}}}", parsing_timeout=None)

    def compare(right: Any, other: Any) -> Any:
        return verify(right, other, timeout_seconds=None)

    return compare, read
