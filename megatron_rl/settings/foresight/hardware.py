"""What a run computes on: this machine, or one that is elsewhere, by name. Imports no torch."""

import os
import time
from dataclasses import dataclass, replace

import numpy as np

from megatron_rl.errors import InputError
from megatron_rl.system import machine


@dataclass(frozen=True)
class Hardware:
    """``nodes`` machines of ``gpus`` GPUs each, or of CPUs alone. Rates are those of one GPU, or of one rank's CPUs."""

    name: str
    memory: int  # bytes of a GPU, as nvidia-smi shows them
    flops: float  # FLOP/s of dense bfloat16 products; of a CPU, what a product was measured to do; 0: not known
    flops_fp8: float = 0.0  # 0: it has none
    flops_fp32: float = 0.0  # without TF32
    bandwidth: float = 0.0  # bytes/s of its own memory
    near: float = 0.0  # bytes/s in one direction to another GPU of the same node
    far: float = 0.0  # bytes/s in one direction to another node
    host: float = 0.0  # bytes/s in one direction to the node's memory
    capability: int = 0  # CUDA's compute capability x 10
    source: str = ""
    nodes: int = 1
    gpus: int = 0  # of a node; 0: ranks compute on CPUs

    @property
    def total(self) -> int:
        """GPUs of all nodes."""
        return self.nodes * self.gpus

    def rate(self, dtype: str) -> float:
        """FLOP/s of dense products in one of the model's dtypes."""
        return self.flops_fp32 if dtype == "float32" and self.gpus else self.flops


_PCIE4, _PCIE5, _HDR, _NDR, _ETHERNET = 25e9, 50e9, 25e9, 50e9, 12.5e9  # what copies reach; ports of 200, 400, 100 Gb/s
_MIB = 1 << 20
# Dense peaks, without sparsity, as NVIDIA's data sheets have them; NVLink in one direction; one network port a GPU.
GPUS = {
    "a100-40": Hardware(
        "A100 40 GB", 40960 * _MIB, 312e12, 0, 19.5e12, 1.555e12, 300e9, _HDR, _PCIE4, 80, "NVIDIA A100 data sheet, SXM"
    ),
    "a100-80": Hardware(
        "A100 80 GB", 81920 * _MIB, 312e12, 0, 19.5e12, 2.039e12, 300e9, _HDR, _PCIE4, 80, "NVIDIA A100 data sheet, SXM"
    ),
    "h100": Hardware(
        *("H100", 81559 * _MIB, 989e12, 1979e12, 67e12, 3.35e12, 450e9, _NDR, _PCIE5, 90),
        "NVIDIA H100 data sheet, SXM; DGX H100: one 400 Gb/s port a GPU",
    ),
    "h100-nvl": Hardware(
        *("H100 NVL", 95830 * _MIB, 835e12, 1671e12, 60e12, 3.9e12, 300e9, _NDR, _PCIE5, 90),
        "NVIDIA H100 NVL data sheet; bridges between two GPUs",
    ),
    "h100-pcie": Hardware(
        *("H100 PCIe", 81559 * _MIB, 756e12, 1513e12, 51e12, 2.0e12, _PCIE5, _NDR, _PCIE5, 90),
        "NVIDIA H100 data sheet, PCIe, without bridges",
    ),
    "h200": Hardware(
        *("H200", 143771 * _MIB, 989e12, 1979e12, 67e12, 4.8e12, 450e9, _NDR, _PCIE5, 90),
        "NVIDIA H200 data sheet, SXM",
    ),
    "b200": Hardware(
        *("B200", 183359 * _MIB, 2250e12, 4500e12, 75e12, 7.7e12, 900e9, _NDR, _PCIE5, 100),
        "NVIDIA DGX B200 data sheet, an eighth of it",
    ),
    "gb200": Hardware(
        *("GB200", 189471 * _MIB, 2500e12, 5000e12, 80e12, 8.0e12, 900e9, _NDR, 200e9, 100),
        "NVIDIA GB200 NVL72 data sheet, a 72nd of it",
    ),
    "l40s": Hardware(
        *("L40S", 46068 * _MIB, 362e12, 733e12, 91.6e12, 864e9, _PCIE4, _ETHERNET, _PCIE4, 89),
        "NVIDIA L40S data sheet",
    ),
    "l4": Hardware(
        *("L4", 23034 * _MIB, 121e12, 242e12, 30.3e12, 300e9, _PCIE4 / 2, _ETHERNET, _PCIE4 / 2, 89),
        "NVIDIA L4 data sheet",
    ),
    "rtx4090": Hardware(
        *("RTX 4090", 24564 * _MIB, 165e12, 330e12, 82.6e12, 1.008e12, _PCIE4, _ETHERNET, _PCIE4, 89),
        "NVIDIA Ada GPU architecture paper, FP32 accumulation",
    ),
}
_CPU = "cpu"
_MEASURED = 0.1  # seconds of processor time, which some systems count in hundredths
_COPY = 10e9  # bytes/s at which one thread copies memory; assumed


