"""The stages of a run, in their order: each makes its batches on rank 0 and learns from them on all ranks."""

from collections.abc import Callable

from megatron_rl.config import STAGES, Config
from megatron_rl.tracking.run_folder import RunFolder
from megatron_rl.training.progress import Progress
from megatron_rl.training.stages.preference import Preference
from megatron_rl.training.stages.reward_model import RewardModel
from megatron_rl.training.stages.rl import RL
from megatron_rl.training.stages.sft import SFT
from megatron_rl.training.stages.stage import Stage


def stages(config: Config, run: RunFolder, at: Progress) -> list[Stage]:
    """The stage that ``at`` stands in, and those of the run that come after it."""
    after = STAGES[STAGES.index(at.stage) + 1 :]
    return [_make(name, config, run) for name in (at.stage, *(name for name in config.chain() if name in after))]


def first_stage(config: Config) -> str:
    """Where a run begins."""
    return next(iter(config.chain()))


def _make(name: str, config: Config, run: RunFolder) -> Stage:
    makers: dict[str, Callable[[Config, RunFolder], Stage]] = {
        "sft": SFT,
        "preference": Preference,
        "rl": RL,
        "reward_model": RewardModel,
    }
    return makers[name](config, run)
