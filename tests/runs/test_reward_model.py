"""A run that trains a reward model: from a file of pairs to a folder whose scores transformers gives, and continued."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification

from megatron_rl.data.config import DataConfig
from megatron_rl.data.registry import make_task
from megatron_rl.data.tokenizer import load_tokenizer
from megatron_rl.rewards.serving.scorer import Scorer
from megatron_rl.tracking.names import find
from megatron_rl.tracking.run_folder import RunFolder
from tests.conftest import PATIENCE, ROOT

OPTIONS = [
    *("sft.steps=0", "run.steps=0", "reward_model.steps=16", "reward_model.batch_size=12", "run.save_every=8"),
    *("reward_model_optimizer.lr=0.003", "reward_model.data.max_tokens=128", "run.resume=auto", "run.keep=9"),
    *("actor.data_parallel=2", "actor.tensor_parallel=1", "actor.micro_batch_tokens=512", "tracking.wandb=off"),
]


def train(run: RunFolder, pairs: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "megatron_rl.cli", "train", "quickstart", *OPTIONS]
    place = [f"run.folder={run.path.parent}", f"run.name={run.path.name}", f"reward_model.data.path={pairs}"]
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.run([*command, *place], env=env, capture_output=True, text=True, timeout=PATIENCE)


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory, quickstart_tokenizer: Any) -> Path:
    """The task's targets, preferred to their last line alone."""
    task = make_task(DataConfig(task="false_belief", max_prompt_tokens=38), 7, quickstart_tokenizer)
    file = tmp_path_factory.mktemp("pairs") / "pairs.jsonl"
    rows = []
    for example in task.train[:100]:
        chosen = example.target.removesuffix(quickstart_tokenizer.eos_token).rstrip()
        rejected = chosen[chosen.index("<Answer>") :]
        rows.append({"raw_prompt": example.prompt, "chosen": chosen, "rejected": rejected})
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


@pytest.fixture(scope="module")
def quickstart_tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    from megatron_rl.data.tasks.false_belief import write_tokenizer

    folder = tmp_path_factory.mktemp("tokenizer")
    write_tokenizer(folder)
    return load_tokenizer(folder)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, pairs: Path) -> RunFolder:
    run = RunFolder(tmp_path_factory.mktemp("runs") / "whole")
    done = train(run, pairs)
    assert done.returncode == 0, done.stderr
    return run


def rows(run: RunFolder) -> list[dict[str, Any]]:
    clocked = ("time/", "tokens_per_second", "mfu", "timestamp", "memory/")
    lines = map(json.loads, run.metrics_file.read_text().splitlines())
    found = [{k: v for k, v in row.items() if not k.startswith(clocked)} for row in lines]
    return [row for row in found if row["stage"] == "reward_model"]


def test_the_chosen_reply_gets_the_higher_reward(whole: RunFolder) -> None:
    first, *_, last = rows(whole)
    assert {name for row in (first, last) for name in row if find(name) is None} == set()
    assert first["loss"] == pytest.approx(0.693147, abs=1e-6)  # the head begins at zero
    assert last["loss"] < 0.2 and last["pair_accuracy"] == pytest.approx(1.0)
    assert last["pair_margin"] == pytest.approx(last["reward_chosen"] - last["reward_rejected"], abs=1e-5)


def test_transformers_gives_the_same_scores(whole: RunFolder, pairs: Path) -> None:
    """One by one and padded, as the scorer that is served; and they are what the last step's metrics grew from."""
    model = AutoModelForSequenceClassification.from_pretrained(whole.export, dtype=torch.float32).eval()
    assert type(model).__name__ == "Qwen3ForSequenceClassification" and model.num_labels == 1
    scorer = Scorer(whole.export)
    written = [json.loads(line) for line in pairs.read_text().splitlines()][:8]
    inputs = [(row["raw_prompt"], row[reply]) for row in written for reply in ("chosen", "rejected")]
    scores = torch.tensor(scorer(inputs))
    tokens = [torch.tensor(scorer.tokens(given)) for given in inputs]
    padded = torch.nn.utils.rnn.pad_sequence(tokens, batch_first=True, padding_value=model.config.pad_token_id)
    mask = torch.nn.utils.rnn.pad_sequence([torch.ones_like(t) for t in tokens], batch_first=True)
    with torch.no_grad():
        alone = torch.cat([model(row[None]).logits[0] for row in tokens])
        together = model(padded, attention_mask=mask).logits[:, 0]
    assert (scores - alone).abs().max() < 1e-5 and (scores - together).abs().max() < 1e-5
    assert (scores[::2] > scores[1::2]).all()


def test_it_continues_bit_identically(whole: RunFolder, pairs: Path) -> None:
    run = RunFolder(whole.path.with_name("continued"))
    shutil.copytree(whole.path, run.path, symlinks=True)
    shutil.rmtree(run.export)
    shutil.rmtree(next(run.checkpoints.glob("step-*000016")))
    done = train(run, pairs)
    assert done.returncode == 0, done.stderr
    assert rows(run) == rows(whole)
    one, other = (load_file(folder / "model.safetensors") for folder in (run.export, whole.export))
    assert "score.weight" in one and "lm_head.weight" not in one
    assert all(torch.equal(one[name], other[name]) for name in other)
