"""Which step of which run a folder repeats (``megatron-rl replay``)."""

import json
from dataclasses import asdict, dataclass

from megatron_rl.system.files import read_json, write_text
from megatron_rl.tracking.run_folder import RunFolder

FILE = "replay.json"  # in the folder of a replay


@dataclass(frozen=True)
class Replay:
    """What is repeated."""

    step: int  # of RL, from 1
    rollouts: str  # the folder of those that were saved
    generates: bool  # its rollouts are drawn again, beside those that were saved


def write_replay(run: RunFolder, replay: Replay) -> None:
    """Make a folder that of a replay."""
    write_text(run.path / FILE, json.dumps(asdict(replay), indent=2) + "\n")


def read_replay(run: RunFolder) -> Replay | None:
    """What a folder is the replay of; None: it is a run's own."""
    file = run.path / FILE
    return Replay(**read_json(file)) if file.exists() else None