def named(gpu: str, nodes: int = 1, gpus: int = 1) -> Hardware:
    """Machines with a GPU of ``GPUS``, in any spelling. Raises InputError for another, or for impossible numbers."""
    key = "".join(c for c in gpu.lower() if c.isalnum())
    known = {"".join(c for c in name if c.isalnum()): found for name, found in GPUS.items()}
    known |= {"a100": GPUS["a100-80"], "4090": GPUS["rtx4090"]}
    if key == _CPU:
        return replace(on_cpu(measured_flops()), nodes=nodes)
    if key not in known:
        raise InputError(f"--gpu {gpu} is not known; it can be {', '.join(GPUS)} or {_CPU}.")
    return replace(known[key], nodes=nodes, gpus=gpus)


def of_name(name: str) -> Hardware | None:
    """The GPU that a driver calls so ("NVIDIA H100 80GB HBM3"); None for one that is not known."""
    by_length = sorted(GPUS.values(), key=lambda gpu: -len(gpu.name))  # H100 NVL before H100, GB200 before B200
    found = [gpu for gpu in by_length if all(word in name for word in gpu.name.split()[:2] if word not in ("40", "80"))]
    if found and found[0].name.startswith("A100"):
        return GPUS["a100-40" if "40GB" in name.replace(" ", "") else "a100-80"]
    return found[0] if found else None


def this_machine(nodes: int = 1) -> Hardware:
    """As many machines like this one. Of a GPU that is not known there are memory, number and capability only."""
    gpus = machine.gpus()
    if not gpus:
        return replace(on_cpu(measured_flops()), nodes=nodes)
    name = machine.gpu_name()
    found = of_name(name) or Hardware(name or "an unknown GPU", 0, 0.0, capability=machine.gpu_capability())
    return replace(found, memory=min(gpus), nodes=nodes, gpus=len(gpus))


def on_cpu(flops: float, threads: int = 1) -> Hardware:
    """One machine whose ranks compute on CPUs, at so many FLOP/s each."""
    wanted, cores = os.getloadavg()[0], machine.cores()
    beside = f" (while {wanted:.0f} processes want {cores} cores)" if wanted >= cores + 1 else ""
    return Hardware(
        "CPU",
        *(machine.memory(), flops, 0.0, flops),
        *(_COPY * threads, _COPY, 1.25e9, _COPY),
        source=f"products measured{beside}; assumed: memory copied at 10 GB/s a thread, a network of 10 Gb/s",
    )


def measured_flops() -> float:
    """FLOP/s that one thread of this machine reaches in products of float32 matrices by numpy.

    Of processor time, which other programs' load leaves alone, over all the threads that numpy takes.
    """
    side, count = 512, 0
    factor = np.ones((side, side), np.float32)
    factor @ factor
    started = time.process_time()
    while (spent := time.process_time() - started) < _MEASURED or not count:
        factor @ factor
        count += 1
    return 2 * side**3 * count / spent
