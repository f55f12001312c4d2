"""``megatron-rl replay``: repeats one step of RL of a run, and says whether it came out the same."""

import argparse
from pathlib import Path

from megatron_rl.errors import InputError
from megatron_rl.launch.replay import Repeated, replay
from megatron_rl.system.processes import FAILED
from megatron_rl.tracking.run_folder import RunFolder

EPILOG = """\
examples:
  megatron-rl train quickstart run.name=kept run.save_every=10 run.keep=5 tracking.rollouts=1
  megatron-rl replay runs/kept --step 1                   draws the rollouts again, and learns from the saved ones
  megatron-rl replay runs/kept --step 25 --train-only     without engines; learns again from step 21 on
  megatron-rl replay runs/kept --step 31 --rollout-only   compares the rollouts alone

The run must have kept a checkpoint before the step, and the rollouts of every step from there on. What is repeated
lies in RUN/replay/step-NNNNNN: metrics, logs, and the checkpoint after the step.

Exit codes: 0 everything is equal to the last bit, 1 something differs or a process failed, 2 bad input.
"""
_SHOWN = 5  # rollouts that differ


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's options."""
    parser.formatter_class, parser.epilog = argparse.RawDescriptionHelpFormatter, EPILOG
    parser.add_argument("folder", metavar="RUN", help="the run's folder")
    parser.add_argument("--step", type=int, required=True, metavar="K", help="the step of RL, from 1")
    only = parser.add_mutually_exclusive_group()
    only.add_argument("--train-only", action="store_true", help="learn from the saved rollouts; start no engine")
    only.add_argument("--rollout-only", action="store_true", help="draw the rollouts again, and compare them alone")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Repeat, print, and return 0, or 1 where something differs."""
    folder = RunFolder(Path(options.folder))
    if not folder.config_file.exists():
        raise InputError(f"{folder.path} is no run: it has no {folder.config_file.name}.")
    if options.step < 1:
        raise InputError(f"--step {options.step}: steps of RL are counted from 1.")
    print(f"Repeating step {options.step} of RL of {folder.path} …", flush=True)
    found = replay(folder, options.step, draw=not options.train_only, learn=not options.rollout_only)
    print("\n".join(said(found)))
    return 0 if found.alike else FAILED


def said(found: Repeated) -> list[str]:
    """What came of it, in lines."""
    start = found.start.name if found.start else "the run's first weights"
    forward = f", and {found.forward} step{'s' * (found.forward > 1)} from there" if found.forward else ""
    lines = [f"from {start}{forward}; in {found.folder}"]
    if found.rollouts is not None:
        differing = len(found.drawn_otherwise)
        lines.append(f"rollouts: {found.rollouts - differing} of {found.rollouts} are equal to the last bit")
        lines += [f"  {sentence}" for sentence in found.drawn_otherwise[:_SHOWN]]
    if found.equal or found.unequal:
        lines.append(f"metrics: {found.equal} of {found.equal + len(found.unequal)} are equal to the last bit")
        lines += [f"  {name}: {one!r} was recorded, {other!r} now" for name, (one, other) in found.unequal.items()]
    return lines + [f"note: {note}" for note in found.notes]
