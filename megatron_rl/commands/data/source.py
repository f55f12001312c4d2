"""``megatron-rl data SOURCE``: what a data file or a data set of the hub holds, whether it can be used, and as what."""

import argparse
import io
import json
import shlex
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

from megatron_rl.data.config import DataConfig
from megatron_rl.data.files import Table, read_table
from megatron_rl.data.inspection import prepare_all, warnings
from megatron_rl.data.prepared import ENDLESS, Characters, Prepared
from megatron_rl.data.registry import TASKS, file_columns
from megatron_rl.data.rows.fill import template_problems
from megatron_rl.data.rows.kinds import Kind, nearest, recognise
from megatron_rl.data.rows.messages import short
from megatron_rl.data.rows.parts import benchmark
from megatron_rl.data.tokenizer import load_tokenizer
from megatron_rl.errors import InputError
from megatron_rl.settings.load import load
from megatron_rl.system.files import require_new, write_bytes, write_text

EPILOG = """\
examples:
  megatron-rl data train.jsonl                              what it holds, and whether every row can be used
  megatron-rl data train.jsonl --model models/tiny          prompts and lengths as that model has them
  megatron-rl data openai/gsm8k data.subset=main            a data set of the hub
  megatron-rl data train.csv data.columns.answer=label      with other names of columns
  megatron-rl data train.jsonl --out prepared.parquet       written again in the columns that are read first

`megatron-rl data select RUN` makes rows of what a run has drawn.
"""


FIRST = 4000  # characters of the first prompt that are shown


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's options."""
    parser.formatter_class, parser.epilog = argparse.RawDescriptionHelpFormatter, EPILOG
    parser.add_argument("source", metavar="SOURCE", help="a .parquet, .jsonl, .json or .csv file, or a hub id")
    parser.add_argument(
        "overrides", metavar="data.key=value", nargs="*", default=[], help="options of data, as in a run"
    )
    parser.add_argument("--model", metavar="FOLDER", help="a model's folder: its chat template and its tokens")
    parser.add_argument("--out", metavar="FILE", help="a new file, .jsonl or .parquet, for the rows that can be used")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Show the source, check every row, write them where asked for; returns 0. Raises InputError as ``check`` would."""
    out = _place(options.out) if options.out else None
    config, given = _config(options)
    tokenizer = load_tokenizer(options.model) if options.model else Characters()
    table = read_table(config.path, config.split, config.limit, config.subset)
    print(f"{table.name}: {table.length:,} rows")
    for name in table.columns:
        print(f"  column     {' '.join(name.split())}: {_kinds(table, name)}")
    kind = _kind(table, config, given)
    print(f"  known as   {kind.name}: {_use(kind)}{f' ({kind.note})' if kind.note else ''}")
    if not kind.use:
        if out is not None:
            raise InputError(f"{table.name} cannot be prepared: {kind.note}.")
        return 0
    config.task = kind.use if kind.use in TASKS else config.task
    if not options.model and "prompt" not in given:
        config.prompt = "plain" if kind.use == "multiple_choice" else "raw"
    prepared = prepare_all(table, kind, config, tokenizer)
    _show(table, prepared, tokenizer, "tokens" if options.model else "characters")
    if kind.use in TASKS and not benchmark(table):
        task = [] if kind.use == "prompt_answer" else [f"data.task={kind.use}"]
        warm = ["sft.steps=100"] if table.find("target", config.columns) else []  # a random model starts with them
        words = [f"model.path={options.model or 'FOLDER'}", f"data.path={options.source}", *task, *warm]
        words += options.overrides
        print(f"  to train   megatron-rl train grpo.tiny {shlex.join(words)}")
    if out is not None:
        if name := benchmark(table):
            raise InputError(
                f"{table.name} is {name}, which is for evaluation only, and rows of {out} would no longer be known as "
                "it. Give the file itself as data.eval_path."
            )
        _write(out, prepared.rows)
        print(f"  written    {len(prepared.rows):,} rows to {out}{_how(kind)}")
    return 0


def _place(name: str) -> Path:
    out = Path(name)
    if out.suffix not in (".jsonl", ".parquet"):
        raise InputError(f"--out {out}: the name must end in .jsonl or .parquet.")
    require_new(out, f"--out {out}", "rows")
    return out


def _config(options: argparse.Namespace) -> tuple[DataConfig, set[str]]:
    """The options of data, and the names of those that were given."""
    config, problems = load("megatron_rl.config.Config", options.overrides)
    others = [override for override in options.overrides if not override.startswith("data.")]
    problems += [f"{other}: only options of data are of use here." for other in others]
    if problems:
        raise InputError(" ".join(problems))
    data = config.data
    task = data.task.partition(":")[0]
    if "data.path" in {override.partition("=")[0] for override in options.overrides}:
        raise InputError(f"data.path={data.path}: the file is named by the command, {options.source}; leave it out.")
    if task in TASKS and not file_columns(data):
        raise InputError(f"data.task={data.task} makes its own questions and reads no file: name one of files.")
    if data.template and (problems := template_problems(data.template)):
        raise InputError(" ".join(problems))
    data.path = options.source
    given = {override.partition("=")[0].split(".")[1] for override in options.overrides}
    if "max_prompt_tokens" not in given and not options.model:
        data.max_prompt_tokens = ENDLESS
    return data, given


def _kind(table: Table, config: DataConfig, given: set[str]) -> Kind:
    """What the rows are: as the user says, or as their columns tell."""
    found = recognise(_renamed(table, config))
    if "task" in given and (found is None or found.use != config.task):
        return Kind("named by data.task", config.task)
    if found is None and config.template:
        return Kind("rows for data.template", "prompt_answer")
    if found is None:
        hint = f"{said} " if (said := nearest(_renamed(table, config))) else ""
        raise InputError(
            f"{table.name}: its columns, {', '.join(map(repr, table.columns))}, are of no form that is known "
            f"(docs/data.md). {hint}Say which is which with data.columns.OURS=THEIRS, or name the task with data.task."
        )
    return found


def _renamed(table: Table, config: DataConfig) -> Table:
    """The table with our names for the columns that data.columns renames."""
    cells = dict(table.cells)
    for ours, theirs in config.columns.items():
        cells[ours] = table.column(table.require(theirs, {}, f" (data.columns.{ours})"))
    return Table(table.name, cells, table.length, table.key)


def _kinds(table: Table, name: str) -> str:
    """The types of a column's cells, and the first that is not empty."""
    cells = table.column(name)
    names = {str: "text", int: "number", float: "number", bool: "yes or no", list: "list", dict: "object"}
    there = [cell for cell in cells if cell is not None and cell == cell and cell != ""]
    kinds = ", ".join(dict.fromkeys(names.get(type(cell), type(cell).__name__) for cell in there)) or "empty"
    missing = f", {len(cells) - len(there):,} empty" if there and len(there) < len(cells) else ""
    example = f", such as {short(there[0])[:80]}" if there else ""
    return f"{kinds}{missing}{example}"


