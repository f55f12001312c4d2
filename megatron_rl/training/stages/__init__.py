"""The stages of a run, in their order: each makes its batches on rank 0 and learns from them on all ranks."""

from megatron_rl.config import Config
from megatron_rl.tracking.run_folder import RunFolder
from megatron_rl.training.progress import Progress
from megatron_rl.training.stages.rl import RL
from megatron_rl.training.stages.sft import SFT
from megatron_rl.training.stages.stage import Stage


def stages(config: Config, run: RunFolder, at: Progress) -> list[Stage]:
    """The stages from the one that ``at`` stands in."""
    every: list[Stage] = [SFT(config, run), RL(config, run)]
    names = [stage.name for stage in every]
    return every[names.index(at.stage) :]


def first_stage(config: Config) -> str:
    """Where a run begins."""
    return "sft" if config.sft.steps else "rl"
