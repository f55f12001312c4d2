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
_OWN = ("megatron_rl", "tests", "benchmarks", "tools", "recipes")


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


@functools.cache
def named(module: str) -> frozenset[str]:
    """What a module of this repository defines or imports, and the modules in a folder."""
    place = ROOT.joinpath(*module.split("."))
    inside = {path.stem if path.is_file() else path.name for path in place.glob("*")}
    path = place / "__init__.py" if place.is_dir() else place.with_suffix(".py")
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if path.exists() else ():
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            found.add(node.name)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            found |= {name.asname or name.name for name in node.names}
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            found.add(node.id)
    return frozenset(found | inside)


def test_what_tests_and_benchmarks_import_is_there() -> None:
    """Suites that this one does not run would find out late."""
    for folder in ("tests", "benchmarks", "tools", "recipes"):
        for path in (ROOT / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in _OWN:
                    missing = {name.name for name in node.names} - named(node.module or "")
                    assert not missing, f"{path}: {node.module} has no {', '.join(sorted(missing))}"
