"""Files that somebody else wrote: their content, or in one sentence what is wrong with them."""

import json
from pathlib import Path
from typing import Any

from megatron_rl.errors import InputError, named

_POINTER = b"version https://git-lfs.github.com/spec/"  # how a file begins in whose place Git LFS left a pointer


def not_content(path: Path) -> str:
    """Why an existing file is not the one that its name promises, empty or a Git LFS pointer; "" when it is neither."""
    with path.open("rb") as file:
        begin = file.read(len(_POINTER))
    if not begin:
        return f"{path} is empty (0 bytes). Fetch it again."
    if begin == _POINTER:
        return (
            f"{path} is a Git LFS pointer, not the file itself: run `git lfs pull` in its folder, or fetch the model "
            f"with `hf download`."
        )
    return ""


def read_json(path: Path, needed: str = "") -> dict[str, Any]:
    """A JSON object from a file.

    Raises InputError when the file is missing (``needed`` says for what), cannot be read, or holds anything else.
    """
    try:
        if not path.is_file():
            raise InputError(f"{path} does not exist{f': {needed}' if needed else ''}.")
        if wrong := not_content(path):
            raise InputError(wrong)
        content = json.loads(path.read_bytes().decode("utf-8"))
    except InputError:
        raise
    except OSError as error:
        raise InputError(named(error)) from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is not valid JSON ({error}). It may be cut short: fetch it again.") from error
    if not isinstance(content, dict):
        raise InputError(f"{path} holds a {type(content).__name__}; a JSON object is needed.")
    return content
