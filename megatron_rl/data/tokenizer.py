"""The tokenizer of a model folder."""

from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

from megatron_rl.errors import InputError

TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json")


def load_tokenizer(folder: str | Path) -> Any:
    """The Hugging Face tokenizer of a local folder.

    Raises InputError when the folder or its tokenizer files are missing.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(
            f"model.path={str(folder)!r} is not a folder. Give the local folder of a Hugging Face model "
            "(config.json, *.safetensors and tokenizer files)."
        )
    if not any((folder / name).is_file() for name in TOKENIZER_FILES):
        raise InputError(
            f"{folder} has no tokenizer: none of {', '.join(TOKENIZER_FILES)} is there. Copy the tokenizer files of "
            "the model into it."
        )
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(str(folder), local_files_only=True)


def check_vocabulary(tokenizer: Any, hf_config: dict[str, Any]) -> None:
    """Raises InputError when the model has no row for a token, or the tokenizer has no token that ends a text.

    ``hf_config`` is the content of the model's config.json.
    """
    largest = max(tokenizer.get_vocab().values())
    if largest >= hf_config["vocab_size"]:
        raise InputError(
            f"The tokenizer {tokenizer.name_or_path} has token ids up to {largest}, but config.json has "
            f"vocab_size={hf_config['vocab_size']}: they belong to different models, or tokens were added without "
            "resizing the model's embeddings. Use the tokenizer that the model was saved with."
        )
    if tokenizer.eos_token_id is None:
        raise InputError(
            f"The tokenizer {tokenizer.name_or_path} has no eos_token, so no completion could end. Set eos_token in "
            "its tokenizer_config.json."
        )


def make_encoder(tokenizer: Any, size: int = 65536) -> Callable[[str], tuple[int, ...]]:
    """text -> token ids, remembering the last ``size`` texts. Texts spell out their own special tokens."""
    return lru_cache(maxsize=size)(lambda text: tuple(tokenizer.encode(text, add_special_tokens=False)))


def ended(text: str, tokenizer: Any) -> str:
    """A target to imitate with one end token after it; no target stays none."""
    return text and text.removesuffix(tokenizer.eos_token) + tokenizer.eos_token
