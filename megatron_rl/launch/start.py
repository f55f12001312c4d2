"""The policy of another run as the folder that a run begins with (``run.start_from``)."""

import shutil
from pathlib import Path

from megatron_rl.resharding.convert.run import Conversion
from megatron_rl.resharding.convert.targets import HfTarget
from megatron_rl.resharding.folders.hf import read_hf_config
from megatron_rl.resharding.folders.torch_dist.reader import open_torch_dist
from megatron_rl.tracking.start import Start

_BUFFER, _LIMIT = 1 << 28, 5 * 10**9  # bytes: in memory, and of a file


def write_start(start: Start, folder: Path, threads: int) -> None:
    """Write the checkpoint's policy as a Hugging Face folder, whatever it was sharded as, with its run's tokenizer.

    ``folder`` must not exist; it appears complete or not at all. Raises InputError for an unreadable checkpoint.
    """
    model = start.run.model_folder()
    source = open_torch_dist(start.checkpoint, read_hf_config(model))
    try:
        Conversion(source, HfTarget(source, source.dtypes, model, _LIMIT), buffer=_BUFFER, threads=threads).run(folder)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
