"""A conversion: planned, proved, carried out by threads in a hidden folder that is renamed when it is whole."""

import json
import os
import shutil
import threading
from collections import defaultdict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, as_completed
from functools import cached_property
from itertools import groupby
from pathlib import Path
from typing import Protocol

import xxhash

from megatron_rl import __version__
from megatron_rl.errors import InputError, named
from megatron_rl.resharding.convert.journal import NAME, Journal
from megatron_rl.resharding.convert.kernel import WAYS, Files, copy_run
from megatron_rl.resharding.convert.parts import Band, Part, Queue, make_parts, rules, threads_within
from megatron_rl.resharding.folders.contents import carried
from megatron_rl.resharding.folders.stored import NewFile, Stored
from megatron_rl.resharding.layouts.fp8 import BLOCK
from megatron_rl.resharding.plan import Plan, make_plan
from megatron_rl.system.files import flush, require_space

Progress = Callable[[int], None]  # told how many bytes more are written


class Target(Protocol):
    """A folder laid out before it is written."""

    stored: Stored

    @property
    def files(self) -> list[NewFile]:
        """Every file of weights."""

    @property
    def origin(self) -> Path | None:
        """The folder whose tokenizer and the like are carried along."""

    def small_files(self) -> dict[str, bytes]:
        """What makes the folder a checkpoint, by path, in the order in which it is to be written."""


