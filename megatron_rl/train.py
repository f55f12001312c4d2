"""The training loop, as every trainer rank runs it.

::

    controller (rank 0)                       every rank
    ───────────────────                       ──────────
    prompts ─▶ strategy ─▶ engine ─▶ rewards
                               ▲        │ a step: rows, rewards
                               │        ▼
                               │     scatter ─▶ score ─▶ credit ─▶ loss, gradient, update ─▶ finite?
                               │                                                               │
                               └──────────── swap: plan, copy, hashes ◀────────────────────────┘

Generation waits for nothing but its engine, which serves the weights of the last swap, or of ``rollout.staleness``
steps ago; ranks wait for their rows; a swap waits until nothing is generated, unless ``rollout.in_flight``.
Stages that generate nothing get their rows from files, and a run of nothing else has neither engines nor swaps.
``megatron-rl train`` starts one process per rank, ``python -m megatron_rl.train RUN_FOLDER``, with torchrun's
environment variables.
"""

import sys

from megatron_rl.actor import groups
from megatron_rl.config import Config
from megatron_rl.swap.trainer import Alone, Swap
from megatron_rl.system import processes, stop
from megatron_rl.system.supervision.screen import activity
from megatron_rl.tracking.replayed import read_replay
from megatron_rl.tracking.run_folder import RunFolder
from megatron_rl.tracking.start import started_from
from megatron_rl.training.batch import scatter
from megatron_rl.training.controller import Controller, Elsewhere
from megatron_rl.training.guard import require_agreement, require_calm, require_finite
from megatron_rl.training.models import Models
from megatron_rl.training.progress import Progress, due, restore, write_checkpoint
from megatron_rl.training.replay import Replayed
from megatron_rl.training.stages import first_stage, stages
from megatron_rl.training.stages.stage import Stage

TITLES = {"sft": "SFT", "rl": "RL"}  # of stages, where a label names them


def train(run: RunFolder, config: Config) -> None:
    """Every stage from where the run stands; one that was stopped continues from its newest checkpoint."""
    activity("starting the trainer's ranks")
    groups.initialize(config.actor, config.run.seed)
    at, newest = restore(run, first_stage(config))
    controller = make_controller(run, config, at)  # first: its engines start meanwhile
    activity("building the model")
    models = Models(run, config)
    generates = groups.share(controller.engine is not None)
    if generates:
        activity("planning the weight swap with the engines")
    swap = Swap(models.policy, controller.engine) if generates else Alone(models.policy)
    remaining = stages(config, run, at)
    remaining[0].enter(models, at)
    if newest:
        models.load(newest)
    elif config.run.start_optimizer:
        models.start(started_from(config.run).checkpoint)
    models.rest()
    controller.begin(at, swap.plan_hash, newest)
    swap(at.version)
    if "before" not in at.evaluations:
        evaluate(controller, at, "before", True, True)

    processes.settle()
    stop.install()  # before, there is nothing to save
    for stage in remaining:
        if at.stage != stage.name:
            at.enter(stage.name)
            stage.enter(models, at)
            processes.settle()  # the last stage's optimiser has gone
            save(run, models, at, controller, config.run.keep)
            models.rest()
        while at.step < stage.steps:
            batch = scatter(controller.batch(stage, at), models.policy)
            with controller.clock.span("update"):
                metrics, credit = stage.learn(models, batch, at.step)
            models.changed()
            require_finite(metrics, models, controller, at, config.run.not_finite)
            at.step += 1
            last = at.step == stage.steps
            if stage.samples or last:
                controller.before_swap()
                at.version += 1
                metrics |= swap(at.version)
            controller.record(at, metrics, credit)
            if stage.samples:
                require_agreement(metrics, controller, at, config.algorithm)
                require_calm(controller, at, config.alarms.action)
            suites = due(config.evaluation.suites_every, at)
            if suites and not (stage.samples or last):  # the engines have older weights
                at.version += 1
                swap(at.version)
            held_out = last or (stage.samples and due(config.evaluation.every, at))
            if held_out or suites:
                evaluate(controller, at, label(stage, at), held_out, last or suites)
            stopping = not last and groups.share(controller.stopping())
            if stopping or (last and stage is remaining[-1]) or due(config.run.save_every, at):
                save(run, models, at, controller, config.run.keep)
            if stopping:
                return end(controller, swap, at)
        stage.leave(models, swap, at)
    controller.finish(at)
    end(controller, swap, at)


def make_controller(run: RunFolder, config: Config, at: Progress) -> Controller | Elsewhere:
    """What this rank has of the run besides its share of the models."""
    if not groups.first():
        return Elsewhere()
    replay = read_replay(run)
    return Replayed(config, run, at, replay) if replay else Controller(config, run, at)


def end(controller: Controller | Elsewhere, swap: Swap | Alone, at: Progress) -> None:
    """Leave the engines, the workers and the other ranks."""
    controller.close(at)
    swap.close()
    groups.shutdown()


def evaluate(controller: Controller | Elsewhere, at: Progress, label: str, held_out: bool, suites: bool) -> None:
    """Metrics of the weights in the engine, on what is held out and on suites; the other ranks wait for them."""
    activity(f"evaluating {label}")
    at.evaluations[label] = groups.share(controller.evaluate(at, label, held_out, suites))


def save(run: RunFolder, models: Models, at: Progress, controller: Controller | Elsewhere, keep: int) -> None:
    """A checkpoint of where the run stands."""
    activity("saving a checkpoint")
    files = controller.settle(at)
    with controller.clock.span("checkpoint"):
        write_checkpoint(run, models, at, keep, files)


def label(stage: Stage, at: Progress) -> str:
    """What an evaluation after the present step is called."""
    title = TITLES.get(stage.name, stage.name)
    if at.step == stage.steps:
        return f"after {title}"
    return f"step {at.step}" if stage.samples else f"{title} step {at.step}"


def main() -> None:
    """One rank."""
    run = RunFolder(sys.argv[1])
    train(run, run.config())


if __name__ == "__main__":
    processes.run(main)
