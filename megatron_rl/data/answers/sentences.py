"""How alike sentences are to a sentence model: the folder of an encoder, as those of sentence-transformers."""

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

from megatron_rl.system.files import read_json

_SETTINGS = "sentence_bert_config.json"  # of sentence-transformers; says how many tokens are read
LONGEST = 128  # tokens, where nothing says it


def nearer(said: str, right: str, wrong: str, folder: str) -> bool:
    """Whether a text is nearer to the right one than to the wrong one, by the cosine of their embeddings; equal is not.

    Embeddings are means over the last hidden states of the tokens (mean pooling). Imports torch.
    """
    import torch

    ours, good, bad = torch.nn.functional.normalize(_embed([said, right, wrong], folder), dim=1)
    return bool(ours @ good > ours @ bad)


def _embed(texts: Sequence[str], folder: str) -> Any:
    """float32 [texts, hidden]."""
    import torch

    tokenizer, model, longest = _loaded(folder)
    given = tokenizer(list(texts), padding=True, truncation=True, max_length=longest, return_tensors="pt")
    with torch.inference_mode():
        hidden = model(input_ids=given.input_ids, attention_mask=given.attention_mask).last_hidden_state
    mask = given.attention_mask.unsqueeze(2).to(hidden.dtype)
    return (hidden * mask).sum(1) / mask.sum(1).clamp(min=1e-9)


@cache
def _loaded(folder: str) -> tuple[Any, Any, int]:
    import torch
    from transformers import AutoModel, AutoTokenizer

    settings = Path(folder, _SETTINGS)
    longest = read_json(settings).get("max_seq_length") if settings.is_file() else None
    model = AutoModel.from_pretrained(folder, dtype=torch.float32, local_files_only=True).eval()
    return AutoTokenizer.from_pretrained(folder, local_files_only=True), model, longest or LONGEST
