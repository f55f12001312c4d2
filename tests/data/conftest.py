"""A small random model folder, its tokenizer, and the tokenizer of the generated task."""

import importlib.util
import json
from pathlib import Path

import pytest

from megatron_rl.data.tasks import false_belief
from megatron_rl.data.tokenizer import load_tokenizer

ROOT = Path(__file__).parents[2]
STORIES = [
    "Mia entered the hall. The pear is in the blue_box. Mia moved the pear to the red_crate. Leo exited the hall.",
    "Zoe entered the office. Zoe moved the coin to the tin, which is also located in the office. Zoe left the office.",
]


@pytest.fixture(scope="session")
def make_tiny_model():
    """The main function of tools/make_tiny_model.py."""
    spec = importlib.util.spec_from_file_location("make_tiny_model", ROOT / "tools" / "make_tiny_model.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.main


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory, make_tiny_model) -> Path:
    """A folder that the tool wrote: Qwen3, byte-level BPE of 400 tokens, ChatML template."""
    folder = tmp_path_factory.mktemp("tiny")
    rows = [{"story": s, "question": "Where is it?", "number": 1} for s in STORIES]
    (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    make_tiny_model([str(folder / "rows.jsonl"), str(folder / "model"), "--vocabulary", "400", "--seed", "3"])
    return folder / "model"


@pytest.fixture(scope="session")
def chat_tokenizer(tiny_model):
    return load_tokenizer(tiny_model)


@pytest.fixture(scope="session")
def word_tokenizer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("words")
    false_belief.write_tokenizer(folder)
    return load_tokenizer(folder)
