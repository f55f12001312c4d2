"""What is wrong with the rows of a file, all of them at once, and what is odd about those that can be used."""

import json
import re
import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from megatron_rl.data.config import DataConfig
from megatron_rl.data.files import Table, is_local, read_table
from megatron_rl.data.prepared import Prepared, prepare
from megatron_rl.data.rows.kinds import Kind
from megatron_rl.errors import InputError

SHOWN = 10  # bad rows that are named
HUGE = 32_768  # characters of a prompt, about 8,000 tokens
NAMES = ("id", "uid", "index", "question_id", "episode_id")  # columns that should tell rows apart


def prepare_all(table: Table, kind: Kind, config: DataConfig, tokenizer: Any) -> Prepared:
    """As ``prepare``, but the InputError names up to ``SHOWN`` bad rows of a local file, and says how many there are.

    Rows are looked at together, as a run does it: each bad one is taken away, and what is left is read again.
    """
    try:
        return prepare(table, kind, config, tokenizer)
    except InputError as error:
        if not is_local(config.path) or _row(str(error), table.name) is None:
            raise
        first = error
    bad: list[tuple[int, str]] = []
    kept = list(range(table.length))
    problem: InputError | None = first
    with tempfile.TemporaryDirectory() as folder:
        name = table.name
        while problem is not None and kept and len(bad) < SHOWN:
            number = _row(str(problem), name)
            if number is None:  # of the whole file: of no row more than of another
                bad.append((table.length, str(problem).replace(name, table.name)))
                break
            row = kept.pop(number - 1) + 1
            bad.append((row, _told(str(problem), name, row)))
            problem = None
            if kept:
                name = str(_write(table, kept, Path(folder)))
                try:
                    prepare(read_table(name, ""), kind, replace(config, path=name, limit=0), tokenizer)
                except InputError as error:
                    problem = error
    more = problem is not None and len(bad) == SHOWN
    if len(bad) == 1:
        raise first
    count = f"{SHOWN} rows or more" if more else f"{len(bad)} rows"
    raise InputError(
        f"{table.name}: {count} of {table.length:,} cannot be used.\n" + "\n".join(said for _, said in sorted(bad))
    )


def warnings(table: Table, prompts: Sequence[str]) -> list[str]:
    """What a run takes, but nobody may have meant: ids and prompts that come twice, prompts of a huge length."""
    found = []
    for name in NAMES:
        if column := table.find(name, {}):
            ids = Counter(json.dumps(cell, default=str) for cell in table.column(column) if cell is not None)
            if twice := [one for one, count in ids.items() if count > 1]:
                rows = sum(ids[one] for one in twice)
                found.append(f"{rows:,} rows share their {column!r} with others, such as {twice[0]}")
    times = Counter(prompts)
    if again := sum(count - 1 for count in times.values()):
        found.append(f"{again:,} of {len(prompts):,} prompts are there before")
    if huge := [number for number, prompt in enumerate(prompts, start=1) if len(prompt) > HUGE]:
        longest = max(map(len, prompts))
        found.append(
            f"{len(huge):,} of {len(prompts):,} prompts have more than {HUGE:,} characters, "
            f"the longest {longest:,} (of usable row {huge[0]:,})"
        )
    return found


def _row(said: str, name: str) -> int | None:
    """The row that a message is about: all such messages begin with the file's name and ``, row N``."""
    found = re.match(rf"{re.escape(name)}, row (\d+)\b", said)
    return int(found[1]) if found else None


def _told(said: str, name: str, row: int) -> str:
    """A message without the file's name, about the row's own number; how many are like it was of the rows left."""
    return re.sub(r" \d+ of \d+ rows [^.]*\.", "", re.sub(rf"^{re.escape(name)}, row \d+", f"row {row}", said))


def _write(table: Table, kept: Sequence[int], folder: Path) -> Path:
    """Some rows as a file: parquet where they come of one, for the types of its cells."""
    if all(hasattr(cells, "take") for cells in table.cells.values()):
        import pyarrow
        import pyarrow.parquet

        path = folder / "rows.parquet"
        pyarrow.parquet.write_table(pyarrow.table(dict(table.cells)).take(list(kept)), path)
        return path
    path = folder / "rows.jsonl"
    columns = {name: table.column(name) for name in table.columns}
    lines = (json.dumps({name: cells[row] for name, cells in columns.items()}) for row in kept)
    path.write_text("\n".join(lines), encoding="utf-8")
    return path
