"""Write a small Qwen3 with random weights, and a tokenizer made for a file, as a Hugging Face folder.

    python tools/make_tiny_model.py questions.parquet models/tiny

It trains nothing: it exists to run a recipe with real data on a machine without a GPU. The tokenizer is byte-level BPE
with Qwen's chat markers, learnt from the file: a text file, or the text columns of .parquet, .jsonl, .json or .csv.
"""

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

from megatron_rl.data.files import FORMATS, read_table
from megatron_rl.errors import InputError
from megatron_rl.launch.initial_model import write_random_model

END_OF_TEXT, START, END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def texts(path: Path) -> Iterator[str]:
    """Pieces of text of a data file or of a plain text file."""
    if path.suffix.lower() in FORMATS:
        table = read_table(str(path), "train")
        for cells in zip(*map(table.column, table.columns), strict=True):
            yield from (value for value in cells if isinstance(value, str))
    elif path.is_file():
        try:
            with path.open(encoding="utf-8") as lines:
                yield from lines
        except UnicodeDecodeError as error:
            raise InputError(f"{path} is no text in UTF-8 ({error.reason} at byte {error.start}).") from error
    else:
        raise InputError(f"The file {path} does not exist. Give a text file or a data file ({' '.join(FORMATS)}).")


def write_tokenizer(source: Path, vocabulary: int, folder: Path) -> None:
    """Learn a byte-level BPE of at most ``vocabulary`` tokens from a file and write it to a folder."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[END_OF_TEXT, START, END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts(source), trainer)
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=END,
        pad_token=END_OF_TEXT,
        chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
    ).save_pretrained(folder)


def main(arguments: list[str] | None = None) -> None:
    """The command line; bad input ends with exit code 2 and one line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path, help="file to learn the tokenizer from")
    parser.add_argument("folder", type=Path, help="folder to write; must not exist")
    parser.add_argument("--hidden", type=int, default=64, help="width (default 64)")
    parser.add_argument("--layers", type=int, default=2, help="layers (default 2)")
    parser.add_argument("--heads", type=int, default=4, help="attention heads (default 4)")
    parser.add_argument("--kv-heads", type=int, default=2, help="key-value heads (default 2)")
    parser.add_argument("--vocabulary", type=int, default=1024, help="tokens, at least 259 (default 1024)")
    parser.add_argument("--positions", type=int, default=4096, help="longest sequence (default 4096)")
    parser.add_argument("--seed", type=int, default=0, help="of the random weights (default 0)")
    options = parser.parse_args(arguments)
    if options.hidden % options.heads or options.heads % options.kv_heads or options.vocabulary < 259:
        parser.error("--heads must divide --hidden, --kv-heads must divide --heads, --vocabulary must be 259 or more")
    if options.folder.exists():
        parser.error(f"{options.folder} exists; name a new folder")
    architecture = {
        "model_type": "qwen3",
        "vocab_size": options.vocabulary,
        "hidden_size": options.hidden,
        "intermediate_size": 2 * options.hidden,
        "num_hidden_layers": options.layers,
        "num_attention_heads": options.heads,
        "num_key_value_heads": options.kv_heads,
        "head_dim": options.hidden // options.heads,
        "max_position_embeddings": options.positions,
        "tie_word_embeddings": True,
    }
    try:
        write_random_model(
            architecture,
            "float32",
            options.seed,
            options.folder,
            lambda inside: write_tokenizer(options.source, options.vocabulary, inside),
        )
    except InputError as error:
        print(error, file=sys.stderr)
        sys.exit(2)
    print(f"Wrote {options.folder}. Use it with model.path={options.folder}")


if __name__ == "__main__":
    main()
