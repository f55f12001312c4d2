"""The rooms and the arrows between them, as docs/architecture.md draws them."""

import ast
import functools
from pathlib import Path

from tests.conftest import ROOT

PACKAGE = ROOT / "megatron_rl"
# A room imports those before it, and itself.
ORDER = (
    *(
        "errors",
        "option",
        "system",
        "resharding",
        "data",
        "rollout",
        "rewards",
        "algorithms",
        "actor",
        "swap",
        "evaluation",
    ),
    *("config", "settings", "tracking", "analysis", "training", "train", "launch", "commands", "cli"),
)
ROOT_MODULES = 8
FOLDER_MODULES = 12


@functools.cache
def modules() -> dict[str, Path]:
    return {
        ".".join(("megatron_rl", *path.relative_to(PACKAGE).with_suffix("").parts)).removesuffix(".__init__"): path
        for path in sorted(PACKAGE.rglob("*.py"))
        if "standins" not in path.parts
    }


@functools.cache
def imports(path: Path) -> frozenset[str]:
    """The modules of this package that a file names in an import, wherever it does."""
    known, found = modules(), set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("megatron_rl"):
            for name in node.names:
                whole = f"{node.module}.{name.name}"
                found.add(whole if whole in known else node.module)
        elif isinstance(node, ast.Import):
            found |= {name.name for name in node.names if name.name.startswith("megatron_rl")}
    return frozenset(found & known.keys())


def room(module: str) -> str:
    return module.split(".")[1] if "." in module else "errors"  # the package itself has a version only


def of_the_tree(name: str, other: str) -> bool:
    """The tree of options is made of the rooms' configs, and what is wrong with it is said by their checks."""
    return (name == "megatron_rl.config" and other.endswith(".config")) or (
        room(name) == "settings" and other.endswith(".check")
    )


def test_every_room_has_its_place() -> None:
    assert {room(name) for name in modules()} == set(ORDER)


def test_no_arrow_points_against_the_direction() -> None:
    against = [
        f"{name} -> {other}"
        for name, path in modules().items()
        for other in imports(path)
        if ORDER.index(room(other)) > ORDER.index(room(name)) and not of_the_tree(name, other)
    ]
    assert not against


def test_there_is_no_circle() -> None:
    arrows = {name: imports(path) - {name} for name, path in modules().items()}
    done: set[str] = set()
    while ready := {name for name, others in arrows.items() if name not in done and others <= done}:
        done |= ready
    assert not set(arrows) - done


def test_folders_can_be_taken_in_at_a_glance() -> None:
    folders = {path.parent for path in modules().values()}
    sizes = {folder: len([p for p in folder.glob("*.py") if p.name != "__init__.py"]) for folder in folders}
    assert sizes.pop(PACKAGE) <= ROOT_MODULES
    assert {str(folder.relative_to(ROOT)): n for folder, n in sizes.items() if n > FOLDER_MODULES} == {}
    assert {name: n for name, path in modules().items() if (n := len(path.read_text().splitlines())) > 400} == {}
