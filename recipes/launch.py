"""Recipes through NeMo-Run: the commands of slurm/*.sbatch, as tasks of one of its experiments.

    python -m recipes.launch RECIPE --executor local|slurm [--nodes N] [--seeds 0:3] [--dry-run] [key=value …]

Needs ``pip install -c constraints-nemo.txt 'megatron-rl[nemo]'``. Ends with 0 when every task has ended well, with 1
when one has not, and with 2 for bad input, before anything is submitted.
"""

import argparse
import copy
import os
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron_rl.errors import InputError
from megatron_rl.settings.load import load
from megatron_rl.system.processes import BAD_INPUT, ERROR_PREFIX, FAILED

SITE = "slurm/site.sh"
# As train.sbatch does: a job that was asked to stop, or lost a node, is requeued, unless it is cancelled.
REQUEUE = (
    "trap 'code=$?; again=75\\|138\\|143; [[ $SLURM_JOB_NUM_NODES -eq 1 ]] || again+=\\|137; "
    "if [[ $code =~ ^($again)$ && $(squeue -h -j $SLURM_JOB_ID -o %T) == RUNNING ]]; "
    "then scontrol requeue $SLURM_JOB_ID && sleep 60; fi' EXIT"
)


@dataclass(frozen=True)
class Task:
    """One command of an experiment."""

    name: str
    command: str  # as a shell reads it
    nodes: int = 1
    after: tuple[str, ...] = ()  # names of tasks that must have ended well


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""
    options = _parser().parse_intermixed_args(arguments)
    try:
        todo = tasks(options)
        if options.executor == "slurm" and not options.account:
            raise InputError("Slurm jobs of NeMo-Run need an account: give --account, or export SBATCH_ACCOUNT.")
        return submit(todo, options)
    except InputError as error:
        print(f"{ERROR_PREFIX}{error}", file=sys.stderr)
        return BAD_INPUT


def tasks(options: argparse.Namespace) -> list[Task]:
    """Training, once for every seed, with what depends on it. Raises InputError for options that the recipe lacks."""
    config, problems = load(options.recipe, options.overrides)
    if problems:
        raise InputError(f"{options.recipe}: " + " ".join(problems))
    seeds = options.seeds or [config.run.seed]
    found: list[Task] = []
    for seed in seeds:
        name = f"{config.run.name}-{seed}" if options.seeds else config.run.name
        run = Path(config.run.folder) / name
        own = [f"run.name={name}", f"run.seed={seed}", "run.resume=auto"]
        if any(override.startswith("run.resume=") for override in options.overrides):
            own.pop()
        train = f"train-{name}"
        command = shlex.join(["megatron-rl", "train", options.recipe, *options.overrides, *own])
        before = (found[-1].name,) if found and options.executor == "local" else ()  # one after the other
        found.append(Task(train, command, options.nodes, before))
        if options.evaluate:
            command = shlex.join(["megatron-rl", "evaluate", str(run), *shlex.split(options.evaluate)])
            found.append(Task(f"evaluate-{name}", command, after=(train,)))
        if options.export:
            newest = f'"$(ls -d {shlex.quote(str(run))}/checkpoints/step-* | tail -n 1)"'
            to = shlex.quote(str(Path(options.export) / name))
            found.append(Task(f"export-{name}", f"megatron-rl convert megatron-to-hf {newest} {to}", after=(train,)))
    return found


def submit(todo: Sequence[Task], options: argparse.Namespace) -> int:
    """Run the tasks as an experiment, or show what would be run; returns the exit code."""
    try:
        import nemo_run
    except ImportError as error:
        raise InputError(
            f"NeMo-Run cannot be imported ({error}): pip install -c constraints-nemo.txt 'megatron-rl[nemo]', in an "
            "environment of its own."
        ) from None
    names: dict[str, str] = {}  # NeMo-Run's, by ours
    with nemo_run.Experiment(options.recipe.replace("/", "_")) as experiment:
        for task in todo:
            names[task.name] = experiment.add(
                nemo_run.Script(inline=script(task)),
                executor=executor(nemo_run, task, options),
                name=task.name,
                dependencies=[names[other] for other in task.after],
            )
        if options.dry_run:
            experiment.dryrun()
            return 0
        experiment.run(detach=options.detach, tail_logs=options.executor == "local")
    if options.detach:
        return 0
    # NeMo-Run itself ends with 0 whatever became of the tasks
    ended = {name: str(found["status"]) for name, found in experiment.status(return_dict=True).items()}
    for name, state in ended.items():
        print(f"{name}: {state}")
    return 0 if set(ended.values()) == {"SUCCEEDED"} else FAILED


