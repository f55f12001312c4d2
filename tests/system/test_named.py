"""Names of ours and of users' modules, and what goes wrong in those."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from megatron_rl.errors import InputError
from megatron_rl.system.named import call, find, told

KNOWN = {"join": "os.path.join", "pool.dumps": "json.dumps"}


def named(name: str):
    return find(name, KNOWN, f"a.name={name!r}", "a dotted path")


@pytest.fixture
def modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Modules of the current folder, which is not on Python's path."""
    package = tmp_path / "named_package"
    package.mkdir()
    (package / "__init__.py").write_text("def inner():\n    pass\n")
    (package / "inner.py").write_text("def deep():\n    return 3\n")
    (package / "needs.py").write_text("import numpy\n\nimport named_package.absent\n")
    (package / "syntax.py").write_text("x = 1\ndef f(:\n")
    (package / "leaves.py").write_text("raise SystemExit('bye')\n")
    (package / "library.py").write_text("import json\n\nVALUE = json.loads('{')\n")
    (package / "quiet.py").write_text("raise RuntimeError\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path])
    for name in [name for name in sys.modules if name.startswith("named_package")]:
        monkeypatch.delitem(sys.modules, name)
    return package


def test_short_names_and_paths() -> None:
    assert named("join") is os.path.join
    assert named("os.path.split") is os.path.split
    assert named("pathlib.Path.cwd")() == Path.cwd()
    assert named("collections.abc.Mapping.get")  # a module below a module, a class in it, a method in that
    assert named("pool.dumps")(1) == "1"


def test_the_last_name_may_be_a_function_where_a_module_has_it_too(modules: Path) -> None:
    assert named("named_package.inner.deep")() == 3
    assert str(modules.parent) in sys.path


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("jion", "a.name='jion' is unknown; did you mean join? It can be join, pool.dumps or a dotted path."),
        ("", "a.name='' is unknown. It can be join, pool.dumps or a dotted path."),
        ("../x.py", "a.name='../x.py' is unknown. It can be"),
        ("a..b", "a.name='a..b' is unknown. It can be"),
        ("pol.dumps", "is unknown; did you mean pool.dumps? It can be join, pool.dumps or a dotted path. There is no"),
        (
            "named_package.inner.dep",
            "a.name='named_package.inner.dep': named_package.inner has no dep; did you mean deep?",
        ),
        ("named_package.iner.deep", "named_package has no iner; did you mean inner?"),
        ("named_package.zzzz.deep", "a.name='named_package.zzzz.deep': named_package has no zzzz."),
        ("os.path.sep", "a.name='os.path.sep' is a str, not a function."),
        (
            "named_package.needs.f",
            "a.name='named_package.needs.f': importing named_package.needs fails with ModuleNotFoundError: No module "
            "named 'named_package.absent' ({}/needs.py, line 3).",
        ),
        (
            "named_package.syntax.f",
            "importing named_package.syntax fails with SyntaxError: invalid syntax ({}/syntax.py, ",
        ),
        ("named_package.leaves.f", "importing named_package.leaves fails with SystemExit: bye ({}/leaves.py, line 1)."),
        ("named_package.library.f", "JSONDecodeError: Expecting property name"),
        ("named_package.library.f", "({}/library.py, line 3)."),
        ("named_package.quiet.f", "importing named_package.quiet fails with RuntimeError ({}/quiet.py, line 1)."),
    ],
)
def test_what_goes_wrong_is_one_sentence(modules: Path, name: str, said: str) -> None:
    with pytest.raises(InputError) as error:
        named(name)
    assert said.format(modules) in str(error.value) and "\n" not in str(error.value)


def test_a_call_of_a_users_function() -> None:
    def own(value: int) -> float:
        if value == 2:
            raise InputError("as it is")
        return 1 / value

    assert call("own", own, 2 * 2) == 0.25
    with pytest.raises(
        InputError, match=r"^own fails with ZeroDivisionError: division by zero \(.*test_named.py, line"
    ):
        call("own", own, 0)
    with pytest.raises(InputError, match=r"^as it is$"):
        call("own", own, 2)


def test_told_without_a_place() -> None:
    assert told(ValueError("two\nlines.")) == "ValueError: two lines"


def test_other_processes_find_modules_of_the_folder_too(modules: Path) -> None:
    """Those are started as ``python -P -m``, with this process's path."""
    code = "from megatron_rl.system.named import find; print(find('named_package.inner.deep', {}, 'x', 'y')())"
    for flags in ([], ["-P"]):
        found = subprocess.run(
            [sys.executable, *flags, "-c", code],
            env=os.environ | {"PYTHONPATH": os.pathsep.join([*sys.path, *([str(modules.parent)] if flags else [])])},
            capture_output=True,
            text=True,
        )
        assert (found.stdout, found.stderr) == ("3\n", "")
