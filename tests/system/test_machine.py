"""What GPUs a machine is found to have."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from megatron_rl.system import machine

GIB = 2**30


@pytest.fixture(autouse=True)
def cuda(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A machine with NVIDIA's driver and a CUDA torch, but no nvidia-smi; torch sees two parts of a GPU."""
    monkeypatch.setattr(machine, "installed", lambda _: "2.13.0+cu130")
    monkeypatch.setattr(machine, "DRIVER", tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(sys, "executable", str(_script(tmp_path / "python", f'[ "$1" = -c ] && echo {20 * GIB} {GIB}')))
    machine._own_gpus.cache_clear()
    yield
    machine._own_gpus.cache_clear()


def _script(path: Path, body: str) -> Path:
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)
    return path


def test_nvidia_smi_is_asked_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _script(tmp_path / "nvidia-smi", "echo GPU-a, 81920; echo GPU-b, 40960")
    assert machine.gpus() == (80 * GIB, 40 * GIB)
    machine._own_gpus.cache_clear()
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    assert machine.gpus() == (40 * GIB,)
    machine._own_gpus.cache_clear()
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "MIG-5c1f")  # a part, which is not listed
    assert machine.gpus() == (20 * GIB, GIB)


def test_torch_is_asked_where_it_does_not_know(tmp_path: Path) -> None:
    """A GPU that shares the machine's memory has none of its own to list."""
    _script(tmp_path / "nvidia-smi", "echo 'GPU-a, [N/A]'")
    assert machine.gpus() == (20 * GIB, GIB)


def test_torch_is_asked_without_it(monkeypatch: pytest.MonkeyPatch) -> None:
    assert machine.gpus() == (20 * GIB, GIB)
    machine._own_gpus.cache_clear()
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert machine.gpus() == ()


@pytest.mark.parametrize("missing", ["driver", "cuda", "torch", "answer"])
def test_none(missing: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if missing == "driver":
        monkeypatch.setattr(machine, "DRIVER", tmp_path / "nvidiactl")
    elif missing == "answer":
        _script(tmp_path / "python", "exit 1")
    else:
        monkeypatch.setattr(machine, "installed", lambda _: "2.13.0+cpu" if missing == "cuda" else None)
    assert machine.gpus() == ()
