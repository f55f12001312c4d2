"""The wandb mirror, offline; and that it never asks."""

from pathlib import Path

import pytest

from megatron_rl.config import Config
from megatron_rl.tracking.run_folder import RunFolder
from megatron_rl.tracking.wandb_run import has_key, start_wandb


@pytest.fixture(autouse=True)
def _no_account(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))


def test_a_key_is_found_where_wandb_looks(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert not has_key()
    (tmp_path / "netrc").write_text("machine api.wandb.ai login user password secret\n")
    assert has_key()
    monkeypatch.setenv("WANDB_BASE_URL", "https://wandb.example.org")
    assert not has_key()
    monkeypatch.setenv("WANDB_API_KEY", "secret")
    assert has_key()


def test_off_is_off(tmp_path: Path) -> None:
    config = Config()
    config.tracking.wandb = "off"
    assert start_wandb(RunFolder(tmp_path), config) is None
    assert not (tmp_path / "wandb").exists()


def test_without_a_key_it_records_offline_under_a_lasting_id(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    mirror = start_wandb(run, Config())
    assert mirror is not None
    mirror.log({"rl/step": 0, "rl/reward": 0.5})
    mirror.finish()
    name = run.manifest()["wandb_id"]
    files = list((tmp_path / "wandb").glob(f"offline-run-*-{name}/run-{name}.wandb"))
    assert len(files) == 1 and files[0].stat().st_size > 0
