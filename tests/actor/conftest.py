"""Small random models, one of each kind a file of tests."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.actor.models import write_model


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dense one."""
    folder = tmp_path_factory.mktemp("model")
    write_model("qwen3", folder)
    return folder


@pytest.fixture(scope="module")
def mixture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A mixture of experts."""
    folder = tmp_path_factory.mktemp("mixture")
    write_model("qwen3_moe", folder)
    return folder


@pytest.fixture(scope="session")
def run_ranks(forked_ranks: Callable[..., None]) -> Callable[..., None]:
    return forked_ranks
