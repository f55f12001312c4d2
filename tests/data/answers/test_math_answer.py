"""Mathematical answers, and what hostile completions do to them."""

import builtins
import signal
import threading

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_rl.data.answers import math_answer
from megatron_rl.data.answers.math_answer import judge, judge_number, missing, same
from megatron_rl.errors import InputError

ALIKE = [
    ("1/2", "0.5"),
    (r"\frac{1}{2}", "0.5"),
    (r"\frac12", "1/2"),
    (r"\dfrac{1}{2}", r"\frac{1}{2}"),
    (r"\sqrt{8}", r"2\sqrt{2}"),
    (r"\frac{\sqrt{2}}{2}", r"\frac{1}{\sqrt{2}}"),
    ("(1,2)", "(1, 2)"),
    (r"(3, \frac{\pi}{2})", r"\left( 3, \frac{\pi}{2} \right)"),
    (r"(-\infty,2)", "x<2"),
    ("10 cm", "10"),
    (r"10\text{ cm}", "10"),
    (r"90^\circ", "90"),
    (r"\$5", "5"),
    ("1,000", "1000"),
    ("27", 27.0),
    ("x=5", "5"),
    ("2x+1", "1+2x"),
    (r"\{1,2\}", r"\{2,1\}"),
    (r"\text{Evelyn}", "Evelyn"),
    (r"\begin{pmatrix}1\\2\end{pmatrix}", r"\begin{pmatrix} 1 \\ 2 \end{pmatrix}"),
    ("7", ["6", "7"]),
]
UNLIKE = [
    ("3", "4"),
    ("5", "-5"),
    ("(1,2)", "[1,2]"),
    (r"\pi", "3.14159"),
    ("0.333", r"\frac{1}{3}"),
    ("", "3"),
    ("{{{", "3"),
    ("x", "y"),
    ("A", "B"),
    (r"\frac{1}{0}", "3"),
]


@pytest.mark.parametrize(("found", "right"), ALIKE)
def test_the_same(found: str, right: object) -> None:
    assert same(found, right)


@pytest.mark.parametrize(("found", "right"), UNLIKE)
def test_not_the_same(found: str, right: object) -> None:
    assert not same(found, right)


def test_the_last_box_counts_with_its_braces() -> None:
    assert judge(r"\boxed{1}, no: \boxed{\frac{1}{2}}.", "0.5") == (True, True)
    assert judge(r"<think>so \boxed{2}", "2") == (True, True)  # wherever it stands
    assert judge(r"\boxed{2} \boxed{3", "2") == (False, False)
    assert judge("it is 2", "2") == (False, False) and judge_number("it is 1/2", "0.5")
    assert not judge_number("none", "2")


def test_no_alarm_is_set_and_threads_may_ask() -> None:
    before, found = signal.getsignal(signal.SIGALRM), []
    asker = threading.Thread(target=lambda: found.append(same(r"\sqrt{12}", r"2\sqrt{3}")))
    asker.start()
    asker.join()
    assert found == [True] and signal.getsignal(signal.SIGALRM) == before


@pytest.mark.parametrize(
    "text",
    [
        "\\boxed{" * 140_000,
        "\\boxed{" + "{" * 1_000_000,
        "\\boxed{" + "9^" * 500_000 + "}",
        "{" * 500_000 + "}" * 500_000,
        "\\boxed{" + "\\frac{1}{" * 400 + "}" * 400 + "}",
        "\\boxed{" + "(" * 300 + ")" * 300 + "}",
        "\x00\\boxed{\ud800}",
    ],
    ids=range(7),
)
def test_hostile_text_is_wrong(text: str) -> None:
    assert judge(text, "3")[0] is False


@settings(max_examples=300, deadline=None)
@given(st.text(alphabet=r"\{}[]()<>^_/+-=.,|$%0129xfrac ", max_size=40))
def test_anything_may_stand_in_a_box(text: str) -> None:
    assert judge(f"\\boxed{{{text}}}", "no such answer")[0] is False


def test_without_the_extra_it_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    imported = builtins.__import__

    def lacking(name: str, *args: object, **more: object) -> object:
        if name == "math_verify":
            raise ImportError(name)
        return imported(name, *args, **more)

    monkeypatch.setattr(builtins, "__import__", lacking)
    math_answer._math_verify.cache_clear()
    with pytest.raises(InputError, match=r"pip install 'megatron-rl\[math\]'"):
        same("1", "2")
    assert "megatron-rl[math]" in missing()
    monkeypatch.undo()
    assert missing() == ""
