"""What a conversion has finished, on the disk, so that a killed one goes on where it was.

A finished part is in the kernel's memory and survives the death of the process, though not of the machine; a
finished file has been flushed and survives both. So after a reboot only the parts of finished files count.
"""

import fcntl
import json
import os
from collections.abc import Mapping
from pathlib import Path

from megatron_rl.errors import InputError

NAME = "conversion.journal"


def _boot() -> str:
    path = Path("/proc/sys/kernel/random/boot_id")
    return path.read_text(encoding="utf-8").strip() if path.exists() else ""


class Journal:
    """The journal of a work folder, which is made where there is none, held by one process at a time.

    ``identity`` says what is converted into what: a journal of another conversion is not ``resumed``.
    Raises InputError when another process holds it.
    """

    def __init__(self, folder: Path, identity: str) -> None:
        self.path = folder / NAME
        self._handle = _hold(self.path)
        self.parts: set[int] = set()
        self.files: set[str] = set()
        content = self.path.read_bytes().decode(errors="replace")
        lines = content.splitlines()
        head = {"identity": identity, "boot": _boot()}
        old = _json(lines[0]) if lines else {}
        self.resumed = old.get("identity") == identity
        if self.resumed:
            for kind, _, rest in (line.partition(" ") for line in lines[1:] if line.endswith(".")):
                if kind == "part" and rest[:-1].isdecimal():
                    self.parts.add(int(rest[:-1]))
                elif kind == "file":
                    self.files.add(rest[:-1])
        self.rebooted = self.resumed and old.get("boot") != head["boot"]
        if old != head or not content.endswith("\n"):  # a line that a full disk cut off would swallow the next
            os.ftruncate(self._handle, 0)
            self._write(json.dumps(head))
            for file in self.files:
                self.file(file)
            for part in sorted(self.parts) if not self.rebooted else ():
                self.part(part)

    def keep(self, part_files: Mapping[int, set[str]]) -> None:
        """After a reboot: forget the parts that are not wholly in flushed files."""
        if self.rebooted:
            self.parts = {part for part in self.parts if part_files[part] <= self.files}

    def part(self, number: int) -> None:
        """Note that a part is written."""
        self.parts.add(number)
        self._write(f"part {number}.")

    def file(self, name: str) -> None:
        """Note that a file is complete and flushed."""
        self._write(f"file {name}.")

    def _write(self, line: str) -> None:
        left = f"{line}\n".encode()
        while left:  # a full disk takes a part of it, and refuses the rest
            left = left[os.write(self._handle, left) :]

    def close(self) -> None:
        os.close(self._handle)


def _hold(path: Path) -> int:
    """Open and lock a file. Who held it before may have moved or removed it meanwhile: then there is a new one."""
    while True:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        except FileNotFoundError:
            continue
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _is(path, handle):
                return handle
        except BlockingIOError:
            os.close(handle)
            raise InputError(f"Another process is converting into {path.parent}. Wait for it, or end it.") from None
        os.close(handle)


def _is(path: Path, handle: int) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(handle))
    except FileNotFoundError:
        return False


def _json(text: str) -> dict[str, str]:
    try:
        content = json.loads(text)
    except ValueError:
        return {}
    return content if isinstance(content, dict) else {}
