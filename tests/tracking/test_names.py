"""What the numbers of a run are called, and the page about them."""

import pytest

from megatron_rl.tracking import names
from tests.conftest import ROOT


def test_the_page_is_made_of_the_table() -> None:
    page = (ROOT / "docs/metrics.md").read_text(encoding="utf-8")
    assert page == f"{names.page()}\n", "python -m megatron_rl.tracking.names > docs/metrics.md"
    assert all(f"| `{name}` |" in page for name in names.NAMES)


def test_no_name_is_in_two_groups() -> None:
    assert len(names.NAMES) == sum(map(len, names.GROUPS.values()))


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("reward", "reward"),
        ("reward/my.module.term/score", "reward/{term}/{component}"),
        ("time/swap", "time/swap"),
        ("time/swap_paused", "time/swap_{phase}"),
        ("greedy/length", "greedy/length"),
        ("greedy/correct/socialiqa", "greedy/{measure}"),
        ("reward_something", None),
        ("eval/reward", None),
    ],
)
def test_a_number_is_found_by_its_name_or_pattern(name: str, meant: str | None) -> None:
    assert names.find(name) == (names.NAMES[meant] if meant else None)
