"""Converting checkpoints against `cp` of the same bytes: python -m benchmarks.convert [--layers N] [--mbridge PYTHON]

A random Qwen3-0.6B-shaped bfloat16 folder (--layers makes it larger) is converted to Megatron's torch_dist and back by
the command line, each time as a process of its own, start and planning included. `cp` copies the same weights, warm in
the page cache, in turn with it; another copy is made and removed before each of them, because memory of a virtual
machine that has been free for a while may have to be fetched from the host again. Python keeps its bytecode, as it does
unless told otherwise. A conversion is on the disk when it ends, which `cp` does not promise, so `cp` is timed with and
without fsync. Every figure is the best of the repeats; memory is the process's peak resident size.

With --mbridge, an interpreter that has megatron-core and mbridge does the same work: mbridge loads the folder into a
model that megatron-core saves, and the other way round.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Sequence
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from megatron_rl.resharding.families import canonical_tensors
from megatron_rl.resharding.folders.safetensors import header_bytes

CONFIG: dict[str, Any] = {
    "architectures": ["Qwen3ForCausalLM"],
    "model_type": "qwen3",
    "hidden_size": 1024,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "intermediate_size": 3072,
    "vocab_size": 151936,
    "num_hidden_layers": 28,
    "tie_word_embeddings": True,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-6,
    "rope_theta": 1000000,
    "max_position_embeddings": 40960,
    "torch_dtype": "bfloat16",
}
CONVERT = [sys.executable, "-m", "megatron_rl.cli", "convert"]
WAYS = ("hf-to-megatron", "megatron-to-hf")
ENVIRONMENT = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
MBRIDGE = Path(__file__).parent / "mbridge_convert.py"


def write_model(folder: Path, layers: int) -> int:
    """A random model in one file, its tensors in alphabetical order as on the hub; its bytes."""
    config = CONFIG | {"num_hidden_layers": layers}
    shapes = {name: spec.shape for name, spec in sorted(canonical_tensors(config).items())}
    numbers = np.random.default_rng(0)
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    with (folder / "model.safetensors").open("wb") as out:
        out.write(header_bytes((name, "BF16", shape) for name, shape in shapes.items())[0])
        for shape in shapes.values():
            left = prod(shape)
            while left:  # little memory here: a child's peak counts its parent's
                count = min(left, 1 << 20)
                values = numbers.standard_normal(count, dtype=np.float32) * np.float32(0.02)
                out.write((values.view(np.uint32) >> 16).astype(np.uint16).tobytes())
                left -= count
        return out.tell()


def timed(command: Sequence[str | Path]) -> tuple[float, float, float]:
    """Wall seconds, CPU seconds and peak resident MB of a process that must succeed; nothing waits for the disk."""
    os.sync()
    started = time.perf_counter()
    process = subprocess.Popen(list(map(str, command)), stdout=subprocess.DEVNULL, env=ENVIRONMENT)
    _, status, usage = os.wait4(process.pid, 0)
    assert status == 0, command
    return time.perf_counter() - started, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1e3


def copy_and_flush(weights: Path, copy: Path) -> list[tuple[float, float, float]]:
    """Figures of cp, and of cp with fsync after it."""
    wall, cpu, memory = timed(["cp", weights, copy])
    started = time.perf_counter()
    with copy.open("rb") as file:
        os.fsync(file.fileno())
    flushed = time.perf_counter() - started
    copy.unlink()
    return [(wall, cpu, memory), (wall + flushed, cpu, memory)]


def measure(folder: Path, repeats: int, sizes: Sequence[str]) -> dict[tuple[str, bool], tuple[float, ...]]:
    """(what, whether it waits for the disk) -> wall seconds, CPU seconds, peak MB."""
    model, megatron, back = (folder / name for name in ("model", "megatron", "back"))
    weights = model / "model.safetensors"
    found: dict[tuple[str, bool], list[tuple[float, ...]]] = defaultdict(list)
    for sync in (False, True) * repeats:
        copy_and_flush(weights, folder / "copy")
        for disk, figures in zip((False, True), copy_and_flush(weights, folder / "copy"), strict=True):
            found["cp", disk].append(figures)
        options = [] if sync else ["--no-sync"]
        for way, source, target, chosen in ((WAYS[0], model, megatron, sizes), (WAYS[1], megatron, back, [])):
            copy_and_flush(weights, folder / "copy")
            found[way, sync].append(timed([*CONVERT, way, source, target, *chosen, *options]))
        timed([*CONVERT, "verify", model, back])  # it fails when they differ
        shutil.rmtree(megatron)
        shutil.rmtree(back)
    return {key: tuple(map(min, zip(*figures, strict=True))) for key, figures in found.items()}


def peer(python: str, folder: Path, repeats: int) -> dict[str, float]:
    """mbridge's seconds for either way, without imports and building the model."""
    found: dict[str, list[float]] = {}
    for _ in range(repeats):
        done = subprocess.run(
            [python, MBRIDGE, folder / "model", folder], capture_output=True, encoding="utf-8", check=True
        )
        for name, seconds in json.loads(done.stdout.splitlines()[-1]).items():
            found.setdefault(name, []).append(seconds)
        for name in ("peer_megatron", "peer_back"):
            shutil.rmtree(folder / name)
    return {name: min(seconds) for name, seconds in found.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=28, help="28 is Qwen3-0.6B")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--folder", type=Path, help="where to work (four times the model's size)")
    parser.add_argument("--mbridge", metavar="PYTHON", help="interpreter with megatron-core and mbridge")
    parser.add_argument("--tensor-parallel", default="1", metavar="N", help="of the Megatron checkpoint")
    options = parser.parse_args()
    sizes = ["--tensor-parallel", options.tensor_parallel]
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        folder = Path(name)
        size = write_model(folder / "model", options.layers)
        os.sync()
        print(f"{size / 1e6:.0f} MB, {len(os.sched_getaffinity(0))} CPUs, tensor parallel {options.tensor_parallel}")
        found = measure(folder, options.repeats, sizes)
        for sync, text in ((False, "without waiting for the disk"), (True, "flushed to the disk")):
            floor, cpu, _ = found["cp", sync]
            print(f"{text}\n  {'cp':14} {floor:6.2f} s {cpu:6.2f} CPU-s")
            for way in WAYS:
                wall, busy, memory = found[way, sync]
                print(f"  {way} {wall:6.2f} s {busy:6.2f} CPU-s  peak {memory:4.0f} MB  {wall / floor:5.2f} x cp")
        if options.mbridge:
            for way, seconds in peer(options.mbridge, folder, options.repeats).items():
                print(f"{way}: mbridge {seconds:.2f} s, {seconds / found[way, True][0]:.2f} x ours")


if __name__ == "__main__":
    main()
