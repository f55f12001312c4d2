"""Whose fused kernels Megatron-Core finds here: Transformer Engine's, NVIDIA's apex's, or none. Imports no torch.

Megatron takes whatever is importable as ``apex`` for NVIDIA's. PyPI has another package of that name, and a folder
``apex`` on the path will do.
"""

import functools
import importlib.util
import os
import subprocess
import sys
from pathlib import Path

from megatron_rl.system import machine

_IMPORT = "import transformer_engine.pytorch"
_CUDNN = "CUDNN_HOME"  # where Transformer Engine looks first
_APEX = "https://github.com/NVIDIA/apex"


def found() -> str:
    """In words, for a description of this machine."""
    if version := machine.installed("transformer-engine"):
        return f"Transformer Engine {version}"
    return "NVIDIA's apex" if has_apex() else "torch's own: neither Transformer Engine nor NVIDIA's apex is installed"


def use_torchs_cudnn() -> None:
    """Have Transformer Engine take the cuDNN that was installed with torch, before it is imported.

    It takes a system's first, beside which torch's parts of another version are found: then neither works, and with
    them its attention (``_load_cuda_library`` in ``transformer_engine/common/__init__.py``). A value of the
    environment stays; nothing is set for a torch that uses the system's.
    """
    try:
        spec = importlib.util.find_spec("nvidia.cudnn")
    except ModuleNotFoundError:  # no package of NVIDIA's at all
        return
    for place in spec.submodule_search_locations or () if spec else ():
        if list(Path(place, "lib").glob("libcudnn.so*")):
            os.environ.setdefault(_CUDNN, str(place))


def has_apex() -> bool:
    """Whether NVIDIA's apex is importable, with its kernels."""
    folder = _folder("apex")
    return folder is not None and _is_nvidias(folder) and importlib.util.find_spec("amp_C") is not None


def apex_problems() -> list[str]:
    """What is importable as apex and is not NVIDIA's, or lacks its kernels."""
    if (folder := _folder("apex")) is None:
        return []
    if not _is_nvidias(folder):
        what = "the package apex of PyPI" if machine.installed("apex") else f"the folder {folder}"
        cure = "pip uninstall apex" if machine.installed("apex") else "rename it, or take its parent off PYTHONPATH"
        return [f"{what[0].upper()}{what[1:]} is not NVIDIA's apex, for which Megatron-Core takes it: {cure}."]
    if importlib.util.find_spec("amp_C") is None and machine.installed("transformer-engine") is None:
        return [
            f"NVIDIA's apex in {folder} was installed without its kernels, which Megatron-Core calls: build it with "
            f"--cpp_ext and --cuda_ext ({_APEX}), or pip uninstall apex."
        ]
    return []


@functools.cache
def transformer_engine_problems() -> tuple[str, ...]:
    """Why the Transformer Engine that is installed cannot be imported; tried in a process of its own, for seconds."""
    if machine.installed("transformer-engine") is None:
        return ()
    use_torchs_cudnn()
    tried = subprocess.run([sys.executable, "-c", _IMPORT], capture_output=True, encoding="utf-8", errors="replace")
    if tried.returncode == 0:
        return ()
    last = [line for line in tried.stderr.splitlines() if line.strip()][-1:] or ["it says nothing"]
    return (unusable(last[0]),)


def unusable(said: str) -> str:
    """A sentence about a Transformer Engine that an import failed for with these words."""
    torch, version = machine.installed("torch"), machine.installed("transformer-engine")
    built = "undefined symbol" in said or "cannot open shared object" in said
    why = f"it was built for another torch than {torch}" if built else "its import fails"
    return (
        f"Transformer Engine {version} is installed and cannot be used, {why} ({said.strip()[:200]}): build it anew "
        '(pip install --force-reinstall --no-build-isolation --no-cache-dir "transformer_engine[pytorch]"), or pip '
        "uninstall transformer-engine to train with Megatron's own layers, without FP8."
    )


def _folder(package: str) -> Path | None:
    """Where a package or a mere folder is that an import would find."""
    spec = importlib.util.find_spec(package)
    places = list(spec.submodule_search_locations or ()) if spec else []
    if places:
        return Path(places[0])
    return Path(spec.origin) if spec and spec.origin else None


def _is_nvidias(folder: Path) -> bool:
    return (folder / "optimizers" / "fused_adam.py").is_file() and (folder / "multi_tensor_apply").is_dir()
