"""Ranks that are forked."""

from collections.abc import Callable

import pytest


@pytest.fixture(scope="session")
def run_ranks(forked_ranks: Callable[..., None]) -> Callable[..., None]:
    return forked_ranks
