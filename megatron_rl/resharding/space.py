"""Room on a file system, asked for before anything is written."""

import shutil
from pathlib import Path

from megatron_rl.errors import InputError


def require_space(folder: str | Path, needed: int, what: str, advice: str) -> None:
    """Raises InputError when the file system of ``folder`` has less than ``needed`` bytes free for ``what``."""
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise InputError(f"{folder} has {free / 1e6:.0f} MB free; {what} needs {needed / 1e6:.0f} MB. {advice}")
