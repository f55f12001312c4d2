"""``megatron-rl data overlap TRAIN SUITE``: how many questions of a suite stand in data that are trained on."""

import argparse
import json
from pathlib import Path
from typing import Any

from megatron_rl.data.files import read_table
from megatron_rl.data.prepared import AnyText
from megatron_rl.errors import InputError, refuse
from megatron_rl.evaluation.estimates.contamination import LEAST, N, overlaps, too_short
from megatron_rl.evaluation.estimates.trained_on import HALF, row_texts
from megatron_rl.evaluation.registry import make_suite, suite_config
from megatron_rl.settings.written import read_value
from megatron_rl.system.files import require_new, write_text

EPILOG = """\
examples:
  megatron-rl data overlap train.jsonl gsm8k --data test.jsonl
  megatron-rl data overlap train.parquet tombench --data ToMBench/data --out report.json
"""
SHOWN = 5  # questions with the largest shares


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's options."""
    parser.formatter_class, parser.epilog = argparse.RawDescriptionHelpFormatter, EPILOG
    parser.add_argument("source", metavar="TRAIN", help="a .parquet, .jsonl, .json or .csv file, or a hub id")
    parser.add_argument("suite", metavar="SUITE", help="of `megatron-rl evaluate --list`")
    parser.add_argument("names", metavar="SUITE.key=value", nargs="*", default=[], help="options of the suite")
    parser.add_argument("--data", metavar="PATH", help="the suite's data")
    parser.add_argument("--split", default="train", help="of a hub data set that is trained on (default train)")
    parser.add_argument("--n", type=int, default=N, help=f"words of an n-gram (default {N})")
    parser.add_argument("--out", metavar="FILE", help="a JSON report: every question with its share, and where")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Look, print, write; returns 0."""
    if options.n < 1:
        raise InputError(f"--n {options.n} must be 1 or more.")
    if options.out:
        require_new(Path(options.out), f"--out {options.out}", "reports")
    given: dict[str, Any] = {"path": options.data} if options.data else {}
    for text in options.names:
        key, equals, value = text.partition("=")
        if not equals or not key.startswith(f"{options.suite}."):
            raise InputError(f"{text}: write {options.suite}.key=value, such as {options.suite}.language=zh.")
        given[key.partition(".")[2]] = read_value(value).value(Any)
    config, problems = suite_config(options.suite, given)
    refuse(problems)
    suite = make_suite(options.suite, config, AnyText())
    table = read_table(options.source, options.split, 0)
    asked = [item.forms[0].prompt for item in suite.items]
    found = overlaps(asked, row_texts(table), options.n)
    some, half, whole = (sum(o.share >= least for o in found) for least in (1e-9, HALF, 1))
    print(f"{suite.name}: {len(found):,} questions; {table.name}: {table.length:,} rows; {options.n}-grams")
    for count, what in (
        (some, "share an n-gram"),
        (half, "share half of theirs or more"),
        (whole, "stand there whole"),
    ):
        print(f"  {count:6,} ({100 * count / len(found):5.1f} %) {what}")
    if unseen := sum(too_short(question, options.n) for question in asked):
        share, least = 100 * unseen / len(found), min(LEAST, options.n)
        print(f"  {unseen:6,} ({share:5.1f} %) have fewer than {least} words and were not looked for")
    worst = sorted(range(len(found)), key=lambda i: -found[i].share)[:SHOWN]
    for index in (i for i in worst if found[i].share):
        print(f"  question {suite.items[index].id}: {100 * found[index].share:.0f} %, row {found[index].row + 1}")
    if options.out:
        rows = [
            {"item": item.id, "share": o.share, "row": o.row + 1 if o.share else None}
            for item, o in zip(suite.items, found, strict=True)
        ]
        report = {"suite": suite.name, "train": table.name, "n": options.n, "questions": len(found)}
        report |= {"share_any": some, "share_half": half, "share_all": whole, "too_short": unseen}
        write_text(Path(options.out), json.dumps(report | {"items": rows}, indent=2, ensure_ascii=False) + "\n")
    return 0
