"""``megatron-rl report``: one page about one run or several, in a file that opens in any browser, without a network."""

import argparse
import time
from pathlib import Path

from megatron_rl.analysis.report.page import make_page, read_runs
from megatron_rl.errors import InputError
from megatron_rl.system.files import require_place, write_text

EPILOG = """\
examples:
  megatron-rl report runs/quickstart                             writes runs/quickstart/report.html
  megatron-rl report runs/quickstart runs/seed1 --out both.html  seeds of one experiment as a mean and a band

A run that is still going can be reported, as often as you like.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's options."""
    parser.formatter_class, parser.epilog = argparse.RawDescriptionHelpFormatter, EPILOG
    parser.add_argument("folders", metavar="RUN", nargs="+", help="the folder of a run")
    parser.add_argument("--out", metavar="FILE", help="the page to write, .html; report.html in the first run's folder")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Write the page and say where it is; returns 0."""
    out = Path(options.out or Path(options.folders[0]) / "report.html")
    if out.suffix != ".html":
        raise InputError(f"--out {out}: the name must end in .html.")
    if options.out:
        require_place(out, f"--out {out}")
    started = time.monotonic()
    runs = read_runs(options.folders)
    page = make_page(runs)
    write_text(out, page)
    size = len(page.encode()) / 1e6
    print(f"{out} ({size:.1f} MB, {time.monotonic() - started:.1f} s): open it in a browser; it needs no network.")
    for run in runs:
        for note in run.notes:
            print(f"note: {f'{run.name}: ' if len(runs) > 1 else ''}{note}")
    return 0
