"""The algorithm of one's own that docs/algorithms.md shows."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch

from megatron_rl.algorithms.algorithm import CreditBatch
from megatron_rl.algorithms.check import check_algorithm
from megatron_rl.algorithms.config import AlgorithmConfig
from megatron_rl.algorithms.published import PUBLISHED
from megatron_rl.algorithms.registry import make_algorithm
from megatron_rl.errors import InputError
from tests.algorithms.test_credit import Tokens
from tests.conftest import ROOT

PAGE = (ROOT / "docs" / "algorithms.md").read_text(encoding="utf-8")


def test_the_class_of_the_documentation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is found from the folder that the command is called in, checked, and gives the credit that it says."""
    [code] = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    assert len(code.splitlines()) < 40
    (tmp_path / "my_algorithm.py").write_text(code)
    monkeypatch.chdir(tmp_path)
    config = AlgorithmConfig(name="my_algorithm.BestOfGroup", kl_coef=0.1)
    assert check_algorithm(config) == []
    algorithm = make_algorithm(config)
    assert algorithm.needs == {"reference"}
    batch = Tokens(torch.tensor([2, 1, 1, 3]), torch.arange(4))
    rewards = np.array([0.0, 1.0, 0.5, 0.5])
    assert algorithm.credit(CreditBatch([batch], rewards, np.array([0, 0, 1, 1]))).tolist() == [0, 1, 0, 0]
    assert batch.columns["advantage"].tolist() == [0, 0, 1, 0, 0, 0, 0]
    logprobs = torch.full((7,), -1.0, requires_grad=True)
    batch.columns |= {"old_logprobs": logprobs.detach(), "ref_logprobs": logprobs.detach()}
    loss, metrics = algorithm.loss(batch, logprobs, torch.ones(7))
    loss.backward()
    assert logprobs.grad is not None and logprobs.grad.tolist() == [0, 0, -1, 0, 0, 0, 0]
    assert metrics["entropy"].item() == 7.0


def test_what_is_no_algorithm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "half.py").write_text("class Half:\n    def __init__(self, config): self.needs = frozenset()\n")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=r"algorithm.name='half.Half' makes a Half without credit, loss\."):
        make_algorithm(AlgorithmConfig(name="half.Half"))
    [said] = check_algorithm(AlgorithmConfig(name="gprpo"))
    assert said.startswith("algorithm.name='gprpo' is unknown; did you mean grpo?") and "cispo, ppo" in said


def test_every_algorithm_is_in_the_table() -> None:
    assert re.findall(r"^\| `(\w+)` \|", PAGE, re.MULTILINE) == list(PUBLISHED)
