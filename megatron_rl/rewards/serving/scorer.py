"""A reward model on a CPU: texts to scores with transformers, as training read them."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from megatron_rl.data.tokenizer import ended, load_tokenizer
from megatron_rl.errors import InputError
from megatron_rl.resharding.families.table import scalar_head
from megatron_rl.resharding.folders.hf import read_hf_config

Input = str | tuple[str, str]
"""A whole text, or (prompt, response): the prompt as it was tokenised, the response without its end token."""


def require_scalar_head(folder: Path) -> None:
    """Raises InputError for a Hugging Face folder whose model scores nothing."""
    if not scalar_head(read_hf_config(folder)):
        raise InputError(f"{folder} is no reward model: its config.json names no *ForSequenceClassification class.")


class Scorer:
    """The model of a ``*ForSequenceClassification`` folder with one label, in float32."""

    def __init__(self, folder: Path, threads: int = 1) -> None:
        """Raises InputError for a folder of another kind."""
        from transformers import AutoModelForSequenceClassification
        from transformers.utils import logging

        require_scalar_head(folder)
        torch.set_num_threads(threads)
        logging.disable_progress_bar()
        self.tokenizer = load_tokenizer(folder)
        self.model: Any = AutoModelForSequenceClassification.from_pretrained(
            folder, dtype=torch.float32, local_files_only=True
        ).eval()
        if self.model.config.num_labels != 1:
            raise InputError(f"{folder} has {self.model.config.num_labels} labels; a reward model has one.")
        self.longest: int = self.model.config.max_position_embeddings

    def tokens(self, given: Input) -> list[int]:
        """What a text is read as; prompt and response are tokenised one by one, as in training."""
        parts = (given,) if isinstance(given, str) else (given[0], ended(given[1], self.tokenizer))
        return [token for part in parts for token in self.tokenizer.encode(part, add_special_tokens=False)]

    @torch.inference_mode()
    def __call__(self, inputs: Sequence[Input]) -> list[float]:
        """The score of each, read at its last token. Raises ValueError for a text that is empty or too long."""
        rows = [self.tokens(given) for given in inputs]
        for number, row in enumerate(rows):
            if not 0 < len(row) <= self.longest:
                raise ValueError(f"input {number} has {len(row)} tokens; it must have 1 to {self.longest}")
        if not rows:
            return []
        # padding lies behind a text, where causality hides it, whatever token it is
        longest = max(map(len, rows))
        padded = torch.tensor([row + [0] * (longest - len(row)) for row in rows])
        mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows])
        hidden = self.model.model(padded, attention_mask=mask).last_hidden_state
        ends = torch.tensor([len(row) - 1 for row in rows])
        scores: list[float] = self.model.score(hidden[torch.arange(len(rows)), ends]).squeeze(1).tolist()
        return scores
