"""A reward model that `megatron-rl serve` serves, and the reward that asks it."""

import asyncio
import json
import os
import re
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForSequenceClassification, Qwen3Config

from megatron_rl.data.task import Sample
from megatron_rl.data.tasks.false_belief import write_tokenizer
from megatron_rl.data.tokenizer import load_tokenizer
from megatron_rl.rewards.registry import resolve
from megatron_rl.rewards.serving.reward_model import KEY, model_of
from megatron_rl.rewards.terms.reward_model import reward_model
from tests.actor.models import SIZES
from tests.conftest import PATIENCE, ROOT, free_port
from tests.rewards.serving import serving

SCORE = ("score", "failed", "retries")


def ask(sample: Sample, url: str, **args: Any) -> tuple[float, ...]:
    """Score, whether it failed, and calls after the first."""
    model_of.cache_clear()  # the key is read once in a worker
    score = asyncio.run(reward_model(sample, url, **({"timeout": PATIENCE} | args)))
    assert isinstance(score, dict) and score.keys() == {*SCORE, "seconds"}
    return tuple(score[name] for name in SCORE)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("rewarder")
    torch.manual_seed(1)
    model = AutoModelForSequenceClassification.from_config(Qwen3Config(**SIZES, head_dim=16, num_labels=1))
    torch.nn.init.normal_(model.score.weight)
    model.save_pretrained(made)
    write_tokenizer(made)
    return made


@pytest.fixture(scope="module")
def served(folder: Path) -> Iterator[tuple[str, str]]:
    """The URL and the key of a server."""
    command = [sys.executable, "-m", "megatron_rl.cli", "serve", str(folder), "--port", str(free_port())]
    env = os.environ | {"PYTHONPATH": str(ROOT), "MEGATRON_RL_API_KEY": "", "OMP_NUM_THREADS": "1"}
    server = subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert server.stdout is not None
    said = ""
    while not (found := re.search(r"Serving rewards at (\S+)/score, key (\w+)", said)):
        line = server.stdout.readline()
        assert line, said
        said += line
    yield found[1], found[2]
    server.send_signal(signal.SIGINT)
    assert server.wait(PATIENCE) == 128 + signal.SIGINT


def post(url: str, key: str, content: Any) -> Any:
    body = content if isinstance(content, bytes) else json.dumps(content).encode()
    request = urllib.request.Request(f"{url}/score", body, {"Authorization": f"Bearer {key}"})
    with urllib.request.urlopen(request, timeout=PATIENCE) as answer:
        return json.load(answer)


def test_scores_are_those_of_transformers(
    folder: Path, served: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Texts of different lengths in one request, and the reward of a completion, each as if it were alone."""
    tokenizer = load_tokenizer(folder)
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    words = [w for w in sorted(tokenizer.get_vocab()) if w.isalpha()][:9]
    prompt, response = " ".join(words[:5]), " ".join(words[5:])
    inputs: list[Any] = [prompt, words[0], {"prompt": prompt, "response": response}]
    texts = [prompt, words[0], None]
    ids = [tokenizer.encode(t, add_special_tokens=False) for t in texts if t]
    parts = (prompt, response + tokenizer.eos_token)
    ids.append([i for part in parts for i in tokenizer.encode(part, add_special_tokens=False)])
    with torch.no_grad():
        expected = [model(torch.tensor([row])).logits.item() for row in ids]
    url, key = served
    assert post(url, key, {"inputs": inputs})["scores"] == pytest.approx(expected, abs=1e-5)
    assert len(set(expected)) == 3
    monkeypatch.setenv(KEY, key)
    assert resolve("reward_model") is reward_model
    assert ask(Sample(prompt, response, None), url) == (pytest.approx(expected[2], abs=1e-5), 0, 0)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"{", "Expecting"),
        ({"inputs": "text"}, "a request is"),
        ({"inputs": [3]}, "input 0 is no text"),
        ({"inputs": [{"prompt": "a"}]}, "input 0 is no text"),
        ({"inputs": [""]}, "input 0 has 0 tokens"),
        ({"inputs": ["the " * 200]}, "it must have 1 to 128"),
    ],
)
def test_what_is_no_request(served: tuple[str, str], content: Any, said: str) -> None:
    with pytest.raises(urllib.error.HTTPError) as error:
        post(*served, content)
    assert error.value.code == 400 and said in json.load(error.value)["error"]
    assert post(*served, {"inputs": []}) == {"scores": []}


def test_another_key_is_refused(served: tuple[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(KEY, "other")
    with pytest.raises(ValueError, match="refuses .status 401.*" + KEY):
        ask(Sample("a", "b", None), served[0], default=0.0)


def test_a_server_that_is_not_well_is_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two failures and a score; more failures than retries; nonsense; nobody there."""
    monkeypatch.setattr("megatron_rl.rewards.serving.client.PAUSE", 0.001)
    answers: list[int] = []
    sample, content = Sample("a", "b", None), {"scores": [2.5]}
    with serving(lambda body: (answers.pop(0), content)) as server:
        answers[:] = [503, 500, 200]
        assert ask(sample, server.url, retries=2) == (2.5, 0, 2)
        answers[:] = [503, 500, 200]
        assert ask(sample, server.url, retries=1, default=-1.0) == (-1.0, 1, 1)
        assert answers == [200]
        for nonsense in ({}, {"scores": ["x"]}, {"scores": [float("nan")]}, []):
            answers[:], content = [200, 200], nonsense  # type: ignore[assignment]
            assert ask(sample, server.url, default=0.0) == (0, 1, 0)
            with pytest.raises(ValueError, match=f"the reward model at {server.url} gave"):
                ask(sample, server.url)
    with pytest.raises(ConnectionError, match="gave no score in 2 calls"):
        ask(sample, server.url, retries=1)
