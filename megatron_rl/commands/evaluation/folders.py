"""The Hugging Face folder of what is evaluated."""

import argparse
import shlex
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from megatron_rl.commands import convert_options
from megatron_rl.commands.serve import model_folder
from megatron_rl.errors import InputError
from megatron_rl.resharding.folders.torch_dist.reader import is_torch_dist
from megatron_rl.system.processes import program


@contextmanager
def hf_folder(model: Path) -> Iterator[Path]:
    """That of a run or of its own; a Megatron checkpoint as one, among temporary files, until the end.

    Raises InputError where there is none, or the checkpoint does not say of which model it is.
    """
    if not is_torch_dist(model):
        yield model_folder(model)
        return
    parser = argparse.ArgumentParser()
    convert_options.add_arguments(parser)
    with tempfile.TemporaryDirectory(prefix="megatron_rl-") as temporary:
        options = parser.parse_args(["megatron-to-hf", str(model), str(Path(temporary) / "hf"), "--no-sync"])
        try:
            options.run(options)
        except InputError as error:
            by_itself = f"{program()} convert megatron-to-hf {shlex.quote(str(model))} FOLDER --model MODEL"
            raise InputError(f"{error} Convert it by itself ({by_itself}), and evaluate FOLDER.") from error
        yield options.target
