"""The answer that a completion gives, and whether it is the right one: a number, a formula or a text.

Plain text in, plain text out, for rewards and reports.
"""

import json
import re
from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import Any

from megatron_rl.data.answers.think_answer import THINK, THINK_END

_BOXED = re.compile(r"\\(?:boxed|fbox)\s*\{")
_TAG = re.compile(r"<answer>((?:(?!<answer>)[\s\S])*?)</answer>", re.IGNORECASE)
_NUMBER = re.compile(
    r"(?:(?<![\w)])[-+])?(?:\d+(?:,\d{3}(?!\d))*(?:\.\d+)?|(?<![\w.])\.\d+)(?:[eE][-+]?\d+(?!\w))?(?:/\d+)?"
)
_DECIMAL = re.compile(r"[-+]?(?:\d{1,60}(?:\.\d{0,60})?|\.\d{1,60})(?:e[-+]?\d{1,2})?")  # longer ones stay texts
_QUOTIENT = re.compile(r"([-+]?)(?:(\d{1,60})/(\d{1,60})|\\frac(?:\{(\d{1,60})\}\{(\d{1,60})\}|(\d)(\d)))")
_IGNORED = re.compile(r"\\(?:left|right|displaystyle)(?![a-zA-Z])|\\[!,;: ]|\^\{?\\circ\}?|\\?%|\\?\$")
_TEXT = re.compile(r"\\(?:text|mathrm|textbf|mathbf)\{([^{}]*)\}")


def given(text: str, forms: Sequence[str]) -> str | None:
    """The answer that a completion gives in the first of ``forms`` that it has, after the thinking: in its last ``tag``
    (<answer>…</answer>), in its last ``boxed`` (\\boxed{…}), or as its last ``number``. None: in none of them, or the
    thinking has no end."""
    if THINK_END in text:
        text = text[text.rindex(THINK_END) + len(THINK_END) :]
    elif text.lstrip().startswith(THINK):
        return None
    find = {"tag": _tagged, "boxed": boxed, "number": _last_number}
    return next((found for form in forms if (found := find[form](text)) is not None), None)


def boxed(text: str) -> str | None:
    """What the last \\boxed{} holds, braces inside it included; None when there is none that ends."""
    starts = [match.end() for match in _BOXED.finditer(text)]
    if not starts:
        return None
    depth = 1
    for at in range(starts[-1], len(text)):
        depth += {"{": 1, "}": -1}.get(text[at], 0)
        if not depth:
            return text[starts[-1] : at].strip()
    return None


def _tagged(text: str) -> str | None:
    tags = _TAG.findall(text)
    return (boxed(tags[-1]) or tags[-1].strip()) if tags else None


def _last_number(text: str) -> str | None:
    numbers = _NUMBER.findall(text)
    return numbers[-1] if numbers else None


def equal(found: str, answer: Any) -> bool:
    """Whether the answer found is the right one, or one of a list of right ones; an object is matched by the same
    object as JSON. Numbers are equal by value, texts without regard to case, spaces and LaTeX's dressing."""
    if isinstance(answer, list | tuple):
        return any(equal(found, one) for one in answer)
    if isinstance(answer, Mapping):
        try:
            return bool(json.loads(found) == answer)
        except ValueError:
            return False
    one, other = normalise(found), normalise(str(answer))
    a, b = number(one), number(other)
    return one == other if a is None or b is None else a == b


def normalise(text: str) -> str:
    """An answer without what does not change it: case, spaces, a final full stop, $ and % signs, LaTeX's spacing."""
    text = _TEXT.sub(r"\1", _IGNORED.sub("", text)).replace("dfrac", "frac").replace("tfrac", "frac")
    text = re.sub(r"(?<=\d),(?=\d{3}(?!\d))", "", " ".join(text.split()).removesuffix(".").strip())
    if re.search(r"[\\\d=^_{}]", text):
        text = re.sub(r"^[a-zA-Z]=", "", text.replace(" ", ""))
    if inner := re.fullmatch(r"\(?([A-Za-z])[).:]?|\(([-+]?[\d.]+)\)", text):  # (B) is B, (540) is 540
        text = inner[1] or inner[2]
    return text if "\\" in text else text.casefold()


def number(text: str) -> Fraction | None:
    """The value of a normalised decimal or quotient; None for anything else."""
    if _DECIMAL.fullmatch(text):
        return Fraction(text)
    if match := _QUOTIENT.fullmatch(text):
        top, bottom = (int(match[i] or match[i + 2] or match[i + 4]) for i in (2, 3))
        return Fraction(-top if match[1] == "-" else top, bottom) if bottom else None
    return None


def judge(text: str, answer: Any, form: str = "any") -> tuple[bool, bool]:
    """Whether a completion's answer is the right one, and whether it gives one, in a form of ``given`` or in ``any``:
    the first that there is, a number only where the right answer is one."""
    forms = (form,) if form != "any" else ("tag", "boxed", "number") if _is_number(answer) else ("tag", "boxed")
    found = given(text, forms)
    return found is not None and equal(found, answer), found is not None


def _is_number(answer: Any) -> bool:
    answers = answer if isinstance(answer, list | tuple) else [answer]
    return any(number(normalise(str(one))) is not None for one in answers)
