"""Options that say what they may be, and configurations that keep to it."""

from dataclasses import dataclass, field, fields
from math import inf, nan
from typing import Any

import pytest

from megatron_rl.config import Config
from megatron_rl.option import allowed, choice, number
from megatron_rl.settings.rules import violations


@dataclass
class Inner:
    """A group."""

    kind: str = choice("a", "b", "c", default="b")
    only: str = choice("one")
    share: float = number(0.5, above=0, most=1)
    ratio: float = number(1.0, least=0, most=2)
    free: float = 1.0


@dataclass
class Outer:
    """All of them."""

    count: int = number(1, least=1)
    any: int = 0
    flag: bool = True
    text: str = ""
    names: dict[str, float] = field(default_factory=dict)
    inner: Inner = field(default_factory=Inner)


def test_the_defaults_hold() -> None:
    assert Inner().kind == "b" and Inner().only == "one"
    assert violations(Outer()) == {}
    assert violations(Config()) == {}


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("count", 0, "count is 0; it must be 1 or more."),
        ("count", 2**63, "count is 9223372036854775808; it must be a whole number below 2^63, 1 or more."),
        ("any", -(2**63), "any is -9223372036854775808; it must be a whole number below 2^63."),
        ("inner.kind", "d", "inner.kind is 'd'; it must be a, b or c."),
        ("inner.kind", "", "inner.kind is ''; it must be a, b or c."),
        ("inner.only", "two", "inner.only is 'two'; it must be one."),
        ("inner.share", 0.0, "inner.share is 0.0; it must be above 0 and at most 1."),
        ("inner.share", 1.1, "inner.share is 1.1; it must be above 0 and at most 1."),
        ("inner.ratio", -0.1, "inner.ratio is -0.1; it must be between 0 and 2."),
        ("inner.ratio", nan, "inner.ratio is nan; it must be a finite number, between 0 and 2."),
        ("inner.free", inf, "inner.free is inf; it must be a finite number."),
        ("inner.free", -inf, "inner.free is -inf; it must be a finite number."),
        ("inner.share", 1.0, ""),
        ("inner.ratio", 0.0, ""),
        ("inner.ratio", 2.0, ""),
        ("any", 2**63 - 1, ""),
    ],
)
def test_one_violation(key: str, value: Any, said: str) -> None:
    tree = Outer()
    setattr(tree.inner if key.startswith("inner.") else tree, key.removeprefix("inner."), value)
    assert violations(tree) == ({key: said} if said else {})
    assert violations(tree, "x.") == ({f"x.{key}": f"x.{said}"} if said else {})


def test_every_default_of_a_choice_is_one_of_its_names() -> None:
    def check(tree: Any) -> int:
        count = 0
        for each in fields(tree):
            value = getattr(tree, each.name)
            if hasattr(value, "__dataclass_fields__"):
                count += check(value)
            elif allowed(each).choices:
                assert value in allowed(each).choices
                count += 1
        return count

    assert check(Config()) >= 15