def _use(kind: Kind) -> str:
    if kind.use in TASKS or "." in kind.use:
        return f"data.task={kind.use}"
    return f"{kind.use}.data.path" if kind.use else "of no use as they are"


def _how(kind: Kind) -> str:
    raw = kind.use in ("prompt_answer", "math_problems")
    return f", for {_use(kind)}{' data.prompt=raw' if raw else ''}"


def _show(table: Table, prepared: Prepared, tokenizer: Any, unit: str) -> None:
    print("  first prompt")
    first = prepared.prompts[0]
    cut = f"{first[:FIRST]}… ({len(first):,} characters in all)" if len(first) > FIRST else first
    print("\n".join(f"  | {line}" for line in cut.split("\n")))
    print(f"  answer     {prepared.answers[0]!r}")
    lengths = sorted(map(len, tokenizer(prepared.prompts, add_special_tokens=False).input_ids))
    print(f"  prompts    {lengths[0]:,} to {lengths[-1]:,} {unit}, median {median(lengths):,.0f}")
    for what, count in prepared.notes.items():
        print(f"  note       {what}: {count:,}")
    for warning in warnings(table, prepared.prompts):
        print(f"  warning    {warning}")
    print(f"  usable     {len(prepared.prompts):,} rows")


def _write(out: Path, rows: Sequence[dict[str, Any]]) -> None:
    if out.suffix == ".jsonl":
        write_text(out, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
        return
    import pyarrow
    import pyarrow.parquet

    try:
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(list(rows)), memory := io.BytesIO())
    except (pyarrow.ArrowInvalid, pyarrow.ArrowTypeError) as error:
        raise InputError(f"--out {out}: parquet takes one type a column ({error}); write .jsonl.") from error
    write_bytes(out, memory.getbuffer())
