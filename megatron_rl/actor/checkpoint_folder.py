"""The checkpoints of a run as files: which there are, whether they are whole, what state they hold. Imports no torch.

A checkpoint is written into a hidden folder and renamed when complete, with a list of its files; what a disk or a copy
does to it afterwards shows against that list. Checkpoints without one, of earlier versions, are held against their own
index.
"""

import json
import re
from pathlib import Path
from typing import Any

import xxhash

from megatron_rl.errors import InputError
from megatron_rl.resharding.convert.inspect import contents
from megatron_rl.system.files import flush

STATE = "state.json"
BESIDE = "beside"  # key of the state file: the trained models beside the policy, where there are any
FILES = "files.json"  # name -> [bytes, hash]; the hash of large files, which would have to be read for it, is empty
_HASHED = 1 << 20  # bytes of the largest file that is hashed
_NAME = re.compile(r"step-\d+(-\d+)*")  # not a copy that somebody has made
_ADVICE = "Remove the folder to begin anew, or restore a checkpoint into it."


def all_checkpoints(folder: Path) -> list[Path]:
    """Those of a run's checkpoint folder, oldest first."""
    return sorted((p for p in folder.glob("step-*") if _NAME.fullmatch(p.name)), key=lambda p: p.name)


def latest(folder: Path) -> Path | None:
    """The newest complete checkpoint in a run's checkpoint folder."""
    return max(all_checkpoints(folder), default=None, key=lambda p: p.name)


def read_state(checkpoint: Path) -> dict[str, Any]:
    """What was passed to ``save``: the position of the run. Raises InputError naming a file that is damaged."""
    return _state_file(checkpoint, "state")


def read_sizes(checkpoint: Path) -> dict[str, int]:
    """The parallel sizes it was written at. Raises InputError naming a file that is damaged."""
    return _state_file(checkpoint, "sizes")


def read_beside(checkpoint: Path) -> set[str]:
    """The trained models that it holds beside the policy. Raises InputError naming a file that is damaged."""
    return set(_state_file(checkpoint, BESIDE, {}))


def list_files(checkpoint: Path) -> None:
    """Write the list of a checkpoint's files into it, when all of them are there."""
    found = {path.name: _described(path) for path in sorted(checkpoint.iterdir()) if path.name != FILES}
    (checkpoint / FILES).write_text(json.dumps(found, indent=2), encoding="utf-8")


def damage(checkpoint: Path) -> str | None:
    """What is wrong with a checkpoint's files, in a few words that name the first one; None when it is whole.

    Looks at the sizes of large files alone, so it takes no time to speak of.
    """
    try:
        read_state(checkpoint)
        read_sizes(checkpoint)
        if not (checkpoint / FILES).exists():
            contents(checkpoint)
            return None
        listed = json.loads((checkpoint / FILES).read_text(encoding="utf-8"))
        for name, (size, digest) in listed.items():
            path = checkpoint / name
            if not path.is_file():
                return f"{name} is missing"
            if path.stat().st_size != size:
                return f"{name} has {path.stat().st_size} bytes, and {size} were written"
            if _described(path)[1] != digest:
                return f"{name} does not hold what was written"
    except InputError as error:
        return str(error).replace(f"{checkpoint}/", "").rstrip(".")
    except (ValueError, TypeError, AttributeError):
        return f"{FILES} is not the list of files that was written"
    except OSError as error:
        return f"{error.filename or checkpoint} cannot be read: {error.strerror}"
    return None


def set_damaged_aside(folder: Path) -> list[str]:
    """Rename checkpoints that are damaged and newer than the newest whole one; a sentence or two about each.

    Raises InputError when there are checkpoints and none of them is whole.
    """
    found = []
    checkpoints = all_checkpoints(folder)
    for checkpoint in reversed(checkpoints):
        if (wrong := damage(checkpoint)) is None:
            break
        found.append((checkpoint, wrong))
    if checkpoints and len(found) == len(checkpoints):
        listed = "; ".join(f"{checkpoint.name}: {wrong}" for checkpoint, wrong in found)
        raise InputError(f"No checkpoint in {folder} can be continued from ({listed}). {_ADVICE}")
    said = []
    for checkpoint, wrong in found:
        aside = _free(checkpoint.with_name(f"damaged-{checkpoint.name}"))
        checkpoint.rename(aside)
        said.append(f"The checkpoint {checkpoint} is damaged ({wrong}); it is now {aside.name}, and is not used.")
    if found:
        flush(folder)
    return said


def _free(path: Path) -> Path:
    number, free = 1, path
    while free.exists():
        number += 1
        free = path.with_name(f"{path.name}-{number}")
    return free


def _described(path: Path) -> list[Any]:
    size = path.stat().st_size
    return [size, xxhash.xxh3_64_hexdigest(path.read_bytes()) if size <= _HASHED else ""]


def _state_file(checkpoint: Path, key: str, absent: dict[str, Any] | None = None) -> dict[str, Any]:
    path = checkpoint / STATE
    if not path.is_file():
        raise InputError(f"{path} is missing: the checkpoint is not complete.")
    try:
        content = json.loads(path.read_text(encoding="utf-8")).get(key, absent)
    except (ValueError, TypeError, AttributeError):
        content = None
    if not isinstance(content, dict):
        raise InputError(f"{path} is damaged: it does not say what was written.")
    return content
