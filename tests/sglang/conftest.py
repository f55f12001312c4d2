"""Real SGLang servers on this machine, and a trainer whose ranks live in this process."""

import json
import os
import secrets
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedModel

from megatron_rl.config import Config
from megatron_rl.resharding.layout import ParallelSizes
from megatron_rl.rollout.sglang.pool import SGLangEngines
from megatron_rl.system.channel import KEY
from tests.actor.models import write_model
from tests.conftest import PATIENCE
from tests.rollout.embedded.conftest import Trainer

PYTHONPATH = "PYTHONPATH"


class ServedTrainer(Trainer):
    """As ``Trainer``; the plan's destination is what the engine says about itself."""

    def attach(self, engine: SGLangEngines) -> None:
        from megatron_rl.resharding.plan import make_plan

        attached = engine.attach(self.source())
        self.plan = make_plan(self.layout, attached.layout)
        assert self.plan.hash == attached.plan_hash

    def swap(self, engine: SGLangEngines, version: int) -> None:
        engine.begin_swap(version)
        report = engine.finish_swap(version, self.hashes())
        assert (report.version, report.plan_hash) == (version, self.plan.hash)


@pytest.fixture(scope="session", autouse=True)
def importable() -> None:
    """The servers' workers import this checkout."""
    root = str(Path(__file__).parents[2])
    os.environ[PYTHONPATH] = os.pathsep.join(filter(None, [root, os.environ.get(PYTHONPATH)]))


@pytest.fixture(scope="session")
def key() -> bytes:
    key = secrets.token_bytes(16)
    os.environ[KEY] = key.hex()
    return key


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Path, PreTrainedModel]]:
    """A tiny random model by its name in tests/actor/models.py: its folder and the model."""
    made: dict[str, tuple[Path, PreTrainedModel]] = {}

    def get(name: str) -> tuple[Path, PreTrainedModel]:
        if name not in made:
            folder = tmp_path_factory.mktemp(name)
            made[name] = folder, write_model(name, folder)  # type: ignore[assignment]
        return made[name]

    return get


def configuration(engines: int = 1, **options: Any) -> Config:
    """For the tests' models."""
    config = Config()
    config.model.dtype = "float32"
    config.data.max_prompt_tokens, config.rollout.max_new_tokens, config.rollout.max_running = 64, 64, 32
    config.rollout.engine, config.rollout.engines, config.rollout.sglang.start_seconds = "sglang", engines, PATIENCE
    for name, value in options.items():
        assert hasattr(config.rollout.sglang, name)
        setattr(config.rollout.sglang, name, value)
    return config


@pytest.fixture(scope="session")
def start(
    key: bytes, model_folder: Callable[[str], tuple[Path, PreTrainedModel]], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Callable[..., SGLangEngines]]:
    """start(model, engines=1, **options of rollout.sglang): engines that end with the tests."""
    started: list[SGLangEngines] = []

    def run(model: str, engines: int = 1, **options: object) -> SGLangEngines:
        folder, _ = model_folder(model)
        engine = SGLangEngines(configuration(engines, **options).served(), folder, key, tmp_path_factory.mktemp("logs"))
        started.append(engine)
        return engine

    yield run
    for engine in started:
        engine.stop()


@pytest.fixture(scope="session")
def dense(start: Callable[..., SGLangEngines]) -> SGLangEngines:
    """One engine with one worker, shared by the tests that leave it able to serve."""
    return start("qwen3")


@pytest.fixture(scope="session")
def trainer(model_folder: Callable[[str], tuple[Path, PreTrainedModel]]) -> ServedTrainer:
    """TP2 x PP2 ranks that own the dense model."""
    return ServedTrainer(model_folder("qwen3")[1], ParallelSizes(tensor=2, pipeline=2))


def read_config(folder: Path) -> dict[str, object]:
    content: dict[str, object] = json.loads((folder / "config.json").read_text())
    return content
