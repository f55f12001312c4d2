"""What the README and docs/ name exists. The commands that they show are run in tests/runs."""

import re
from pathlib import Path

from megatron_rl.settings.recipes import all_recipes
from tests.conftest import ROOT

TARGETS = re.compile(r"^([a-z][\w-]*):", re.MULTILINE)
WIDEST = 125  # characters of a line
CARD = ("command", "commit", "versions", "hardware", "expected", "date")


def documents() -> list[Path]:
    return [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def pages() -> list[Path]:
    """Of the recipes; the tests of a recipe run what its page shows."""
    return sorted((ROOT / "docs" / "recipes").glob("*.md"))


def blocks(text: str) -> list[str]:
    """What stands between fences that name no language."""
    found: list[str] = []
    language: str | None = None  # of the block that the line is in
    for line in text.splitlines():
        if line.startswith("```"):
            language = line[3:] if language is None else None
            found += [""] if language == "" else []
        elif language == "":
            found[-1] += f"{line}\n"
    return found


def commands() -> list[str]:
    """Lines of code blocks, and code within lines, that begin as commands do; without what is said beside them."""
    found: list[str] = []
    for path in documents():
        text = path.read_text(encoding="utf-8")
        lines = [line for block in blocks(text) for line in re.sub(r"\\\n\s*", "", block).splitlines()]
        lines += re.findall(r"`((?:megatron-rl [a-z]+|python tools/) ?[^`]+)`", text)
        for line in lines:
            line = re.split(r"\s{2,}|\s+#", line.strip())[0]
            if line.startswith(("megatron-rl ", "python tools/", "make ")) and not re.search(r"[A-Z]{4,}|…", line):
                found.append(line)
    return list(dict.fromkeys(found))


def test_prose_is_not_wide() -> None:
    """But for tables and blocks of code."""
    wide = [
        f"{path.name}: {line}"
        for path in (*documents(), *pages())
        for line in re.sub(r"^```.*?^```", "", path.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE).split(
            "\n"
        )
        if len(line) > WIDEST and not line.lstrip().startswith("|")
    ]
    assert not wide, wide


def test_targets_of_make_exist() -> None:
    targets = TARGETS.findall((ROOT / "Makefile").read_text())
    named = [command.split()[1] for command in commands() if command.startswith("make ")]
    assert named and set(named) <= set(targets)


def test_links_lead_somewhere() -> None:
    broken = [
        f"{path.name}: {link}"
        for path in (*documents(), *pages())
        for link in re.findall(r"\]\(([^)#]+)\)", path.read_text(encoding="utf-8"))
        if not link.startswith("http") and not (path.parent / link).exists()
    ]
    assert not broken


def test_modules_named_in_the_documentation_exist() -> None:
    """`data/task.py` and the like: folders of the package, of the repository, or of a run."""
    missing = []
    for path in (*documents(), *pages()):
        for name in re.findall(r"`([\w/]+\.py)`", path.read_text(encoding="utf-8")):
            places = [ROOT / name, ROOT / "megatron_rl" / name, ROOT / "megatron_rl" / "resharding" / name]
            if "NAME" not in name and not any(place.exists() for place in places):
                missing.append(f"{path.name}: {name}")
    assert not missing


def test_every_recipe_has_a_page_with_a_verification_card() -> None:
    modules = {name.partition(".")[0] for name in all_recipes()}
    assert modules == {path.stem for path in pages()} - {"README"}
    index = (ROOT / "docs" / "recipes" / "README.md").read_text(encoding="utf-8")
    for name in modules:
        assert f"[{name}]({name}.md)" in index
        _, heading, card = (
            (ROOT / "docs" / "recipes" / f"{name}.md").read_text(encoding="utf-8").partition("\n## Verification card\n")
        )
        assert heading, name
        assert [row for row in CARD if f"\n| {row} |" not in card] == [], name
