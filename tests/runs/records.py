"""What runs of tests have recorded."""

import json
from typing import Any

from megatron_rl.tracking.run_folder import RunFolder

CLOCKED = ("time/", "tokens_per_second", "mfu", "timestamp", "memory/")


def rows(run: RunFolder) -> list[dict[str, Any]]:
    """The recorded numbers, without those that a clock gave."""
    lines = run.metrics_file.read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if not k.startswith(CLOCKED)} for line in lines]
