"""What is wrong with the model folder that a run shall start from, seen without a byte of its weights. No torch."""

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from megatron_rl.errors import InputError
from megatron_rl.resharding.families.architecture import read_architecture
from megatron_rl.resharding.folders.hf import CONFIG, open_stored, read_hf_config, refuse_quantised


def folder_problems(folder: str | Path) -> tuple[dict[str, Any] | None, list[str]]:
    """The content of a model folder's config.json, if it can be read, and what is wrong with the folder.

    Of the weights the index and the headers are read, which name what is missing, cut short, of another shape or
    dtype, or quantised.
    """
    folder = Path(folder)
    try:
        hf_config = read_hf_config(folder)
    except InputError as error:
        return None, [str(error)]
    if wrong := config_problems(hf_config, str(folder / CONFIG)):
        return hf_config, wrong
    try:
        refuse_quantised(folder, hf_config)
        open_stored(folder, hf_config, thorough=False)
    except InputError as error:
        return hf_config, [str(error)]
    return hf_config, []


def config_problems(hf_config: Mapping[str, Any], where: str = CONFIG) -> list[str]:
    """Why the actor cannot train a model of this config.json; ``where`` it stands."""
    try:
        read_architecture(hf_config)
    except InputError as error:
        said = str(error)
        return [where + said.removeprefix(CONFIG) if said.startswith(f"{CONFIG} has ") else said]
    return []


def transformers_config(source: str | Path | Mapping[str, Any]) -> Any:
    """transformers' configuration of a model folder, or of the content of a config.json. Imports transformers.

    Raises InputError when transformers refuses it: its validators look at more keys than are read here.
    """
    from transformers import AutoConfig

    try:
        if not isinstance(source, Mapping):
            return AutoConfig.from_pretrained(str(source), local_files_only=True)
        options = copy.deepcopy(dict(source))  # transformers completes what is nested in it
        return AutoConfig.for_model(options.pop("model_type"), **options)
    except Exception as error:  # each validator has its own
        where = "model.architecture" if isinstance(source, Mapping) else Path(source) / CONFIG
        reason = (str(error).strip() or type(error).__name__).splitlines()[-1].strip()
        raise InputError(f"transformers refuses {where}: {reason.rstrip('.')}.") from error
