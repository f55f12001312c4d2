"""What a model folder holds besides weights, and how weights are divided over its files. No torch."""

import json
from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from megatron_rl.resharding.families import family
from megatron_rl.resharding.families.table import DTYPE_KEYS
from megatron_rl.resharding.folders.hf import WEIGHTS
from megatron_rl.resharding.folders.stored import TORCH_DTYPES
from megatron_rl.resharding.layouts.fp8 import QUANTISATION

_CARRIED = (  # what belongs to a model besides weights and config.json; folders only as far as they are named
    "generation_config.json",
    "configuration.json",  # ModelScope's
    "*.py",  # code of the tokenizer or the model, which their configs name
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab*",
    "merges.txt",
    "*.jinja",
    "chat_template*",
    "additional_chat_templates/*.jinja",
    "*.tiktoken",
    "tekken.json",
    "*.model",
    "*.spm",
    "*.bpe",
    "bpe.codes",
    "emoji.json",
    "normalizer.json",
    "*processor_config.json",
    "LICENSE*",
    "LICENCE*",
    "NOTICE*",
    "USE_POLICY*",
)


def divide(sizes: Mapping[str, int], limit: int) -> list[list[str]]:
    """Tensors by file, in order, each file at most ``limit`` bytes unless a single tensor is larger."""
    files: list[list[str]] = [[]]
    filled = 0
    for name, size in sizes.items():
        if filled and filled + size > limit:
            files.append([])
            filled = 0
        files[-1].append(name)
        filled += size
    return files


def file_name(number: int, count: int) -> str:
    """The name of weight file ``number`` (from 1) of ``count``."""
    return WEIGHTS if count == 1 else f"model-{number:05d}-of-{count:05d}.safetensors"


def carried(origin: Path | None) -> dict[str, Path]:
    """The files of a model folder that go along with its weights, by their path in it: tokenizer, generation config,
    chat templates, code, licence."""
    if origin is None:
        return {}
    files = sorted(path for path in (*origin.iterdir(), *origin.glob("additional_chat_templates/*")) if path.is_file())
    names = {path.relative_to(origin).as_posix(): path for path in files}
    return {name: path for name, path in names.items() if any(fnmatchcase(name, pattern) for pattern in _CARRIED)}


def small_files(
    hf_config: Mapping[str, Any], dtype: str, origin: Path | None, *, fp8: bool = False
) -> dict[str, bytes]:
    """What a folder holds besides weights and their index, by its path in it.

    config.json for weights of this dtype (with ``fp8``, of all but the quantised ones), which every name of the dtype
    there gives, and what is carried from the folder ``origin``.
    """
    found = {name: file.read_bytes() for name, file in carried(origin).items()}
    config = {"architectures": [family(hf_config).architecture], **hf_config}
    config |= dict.fromkeys([key for key in DTYPE_KEYS if key in config] or DTYPE_KEYS[:1], TORCH_DTYPES[dtype])
    config.pop("quantization_config", None)
    if fp8:
        config["quantization_config"] = QUANTISATION
    return found | {"config.json": json.dumps(config, indent=2, sort_keys=True).encode() + b"\n"}


def index_file(files: Mapping[str, Iterable[str]], total: int) -> bytes:
    """The index of weights that lie in several files: file -> tensors; ``total`` bytes."""
    weight_map = {name: file for file, names in files.items() for name in names}
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    return json.dumps(index, indent=2).encode() + b"\n"
