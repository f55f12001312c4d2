"""How the command line is started from a shell here."""

import os
import shutil
import sys
from pathlib import Path


def program() -> str:
    """``megatron-rl`` where a shell finds this installation by that name, else the path of its script."""
    script = Path(sys.executable).with_name("megatron-rl")
    if not script.is_file():
        return f"{sys.executable} -m megatron_rl.cli"
    found = shutil.which("megatron-rl")
    if found and os.path.samefile(found, script):
        return "megatron-rl"
    return min(str(script), os.path.relpath(script), key=len)