class Conversion:
    """From ``source`` to ``target``, in at most ``buffer`` bytes of memory above what Python and torch need.

    Planned here; nothing is written before ``run``.
    """

    def __init__(self, source: Stored, target: Target, *, buffer: int, threads: int) -> None:
        self.source, self.target = source, target
        self.plan: Plan = make_plan(source.layout, target.stored.layout)
        self.parts = make_parts(self.plan, source, target.stored)
        self.threads = min(threads_within(buffer, threads, source, target.stored), max(len(self.parts), 1))

    @property
    def file_bytes(self) -> int:
        """Size of the files of weights."""
        return sum(file.size for file in self.target.files)

    @property
    def weight_bytes(self) -> int:
        """Bytes that the parts write."""
        return sum(part.size for part in self.parts)

    @cached_property
    def identity(self) -> str:
        """Changes with every file of the source, every byte of the layout and whatever makes the parts others."""
        state = xxhash.xxh3_128()
        for path in sorted(self.source.files()):
            stat = path.stat()
            state.update(json.dumps([str(path.resolve()), stat.st_size, stat.st_mtime_ns]).encode())
        for file in self.target.files:
            state.update(json.dumps([file.path, file.size]).encode())
            for at, content in file.frames:
                state.update(at.to_bytes(8, "little") + content)
        sizes = [part.size for part in self.parts]
        state.update(json.dumps([__version__, *rules(), self.plan.hash, sizes]).encode())
        return state.hexdigest()

    def prove(self) -> None:
        """Raises ProofError unless the plan writes every byte of the target once, from the right one of the source."""
        from megatron_rl.resharding.proof import prove  # numpy, which takes as long to import as some models to copy

        prove(self.plan, self.source.layout, self.target.stored.layout)

    def run(self, folder: Path, progress: Progress = lambda size: None, *, sync: bool = True) -> bool:
        """Write ``folder``, which must not exist; it appears complete or not at all. True: a killed run was continued.

        Work is done in a hidden folder beside it, which a kill leaves behind and the same conversion takes up again.
        The proof runs beside the first copies, so it costs no time; without it the folder never appears. ``sync``
        False does not wait for the disk: then a power cut may take what seemed complete.
        Raises InputError when the target exists or cannot be written, another process writes it, or there is too little
        space; KeyboardInterrupt, saying what stays, on Ctrl-C.
        """
        partial = self._work_folder(folder)
        journal = Journal(partial, self.identity)
        try:
            _require_absent(folder)  # who held the journal before may have finished
            self._clear(partial, journal)
            resumed = bool(journal.parts)
            self._prepare(partial)
            small = self._carry_out(partial, journal, progress, sync)
            self._finish(partial, folder, small, sync)
        except (InputError, RuntimeError):
            shutil.rmtree(partial)
            raise
        except (OSError, KeyboardInterrupt) as error:
            if not journal.parts:
                shutil.rmtree(partial, ignore_errors=True)
            goes_on = f"the same command goes on with what is in {partial}" if journal.parts else "nothing was written"
            if isinstance(error, OSError):
                raise InputError(f"{named(error)} Put that right; {goes_on}.") from error
            raise KeyboardInterrupt(f"{goes_on[0].upper()}{goes_on[1:]}.") from None
        finally:
            journal.close()
        return resumed

    def _work_folder(self, folder: Path) -> Path:
        """Where the folder is made. Raises InputError when it cannot be, or there is too little space."""
        _require_absent(folder)
        if folder.name in ("", ".."):
            raise InputError(f"{folder} does not name a folder that can be made: end it with the new folder's name.")
        partial = folder.with_name(f".{folder.name}.partial")
        existing = next(p for p in folder.absolute().parents if os.path.lexists(p))
        if not existing.is_dir():
            raise InputError(f"{folder} cannot be made: {existing} is no folder. Name another target.")
        if not os.access(existing, os.W_OK | os.X_OK):
            raise InputError(f"{folder} cannot be made: there is no permission to write in {existing}.")
        if len(os.fsencode(partial.name)) > os.pathconf(existing, "PC_NAME_MAX"):
            raise InputError(f"The name {folder.name} is too long for the work folder {partial.name}: shorten it.")
        if os.path.lexists(partial) and not partial.is_dir():
            raise InputError(f"{partial}, where the work is done, is no folder: remove it, or name another target.")
        present = sum(p.stat().st_blocks * 512 for p in partial.iterdir()) if partial.is_dir() else 0
        small = sum(file.stat().st_size for file in carried(self.target.origin).values())
        require_space(existing, self.file_bytes + small - present, "the checkpoint", "Free some, or write elsewhere.")
        return partial

    def _clear(self, partial: Path, journal: Journal) -> None:
        """Remove what another conversion left, and forget what a reboot may have lost."""
        if not journal.resumed:
            for stale in partial.iterdir():
                if stale.is_dir():
                    shutil.rmtree(stale)
                elif stale.name != NAME:
                    stale.unlink()
        journal.keep({number: part.files for number, part in enumerate(self.parts)})

    def _prepare(self, partial: Path) -> None:
        """Create the files with all but the weights in them; vocabulary padding is what stays empty."""
        for file in self.target.files:
            handle = os.open(partial / file.path, os.O_WRONLY | os.O_CREAT, 0o644)
            os.ftruncate(handle, file.size)
            for at, content in file.frames:
                os.pwrite(handle, content, at)
            os.close(handle)

    def _carry_out(self, partial: Path, journal: Journal, progress: Progress, sync: bool) -> dict[str, bytes]:
        """Do every part that the journal lacks; returns the small files, made meanwhile."""
        todo = [(number, part) for number, part in enumerate(self.parts) if number not in journal.parts]
        progress(self.weight_bytes - sum(part.size for _, part in todo))
        left: dict[str, int] = defaultdict(int)
        for _, part in todo:
            for file in part.files:
                left[file] += 1
        lock, busy = threading.Lock(), {file.path: threading.Lock() for file in self.target.files}
        ways, queue = list(WAYS), Queue(todo)

        def work() -> None:
            with queue:
                while taken := queue.take():
                    carry_out(*taken)
                    queue.done(taken[1])

        def carry_out(number: int, part: Part) -> None:
            with Files(partial, busy) as files:
                for file, runs in groupby(part.runs, key=lambda run: run.destination):
                    with files.turn(file):
                        for run in runs:
                            copy_run(files, run, ways)
                for band in part.bands:
                    self._move(files, band)
            journal.part(number)
            with lock:
                for file in part.files:
                    left[file] -= 1
                complete = [file for file in part.files if not left[file]]
            for file in complete if sync else ():
                flush(partial / file)
                journal.file(file)
            progress(part.size)

        with ThreadPoolExecutor(self.threads) as pool, queue:
            futures = [pool.submit(work) for _ in range(self.threads)]
            self.prove()
            small = self.target.small_files()
            for future in as_completed(futures):
                future.result()
        for new in self.target.files if sync else ():
            if new.path not in left and new.path not in journal.files:
                flush(partial / new.path)
        return small

    def _move(self, files: Files, band: Band) -> None:
        """Take rows through memory, in another dtype if need be."""
        from megatron_rl.resharding.convert.rows import rows_as, write_rows, write_scales

        name, first, last = band
        target = self.target.stored
        rows, scales = rows_as(files, self.source, name, first, last, target.dtypes[name])
        if scales is not None:
            write_scales(files, target, name, first // BLOCK, scales)
        write_rows(files, target, name, first, rows)

    def _finish(self, partial: Path, folder: Path, small: dict[str, bytes], sync: bool) -> None:
        """Make the work folder, whose weights are on the disk already, the checkpoint."""
        for name, content in small.items():
            (partial / name).parent.mkdir(parents=True, exist_ok=True)
            (partial / name).write_bytes(content)
        weights = {new.path for new in self.target.files}
        if sync:
            for path in (*sorted(partial.rglob("*"), reverse=True), partial):  # a folder's files before the folder
                if path.name not in weights:
                    flush(path)
        _require_absent(folder)
        partial.rename(folder)
        (folder / NAME).unlink()  # not before: it is the lock that keeps others out of the work folder
        if sync:
            flush(folder)
            flush(folder.absolute().parent)


def _require_absent(folder: Path) -> None:
    if os.path.lexists(folder):
        raise InputError(f"{folder} exists already; a checkpoint is written to a new folder only. Name another.")
