"""Where a run stands: its stage and step, restored from the newest checkpoint or begun anew."""

import shutil
from dataclasses import asdict, dataclass, field

import torch.distributed as dist

from megatron_rl.actor import checkpoint
from megatron_rl.actor.trainer import Actor
from megatron_rl.config import Config
from megatron_rl.swap.trainer import Swap
from megatron_rl.tracking.run_folder import RunFolder
from megatron_rl.training.driver import Driver


@dataclass
class Position:
    """``step`` counts the completed steps of ``stage`` ("sft", then "rl")."""

    stage: str
    step: int = 0
    version: int = 0  # weight versions swapped so far
    seconds: float = 0.0  # spent so far, all attempts together
    evaluations: dict[str, dict[str, float]] = field(default_factory=dict)  # held-out metrics by label
    records: dict[str, int] = field(default_factory=dict)  # how far the metrics files reach


def restore(run: RunFolder, config: Config, actor: Actor) -> Position:
    """Enter the stage the run stopped in, with weights, optimiser and reference as they were; collective."""
    newest = checkpoint.latest(run.checkpoints)
    at = Position(**checkpoint.read_state(newest)) if newest else Position("sft" if config.sft.steps else "rl")
    if at.stage == "sft":
        actor.new_optimizer(config.sft_optimizer)
    else:
        if config.sft.steps:
            actor.load(str(run.warm_start))  # RL's reference policy
        enter_rl(config, actor)
    if newest:
        checkpoint.load(actor, newest)
    return at


def enter_rl(config: Config, actor: Actor) -> None:
    """Start the RL stage: the present weights become the reference, the optimiser starts afresh."""
    if config.algorithm.kl_coef:
        actor.freeze_reference()
    actor.new_optimizer(config.actor.optimizer)


def finish_warm_start(
    run: RunFolder, config: Config, actor: Actor, swap: Swap, at: Position, driver: Driver | None
) -> None:
    """Keep the warm start as a Hugging Face folder, which a resumed run reads its reference from, and enter RL."""
    if dist.get_rank() == 0:
        shutil.rmtree(run.warm_start, ignore_errors=True)  # of an attempt that ended before its checkpoint
    swap.export(run.warm_start, run.model_folder())
    enter_rl(config, actor)
    at.stage, at.step = "rl", 0
    save(run, config, actor, at, driver)


def save(run: RunFolder, config: Config, actor: Actor, at: Position, driver: Driver | None) -> None:
    """Write a checkpoint; collective."""
    if driver:
        driver.settle(at)
    name = f"{'01'[at.stage == 'rl']}-{at.step:06d}"  # sorts in the order of the run
    checkpoint.save(actor, run.checkpoints, name, asdict(at), config.run.keep)


def save_if_due(run: RunFolder, config: Config, actor: Actor, at: Position, driver: Driver | None) -> None:
    """A checkpoint every run.save_every steps and after the last RL step."""
    last = at.stage == "rl" and at.step == config.run.steps
    if last or (config.run.save_every and at.step % config.run.save_every == 0):
        save(run, config, actor, at, driver)
