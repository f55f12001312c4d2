"""A reward that holds a run up in the middle of a step, so that a test can come in between."""

import os
import time
from pathlib import Path

from megatron_rl.data.task import Sample

UNHURRIED = ("rewards.deadline=3600", "rewards.first_deadline=3600")  # no sample is lost on a slow machine
HELD = ("rewards.terms.tests.runs.gate.held=1", *UNHURRIED)


def held(sample: Sample) -> float:
    """0, as soon as there is no file closed-STEP (counted from 1) in the folder that the variable GATE names.

    While it waits there is a file reached-STEP.
    """
    folder, step = Path(os.environ.get("GATE", "")), sample.step + 1
    while (folder / f"closed-{step}").exists():
        (folder / f"reached-{step}").touch()
        time.sleep(0.05)
    return 0.0
