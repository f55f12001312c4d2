"""``megatron-rl analyze``: what a run's completions and numbers say, in tables, and as JSON."""

import argparse
import json
from pathlib import Path

from megatron_rl.analysis.answers import Measure, analyse, tables
from megatron_rl.analysis.recorded import read_run
from megatron_rl.system.files import require_place, write_text

EPILOG = """\
examples:
  megatron-rl analyze runs/quickstart
  megatron-rl analyze runs/quickstart --json analysis.json
  megatron-rl analyze runs/quickstart --tokenizer runs/quickstart/hf     reasoning measured in tokens
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's options."""
    parser.formatter_class, parser.epilog = argparse.RawDescriptionHelpFormatter, EPILOG
    parser.add_argument("folder", metavar="RUN", help="the folder of a run, which may still go on")
    parser.add_argument("--json", metavar="FILE", help="also write everything, the courses over the steps too, as JSON")
    parser.add_argument(
        "--tokenizer", metavar="FOLDER", help="a model's folder: measure reasoning in its tokens, not in characters"
    )
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Print the tables; returns 0. Raises InputError for what is no run, or no tokenizer."""
    if options.json:
        require_place(Path(options.json), f"--json {options.json}")
    recorded = read_run(options.folder)
    found = analyse(recorded, *_measure(options.tokenizer))
    print(tables(found))
    if options.json:
        write_text(Path(options.json), json.dumps(found, ensure_ascii=False, indent=1) + "\n")
        print(f"\nAll of it: {options.json}")
    return 0


def _measure(folder: str | None) -> tuple[Measure, str]:
    if not folder:
        return len, "characters"
    from megatron_rl.data.tokenizer import load_tokenizer

    tokenizer = load_tokenizer(Path(folder))
    return lambda text: len(tokenizer.encode(text, add_special_tokens=False)), f"tokens of {folder}"
