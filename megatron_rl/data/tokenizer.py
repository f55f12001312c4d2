"""The tokenizer of a model folder."""

from collections.abc import Callable, Collection, Iterable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from megatron_rl.errors import InputError
from megatron_rl.resharding.folders.hf import read_hf_config
from megatron_rl.system.files import leads_nowhere, not_content, read_json

TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json")
_TEMPLATES = ("*.jinja", "additional_chat_templates/*.jinja")
_NOBODYS = "\ue000"  # a character for private use: no tokenizer has been made of it
_READ = ("tokenizer*", "vocab.json", "special_tokens_map.json", "added_tokens.json", "merges.txt", "config.json")


class UnknownWordError(InputError):
    """A tokenizer of a few words was given others."""


def load_tokenizer(folder: str | Path) -> Any:
    """The Hugging Face tokenizer of a local folder.

    Raises InputError when the folder or its tokenizer files are missing or broken.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(
            f"model.path={str(folder)!r} is not a folder. Give the local folder of a Hugging Face model "
            "(config.json, *.safetensors and tokenizer files)."
        )
    if broken := leads_nowhere(folder, *_READ, *_TEMPLATES, "generation_config.json"):
        raise InputError(broken)
    if not any((folder / name).is_file() for name in TOKENIZER_FILES):
        raise InputError(
            f"{folder} has no tokenizer: none of {', '.join(TOKENIZER_FILES)} is there. Copy the tokenizer files of "
            "the model into it."
        )
    for template in (path for pattern in _TEMPLATES for path in sorted(folder.glob(pattern)) if path.is_file()):
        if wrong := not_content(template):  # any text is a template: it would be every prompt
            raise InputError(wrong)
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(str(folder), local_files_only=True)
    except Exception as error:  # whatever its parsers raise about a file
        raise InputError(_broken_file(folder) or _reason(folder, error)) from error


def _broken_file(folder: Path) -> str:
    """The first of the files that a tokenizer is made from that cannot be one, in a sentence; "" when all can."""
    for path in sorted(path for pattern in _READ for path in folder.glob(pattern) if path.is_file()):
        try:
            if path.suffix == ".json":
                read_json(path)
            elif wrong := not_content(path):
                return wrong
        except InputError as error:
            return str(error)
    return ""


def _reason(folder: Path, error: Exception) -> str:
    text = (str(error).strip() or type(error).__name__).splitlines()[-1].strip()
    return (
        f"The tokenizer of {folder} cannot be read: {text.rstrip('.')[:300]}. Fetch its files again, or save it with "
        "the installed transformers."
    )


def check_vocabulary(tokenizer: Any, hf_config: dict[str, Any]) -> None:
    """Raises InputError when the model has no row for a token, or the tokenizer has no token that ends a text.

    ``hf_config`` is the content of the model's config.json.
    """
    largest, rows = max(tokenizer.get_vocab().values(), default=0), hf_config.get("vocab_size")
    if isinstance(rows, int) and largest >= rows:  # those who read the model's sizes say when it is no number
        raise InputError(
            f"The tokenizer {tokenizer.name_or_path} has token ids up to {largest}, but config.json has "
            f"vocab_size={rows}: they belong to different models, or tokens were added without "
            "resizing the model's embeddings. Use the tokenizer that the model was saved with."
        )
    if tokenizer.eos_token_id is None:
        raise InputError(
            f"The tokenizer {tokenizer.name_or_path} has no eos_token, so no completion could end. Set eos_token in "
            "its tokenizer_config.json."
        )


def end_tokens(folder: str | Path, tokenizer: Any) -> tuple[int, ...]:
    """Ids of the tokens that end a completion: the tokenizer's eos_token first, then others that the folder names.

    Those are the ``eos_token_id``, one or a list, of generation_config.json and config.json, as SGLang takes them:
    models for chats often end a turn by another token than a text. Ids that the model has no row for cannot be drawn
    and are left out. Raises InputError naming the file whose entry is no id.
    """
    config, generation = Path(folder, "config.json"), Path(folder, "generation_config.json")
    hf_config = read_hf_config(folder)
    found = [tokenizer.eos_token_id, *_ids(config, hf_config)]
    if generation.is_file():
        found += _ids(generation, read_json(generation))
    return tuple(dict.fromkeys(token for token in found if 0 <= token < hf_config["vocab_size"]))


def _ids(file: Path, content: dict[str, Any]) -> list[int]:
    named = content.get("eos_token_id")
    ids = [] if named is None else named if isinstance(named, list) else [named]
    if not all(type(token) is int for token in ids):
        raise InputError(f"{file}: eos_token_id is {named!r}; it must be a token's id, a list of ids, or null.")
    return ids


def require_encodable(tokenizer: Any, texts: Iterable[tuple[str, str]]) -> None:
    """Raises UnknownWordError naming the first of the texts (what it is, text) that the tokenizer cannot encode.

    No text is looked at where the tokenizer takes a character that it cannot know: then it takes any.
    """
    if not _refusal(tokenizer, _NOBODYS):
        return
    for what, text in texts:
        if said := _refusal(tokenizer, text):
            raise UnknownWordError(
                f"The tokenizer {tokenizer.name_or_path} cannot encode {what} ({said}): it knows only the words "
                "that it was made for. Take a model whose tokenizer takes any text."
            )


def _refusal(tokenizer: Any, text: str) -> str:
    try:
        tokenizer([text], add_special_tokens=False)
    except Exception as error:  # of tokenizers, which have no class of their own for it
        return (str(error).strip() or type(error).__name__).splitlines()[0]
    return ""


def make_encoder(tokenizer: Any, size: int = 65536) -> Callable[[str], tuple[int, ...]]:
    """text -> token ids, remembering the last ``size`` texts. Texts spell out their own special tokens."""
    return lru_cache(maxsize=size)(lambda text: tuple(tokenizer.encode(text, add_special_tokens=False)))


def decode(tokenizer: Any, tokens: Sequence[int], stops: Collection[int] = ()) -> str:
    """The text of a completion, special tokens included but for a last token that is one of ``stops``.

    ``stops``: the tokens that could end it, where one of them did (finish_reason "stop").
    """
    text = tokens[:-1] if tokens and tokens[-1] in stops else tokens
    return tokenizer.decode(list(text), skip_special_tokens=False)


def ended(text: str, tokenizer: Any) -> str:
    """A target to imitate with one end token after it; no target stays none."""
    return text and text.removesuffix(tokenizer.eos_token) + tokenizer.eos_token


def write_word_tokenizer(folder: str | Path, words: Sequence[str], bos: str, eos: str, pad: str) -> None:
    """Write a Hugging Face tokenizer whose tokens are ``words``, split at white space; the three are among them.

    Decoded text has a space between any two tokens. For generators, whose words are all known.
    """
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=bos,
        eos_token=eos,
        pad_token=pad,
        clean_up_tokenization_spaces=False,  # decoded text keeps a space before every full stop
    ).save_pretrained(folder)
