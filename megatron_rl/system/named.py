"""Things that a user names: one of ours by its short name, or any importable thing by its dotted path.

What goes wrong in a user's module becomes one sentence with the error's own text and its place.
"""

import os
import sys
import sysconfig
import traceback
from collections.abc import Callable, Mapping
from contextlib import suppress
from difflib import get_close_matches
from importlib import import_module
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

from megatron_rl.errors import InputError

_P = ParamSpec("_P")
_T = TypeVar("_T")


def find(name: str, known: Mapping[str, str], said: str, otherwise: str, listed: str = "") -> Callable[..., Any]:
    """The function that ``known`` (short name -> dotted path), or else Python, has under a name.

    ``said`` is how the message names it (``data.task='x'``), ``otherwise`` what else could be written (``the dotted
    path of a function () -> Config``). Modules of the current folder are found. Raises InputError when there is no
    such function, with the nearest name, and when its module fails.

    ``listed``, such as "`megatron-rl recipes` lists them", stands for names too many to be told; the nearest alone is.
    """
    path = known.get(name, name)
    near = _near(name, list(known))
    choices = f"{listed}; it can also be {otherwise}" if listed else f"It can be {', '.join(known)} or {otherwise}"
    alone = bool(listed and near)
    unknown = f"{said} is unknown{near or '.'}{'' if alone else f' {choices}.'}"
    if not all(part.isidentifier() for part in path.split(".")) or "." not in path:
        raise InputError(unknown)
    _look_here()
    try:
        thing = _thing(path)
    except _MissingError as missing:
        if not missing.owner:  # perhaps no path was meant
            module = "" if alone else f" There is no module {missing.name} to import from here."
            raise InputError(f"{unknown}{module}") from None
        near = _near(missing.name, missing.others)
        raise InputError(f"{said}: {missing.owner} has no {missing.name}{near or '.'}") from None
    except (Exception, SystemExit) as error:  # a user's module can raise anything
        raise InputError(f"{said}: importing {path.rpartition('.')[0]} fails with {told(error)}.") from error
    if not callable(thing):
        raise InputError(f"{said} is a {type(thing).__name__}, not a function.")
    return thing


def call(said: str, function: Callable[_P, _T], *args: _P.args, **kwargs: _P.kwargs) -> _T:
    """A user's function's result. What it raises becomes an InputError that begins with ``said``, InputErrors aside."""
    try:
        return function(*args, **kwargs)
    except InputError:
        raise
    except (Exception, SystemExit) as error:
        raise InputError(f"{said} fails with {told(error)}.") from error


def told(error: BaseException) -> str:
    """An exception as ``ValueError: its text (file.py, line 3)``, on one line: the place in the user's own code."""
    text = " ".join(str(error).split()).rstrip(".")
    if isinstance(error, SyntaxError) and error.filename:
        text, place = error.msg, (error.filename, error.lineno)
    else:
        frames = [(frame.filename, frame.lineno) for frame in traceback.extract_tb(error.__traceback__)]
        own = [frame for frame in frames if not _is_ours(frame[0])]
        place = next((frame for frame in reversed(own) if not _is_library(frame[0])), own[-1] if own else ("", None))
    where = f" ({place[0]}, line {place[1]})" if place[0] else ""
    return f"{type(error).__name__}{f': {text}' if text else ''}{where}"


class _MissingError(Exception):
    """``owner`` has no ``name`` but ``others``; an empty owner: there is no such top-level module."""

    def __init__(self, owner: str, name: str, others: list[str]) -> None:
        self.owner, self.name, self.others = owner, name, others


def _thing(path: str) -> Any:
    """A module, or what a module or a thing in it has under its last name."""
    owner, _, name = path.rpartition(".")
    if not owner:
        return _module(path)
    try:
        thing = _module(owner)
    except _MissingError as missing:
        if not missing.owner:
            raise
        thing = _thing(owner)  # a class, say
    if hasattr(thing, name):
        return getattr(thing, name)
    if hasattr(thing, "__path__"):
        return _module(path)
    raise _MissingError(owner, name, [key for key in dir(thing) if not key.startswith("_")])


def _module(path: str) -> Any:
    try:
        return import_module(path)
    except ModuleNotFoundError as error:
        if error.name is not None and f"{path}.".startswith(f"{error.name}."):
            owner, _, name = error.name.rpartition(".")
            raise _MissingError(owner, name, _inside(owner)) from None
        raise


def _inside(owner: str) -> list[str]:
    return [key for key in dir(sys.modules.get(owner)) if not key.startswith("_")] if owner else []


def _near(name: str, names: list[str]) -> str:
    near = get_close_matches(name, names, n=1)
    return f"; did you mean {near[0]}?" if near else ""


def _look_here() -> None:
    """Let modules of the current folder be imported, as ``python -m`` does, of which our other processes are."""
    with suppress(OSError):  # the folder may be gone
        here = os.getcwd()
        if not sys.flags.safe_path and not {"", here} & set(sys.path):
            sys.path.insert(0, here)


def _is_ours(file: str) -> bool:
    return file.startswith(("<frozen", str(Path(__file__)))) or "/importlib/" in file


def _is_library(file: str) -> bool:
    return any(file.startswith(sysconfig.get_path(name)) for name in ("stdlib", "purelib", "platlib"))
