"""The checkpoint of another run that a run starts from (``run.start_from``). Imports no torch."""

from dataclasses import dataclass
from pathlib import Path

from megatron_rl.actor.checkpoint_folder import all_checkpoints, damage, latest, read_entry
from megatron_rl.config import Config, RunConfig
from megatron_rl.errors import InputError
from megatron_rl.resharding.families.architecture import differences
from megatron_rl.tracking.run_folder import RunFolder


@dataclass(frozen=True)
class Start:
    """Another run, and the checkpoint of it to begin with."""

    run: RunFolder
    checkpoint: Path


def started_from(options: RunConfig) -> Start:
    """What ``run.start_from`` names: of a run's folder the newest checkpoint.

    Raises InputError for what is neither a run that has saved a checkpoint nor a whole checkpoint of one.
    """
    key, path = f"run.start_from={options.start_from}", Path(options.start_from)
    if not path.is_dir():
        raise InputError(f"{key}: there is no such folder; name a run's folder, or one of its checkpoints/step-….")
    run = RunFolder(path if (path / "config.yaml").is_file() else path.absolute().parent.parent)
    checkpoint = latest(run.checkpoints) if run.path == path else path
    if not run.config_file.is_file():
        raise InputError(f"{key} is neither a run's folder (it has no config.yaml) nor a checkpoint inside of one.")
    if checkpoint is None:
        raise InputError(f"{key}: this run has no checkpoint yet (run.save_every), from which another could start.")
    if checkpoint.name not in [known.name for known in all_checkpoints(run.checkpoints)]:
        raise InputError(f"{key} is no checkpoint of {run.path}: those are in {run.checkpoints}, step-….")
    if (wrong := damage(checkpoint)) is not None:
        raise InputError(f"{key}: the checkpoint {checkpoint} is damaged ({wrong}); name another one.")
    return Start(run, checkpoint)


def start_problems(config: Config, hf_config: dict[str, object]) -> list[str]:
    """Why a run of a model with that config.json cannot start from what ``run.start_from`` names; a sentence each."""
    options = config.run
    if not options.start_from:
        asked = "run.start_optimizer=true needs run.start_from: there is no other run whose optimiser could go on."
        return [asked] if options.start_optimizer else []
    own = RunFolder(Path(options.folder) / options.name)
    if options.resume == "auto" and own.started():  # it goes on from a checkpoint of its own
        return []
    try:
        start = started_from(options)
        theirs, other = start.run.hf_config(), start.run.config()
        unlike = differences(theirs, hf_config)
    except InputError as error:
        return [str(error)]
    key = f"run.start_from={options.start_from}"
    found = []
    if own.path.absolute() == start.run.path.absolute():
        found.append(f"{key} is this run's own folder: to continue a run, leave run.start_from empty.")
    if unlike:
        found.append(
            f"{key} has trained another model than this run's: {unlike}. Set model.path or model.architecture to the "
            "same shape (the parallel sizes may be others)."
        )
    if other.reward_model.steps or config.reward_model.steps:
        found.append(f"{key} is for policies, and one of the two runs trains a reward model: set model.path instead.")
    if read_entry(start.checkpoint, "base"):
        found.append(f"{key} holds adapters alone (actor.lora): set model.path to that run's hf/ folder instead.")
    if options.start_optimizer and (config.actor.lora.rank or config.actor.freeze or other.actor.freeze):
        found.append(
            "run.start_optimizer=true goes on with the moments of all weights, and here some are not trained "
            "(actor.lora, actor.freeze): use false."
        )
    return found
