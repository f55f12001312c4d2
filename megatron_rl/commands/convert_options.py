"""The options of megatron-rl convert. Imports nothing heavy: every use of the command line passes here."""

import argparse
import gc
import os
import re
import time
from pathlib import Path

from megatron_rl.errors import InputError, named

_PREFIXES = "kMGT"  # of sizes

EPILOG = """\
examples:
  megatron-rl convert hf-to-megatron models/Qwen3-4B checkpoints/qwen3-4b --tensor-parallel 2
  megatron-rl convert megatron-to-hf runs/r1/checkpoints/step-1-000100 exported
  megatron-rl convert megatron-to-hf checkpoints/qwen3-4b exported --fp8
  megatron-rl convert verify models/Qwen3-4B checkpoints/qwen3-4b
  megatron-rl convert inspect checkpoints/qwen3-4b

A killed conversion goes on where it was when the same command is given again. Exit codes: 0 done, 1 verify found a
difference, 2 bad input.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The four commands and their options."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = EPILOG
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    to_megatron = commands.add_parser("hf-to-megatron", help="a Hugging Face folder as a torch_dist checkpoint")
    to_megatron.add_argument("source", type=Path, metavar="MODEL", help="Hugging Face folder")
    to_megatron.add_argument("target", type=Path, metavar="TARGET", help="folder to write; must not exist")
    for name, text in (
        ("tensor", "ranks that share every weight"),
        ("pipeline", "ranks that share the layers"),
        ("expert", "ranks that share the experts"),
        ("expert-tensor", "ranks that share one expert's weights"),
    ):
        to_megatron.add_argument(
            f"--{name}-parallel", type=int, default=1, metavar="N", help=f"chunks and files are cut for N {text}"
        )
    for name in ("first", "last"):
        to_megatron.add_argument(
            f"--{name}-stage",
            type=int,
            default=0,
            metavar="N",
            help=f"layers of the {name} pipeline stage, if not as others",
        )
    to_megatron.set_defaults(run=_run, convert="to_megatron")
    to_hf = commands.add_parser("megatron-to-hf", help="a torch_dist checkpoint as a Hugging Face folder")
    to_hf.add_argument("source", type=Path, metavar="CHECKPOINT", help="folder with .metadata and .distcp files")
    to_hf.add_argument("target", type=Path, metavar="TARGET", help="folder to write; must not exist")
    to_hf.add_argument("--fp8", action="store_true", help="quantise the linear weights in blocks of 128 x 128, e4m3")
    to_hf.add_argument(
        "--max-shard-size", type=_size, metavar="SIZE", help="bytes per file (one per thread, at most 5GB)"
    )
    to_hf.set_defaults(run=_run, convert="to_hf")
    verify = commands.add_parser("verify", help="compare every tensor of two checkpoints of either kind")
    verify.add_argument("first", type=Path, help="the original")
    verify.add_argument("second", type=Path, help="compared with the first, converted to the second's dtypes")
    verify.set_defaults(run=_run, convert="verify")
    inspect = commands.add_parser("inspect", help="list the tensors of a checkpoint of either kind")
    inspect.add_argument("folder", type=Path)
    inspect.set_defaults(run=_run, convert="inspect")
    for command in (to_hf, verify):
        command.add_argument(
            "--model",
            type=Path,
            metavar="MODEL",
            help="Hugging Face folder of the model, where neither the checkpoint nor its run has one",
        )
    for command in (to_megatron, to_hf):
        command.add_argument("--dtype", choices=["bfloat16", "float16", "float32"], help="default: as is")
    for command in (to_megatron, to_hf, verify):
        command.add_argument(
            "--buffer-size", type=_size, default=256 << 20, metavar="SIZE", help="memory to use at most (256MiB)"
        )
        command.add_argument("--threads", type=int, default=_threads(), metavar="N", help="files written at a time")
    for command in (to_megatron, to_hf):
        command.add_argument(
            "--no-sync", action="store_true", help="do not wait for the disk: a power cut may take what seemed complete"
        )


def _threads() -> int:
    return max(min(len(os.sched_getaffinity(0)), 16), 2)


def _size(text: str) -> int:
    found = re.fullmatch(rf"(\d+)\s*(?:([{_PREFIXES}])(i?))?B?", text.replace("K", "k"), re.ASCII)
    if not found:
        raise argparse.ArgumentTypeError(f"{text!r} is no size; write 256MiB, 5GB or a number of bytes")
    power = _PREFIXES.index(found[2]) + 1 if found[2] else 0
    return int(found[1]) * (1024 if found[3] else 1000) ** power


def _run(options: argparse.Namespace) -> int:
    options.started = time.perf_counter()
    from megatron_rl.commands import convert

    gc.disable()  # a plan is many small objects without cycles: looking for them takes most of the planning
    try:
        result: int = getattr(convert, options.convert)(options)
    except BrokenPipeError:
        raise
    except OSError as error:
        raise InputError(f"{named(error)} Put that right, and give the same command again.") from error
    finally:
        gc.enable()
    return result
