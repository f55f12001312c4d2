"""Which code runs. Imports no torch."""

import functools
import shutil
import subprocess
from pathlib import Path
from typing import Any


@functools.cache
def commit() -> dict[str, Any] | None:
    """The commit of this code and whether files differ from it; None outside a git checkout."""
    root = Path(__file__).parents[2]

    def git(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = ["git", "-C", str(root), *arguments]
        return subprocess.run(command, capture_output=True, encoding="utf-8", errors="replace")

    if not shutil.which("git") or git("ls-files", "--error-unmatch", __file__).returncode != 0:
        return None
    changed = git("status", "--porcelain", "--untracked-files=no").stdout.strip()
    return {"commit": git("rev-parse", "HEAD").stdout.strip(), "modified": bool(changed)}
