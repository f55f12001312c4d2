"""``check --numerics``: one batch on this layout's processes and on one, on this machine's CPU, and the comparison."""

import copy
import socket
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from safetensors.torch import load_file

from megatron_rl.actor.config import ActorConfig
from megatron_rl.algorithms.registry import asked_of
from megatron_rl.launch.numerics.compare import Comparison, compare
from megatron_rl.launch.numerics.models import write_models
from megatron_rl.launch.numerics.shape import Shape
from megatron_rl.launch.placement import LOOPBACK, Placement
from megatron_rl.resharding.folders.hf import read_hf_config
from megatron_rl.system import scratch
from megatron_rl.system.channel import LISTENER
from megatron_rl.system.machine import KEPT
from megatron_rl.system.supervision.supervisor import Process, supervise
from megatron_rl.tracking.run_folder import RunFolder

RANK = (sys.executable, "-m", "megatron_rl.launch.numerics.rank")


@dataclass(frozen=True)
class Case:
    """A layout and what it is held against: folders as ``rank`` takes them."""

    shape: Shape
    one: Path
    many: Path


def numerics(shapes: Sequence[Shape], folder: Path, program: Sequence[str] = RANK) -> list[Comparison]:
    """The comparison of each shape's layout with one rank; ``folder`` is empty, and keeps what the processes say.

    Layouts with as many ranks as each other share their processes. ``program`` is that of a rank. Raises RunError where
    a process failed, InputError where one found its input wrong.
    """
    cases = [_prepare(shape, folder / str(number)) for number, shape in enumerate(shapes)]
    for world in sorted({case.shape.sizes.world for case in cases}):
        _run(
            [case.many for case in cases if case.shape.sizes.world == world],
            world,
            folder / "logs" / f"{world}-ranks",
            program,
        )
    _run([case.one for case in cases], 1, folder / "logs" / "one", RANK)
    return [_compared(case) for case in cases]


def _prepare(shape: Shape, folder: Path) -> Case:
    config = write_models(shape, folder)
    alone = copy.deepcopy(config)
    actor = config.actor
    alone.actor = ActorConfig(packing=False, threads=1, optimizer=actor.optimizer, megatron=actor.megatron)
    case = Case(shape, folder / "one", folder / "many")
    for path, made in ((case.one, alone), (case.many, config)):
        path.mkdir()
        RunFolder(path).write_config(made)
    return case


def _run(folders: Sequence[Path], world: int, logs: Path, program: Sequence[str]) -> None:
    with scratch.made() as place, socket.create_server((LOOPBACK, 0)) as listener:
        placement, port = Placement((LOOPBACK,), world, 0), listener.getsockname()[1]
        common = scratch.temporary(place) | scratch.caches(place)
        common |= {name: str(size) for name, size in KEPT.items()}
        common |= {"CUDA_VISIBLE_DEVICES": "", "TORCHDYNAMO_DISABLE": "1", "OMP_NUM_THREADS": "1"}
        first = {LISTENER: str(listener.fileno())}
        outcome = supervise(
            [
                Process(
                    f"rank{rank}",
                    [*program, *map(str, folders)],
                    common | placement.environment(rank, port) | (first if rank == 0 else {}),
                    descriptors=[listener.fileno()] if rank == 0 else [],
                )
                for rank in range(world)
            ],
            logs,
        )
    outcome.require("The comparison was not made.")


def _compared(case: Case) -> Comparison:
    config = RunFolder(case.many).config()
    models, start = {}, {}
    folders = {"policy": Path(config.model.path)}
    if config.run.steps and "value" in asked_of(config.algorithm).needs:
        folders["critic"] = Path(config.critic.path)
    for name, folder in folders.items():
        models[name], start[name] = read_hf_config(folder), load_file(folder / "model.safetensors")
    return compare(case.one, case.many, models, case.shape.sizes, start)