def script(task: Task) -> str:
    """A task in the folder that we are in and the environment of slurm/site.sh, as its process's own program."""
    folder = shlex.quote(os.getcwd())
    return f"cd {folder} || exit 2\nif [[ -f {SITE} ]]; then source {SITE}; fi\nexec {task.command}\n"


def executor(nemo_run: Any, task: Task, options: argparse.Namespace) -> Any:
    """Where a task runs. NeMo-Run's own folders are in $NEMORUN_HOME; none of our files are copied."""
    if options.executor == "local":
        return nemo_run.LocalExecutor(packager=nemo_run.Packager())
    more = {"requeue": True, "exclusive": True, "mem": "0"} | dict(options.sbatch)
    if options.constraint:
        more["constraint"] = options.constraint
    from nemo_run.config import get_nemorun_home

    return nemo_run.SlurmExecutor(
        account=options.account,
        partition=options.partition,
        time=options.time,
        nodes=task.nodes,
        ntasks_per_node=1,
        gpus_per_node=options.gpus_per_node,
        signal="USR1@300",  # to the processes of the step, which then save
        setup_lines=REQUEUE,
        srun_args=["--kill-on-bad-exit=0", "--cpu-bind=none"],  # NeMo-Run's --wait=60 stays
        additional_parameters=copy.deepcopy(more),
        packager=nemo_run.Packager(),
        tunnel=nemo_run.LocalTunnel(job_dir=os.path.join(get_nemorun_home(), "experiments")),
        poll_estimated_start_time=False,
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m recipes.launch", description="Launch a recipe with NeMo-Run.")
    parser.add_argument("recipe", metavar="RECIPE", help="as `megatron-rl train` takes it")
    parser.add_argument("overrides", metavar="key=value", nargs="*", help="options to change")
    parser.add_argument("--executor", choices=("local", "slurm"), required=True)
    parser.add_argument("--nodes", type=int, default=1, metavar="N", help="of each training (default 1)")
    parser.add_argument("--seeds", type=seeds, metavar="A:B", help="train once for each seed from A up to but not B")
    parser.add_argument("--evaluate", metavar="'SUITE …'", help="then evaluate each run: arguments of evaluate")
    parser.add_argument("--export", metavar="FOLDER", help="then write each newest checkpoint to FOLDER/NAME")
    parser.add_argument("--dry-run", action="store_true", help="show what would be submitted")
    parser.add_argument("--detach", action="store_true", help="do not wait for the jobs (Slurm)")
    slurm = parser.add_argument_group("Slurm; the defaults are those of sbatch, SBATCH_ACCOUNT and the like")
    slurm.add_argument("--account", default=os.environ.get("SBATCH_ACCOUNT"))
    slurm.add_argument("--partition", default=os.environ.get("SBATCH_PARTITION"))
    slurm.add_argument("--constraint", default=os.environ.get("SBATCH_CONSTRAINT"))
    slurm.add_argument("--time", default=os.environ.get("SBATCH_TIMELIMIT", "24:00:00"), help="(default 24:00:00)")
    gpus = os.environ.get("SBATCH_GPUS_PER_NODE")
    slurm.add_argument("--gpus-per-node", type=int, default=int(gpus) if gpus and gpus.isdecimal() else None)
    slurm.add_argument(
        "--sbatch", type=_setting, action="append", default=[], metavar="OPTION=VALUE", help="any other of sbatch's"
    )
    return parser


def seeds(text: str) -> list[int]:
    """0:3 -> 0, 1, 2, as Python counts; a number alone is one seed."""
    first, colon, last = text.partition(":")
    found = list(range(int(first), int(last))) if colon else [int(first)]
    if not found:
        raise ValueError(text)
    return found


def _setting(text: str) -> tuple[str, str]:
    name, equals, value = text.lstrip("-").partition("=")
    if not equals:
        raise ValueError(text)
    return name.replace("-", "_"), value


if __name__ == "__main__":
    sys.exit(main())
