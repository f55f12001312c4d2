"""The Hugging Face folder of a model that starts from random weights."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from megatron_rl.actor.config import ModelConfig
from megatron_rl.data.config import DataConfig
from megatron_rl.data.registry import write_tokenizer
from megatron_rl.data.tokenizer import check_vocabulary, load_tokenizer
from megatron_rl.resharding.families import family
from megatron_rl.resharding.folders.check import transformers_config
from megatron_rl.system.files import folder_beside, rename_folder

DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}


def write_initial_model(model: ModelConfig, data: DataConfig, seed: int, folder: str | Path) -> None:
    """Writes ``model.architecture`` with random weights and the task's own tokenizer as a Hugging Face folder.

    Weights are transformers' own initialisation (``initializer_range``) under ``torch.manual_seed(seed)``, in
    ``model.dtype``. ``folder`` must not exist; it appears complete or not at all. Raises InputError when the
    architecture is not one of transformers', the task brings no tokenizer or the two do not fit.
    """
    write_random_model(model.architecture, model.dtype, seed, folder, lambda inside: write_tokenizer(data, inside))


def write_random_model(
    architecture: dict[str, Any], dtype: str, seed: int, folder: str | Path, tokenizer_writer: Callable[[Path], None]
) -> None:
    """As ``write_initial_model``, with the function that writes the tokenizer files into a folder."""
    folder = Path(folder)
    if folder.exists():
        raise FileExistsError(f"{folder} exists; a model with random weights is written to a new folder only")
    folder.parent.mkdir(parents=True, exist_ok=True)
    beside = folder_beside(folder)
    try:
        tokenizer_writer(beside)
        _write_weights(architecture, dtype, seed, beside)
        rename_folder(beside, folder)
    except BaseException:
        shutil.rmtree(beside)
        raise


def _write_weights(architecture: dict[str, Any], dtype: str, seed: int, folder: Path) -> None:
    from transformers import AutoModelForCausalLM, GenerationConfig
    from transformers.utils import logging

    family(architecture)  # an unknown one is an error that lists the known ones
    tokenizer = load_tokenizer(folder)
    config = transformers_config(architecture)
    check_vocabulary(tokenizer, {"vocab_size": config.vocab_size})
    # No pad_token_id: transformers would zero its embedding and train without it.
    tokens = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    config.update(tokens)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    model = model.to(DTYPES[dtype])
    model.generation_config = GenerationConfig(**tokens, pad_token_id=tokenizer.pad_token_id)
    logging.disable_progress_bar()
    model.save_pretrained(folder)
