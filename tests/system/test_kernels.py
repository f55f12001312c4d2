"""Whose kernels Megatron-Core would find: packages and folders that are really there."""

import os
import sys
from pathlib import Path

import pytest

from megatron_rl.system import kernels, machine


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder on the path of imports."""
    monkeypatch.syspath_prepend(str(tmp_path))
    sys.path_importer_cache.clear()
    return tmp_path


def nvidias(place: Path) -> Path:
    for part in ("optimizers", "multi_tensor_apply"):
        (place / "apex" / part).mkdir(parents=True)
        (place / "apex" / part / "__init__.py").touch()
    (place / "apex" / "__init__.py").touch()
    (place / "apex" / "optimizers" / "fused_adam.py").touch()
    return place / "apex"


def test_without_any() -> None:
    assert kernels.apex_problems() == [] and not kernels.has_apex()
    assert kernels.found().startswith("torch's own: neither")
    assert kernels.transformer_engine_problems() == ()


def test_a_stray_folder(place: Path) -> None:
    (place / "apex").mkdir()
    (said,) = kernels.apex_problems()
    assert said == (
        f"The folder {place}/apex is not NVIDIA's apex, for which Megatron-Core takes it: rename it, or take its "
        "parent off PYTHONPATH."
    )
    assert not kernels.has_apex()


def test_the_package_of_that_name(place: Path) -> None:
    (place / "apex").mkdir()
    (place / "apex" / "__init__.py").touch()
    (place / "apex-0.9.10.dist-info").mkdir()
    (place / "apex-0.9.10.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: apex\nVersion: 0.9.10\n")
    (said,) = kernels.apex_problems()
    assert said.startswith("The package apex of PyPI is not NVIDIA's apex") and said.endswith("pip uninstall apex.")


def test_nvidias_with_and_without_its_kernels(place: Path) -> None:
    nvidias(place)
    (said,) = kernels.apex_problems()
    assert "was installed without its kernels" in said and not kernels.has_apex()
    (place / "amp_C.py").touch()
    assert kernels.apex_problems() == [] and kernels.has_apex() and kernels.found() == "NVIDIA's apex"


@pytest.mark.parametrize(
    ("error", "why"),
    [
        ("ImportError: /x/transformer_engine_torch.so: undefined symbol: _ZN3c10", "it was built for another torch"),
        ("ImportError: libcudnn.so.9: cannot open shared object file", "it was built for another torch"),
        ("RuntimeError: no driver", "its import fails"),
    ],
)
def test_a_transformer_engine_that_cannot_be_imported(
    place: Path, monkeypatch: pytest.MonkeyPatch, error: str, why: str
) -> None:
    kind, _, text = error.partition(": ")
    (place / "transformer_engine").mkdir()
    (place / "transformer_engine" / "__init__.py").write_text(f"raise {kind}({text!r})\n")
    monkeypatch.setenv("PYTHONPATH", str(place))
    real = machine.installed
    monkeypatch.setattr(machine, "installed", lambda name: "2.20.2" if name == "transformer-engine" else real(name))
    kernels.transformer_engine_problems.cache_clear()
    (said,) = kernels.transformer_engine_problems()
    kernels.transformer_engine_problems.cache_clear()
    assert said.startswith("Transformer Engine 2.20.2 is installed and cannot be used") and why in said and text in said


def test_transformer_engine_is_to_take_the_cudnn_beside_torch(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDNN_HOME", "")  # so that it is put back
    monkeypatch.delenv("CUDNN_HOME")
    library = place / "nvidia" / "cudnn" / "lib"
    library.mkdir(parents=True)
    kernels.use_torchs_cudnn()  # none was installed with torch: the system's
    assert "CUDNN_HOME" not in os.environ
    (library / "libcudnn.so.9").touch()
    kernels.use_torchs_cudnn()
    assert os.environ["CUDNN_HOME"] == str(library.parent)
    monkeypatch.setenv("CUDNN_HOME", "/opt/mine")
    kernels.use_torchs_cudnn()
    assert os.environ["CUDNN_HOME"] == "/opt/mine"
