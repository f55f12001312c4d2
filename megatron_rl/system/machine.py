"""What this machine has. Imports no torch."""

import contextlib
import functools
import ipaddress
import os
import platform
import random
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextvars import ContextVar
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import psutil
from packaging.specifiers import SpecifierSet

from megatron_rl.errors import InputError

SUPPORTED = {
    "torch": ">=2.11,<2.14",
    "megatron-core": ">=0.16.1,!=0.17.*,!=0.18.*,<0.20",  # those that the suite passes with
    "transformers": ">=5.12,<6",
}
RECORDED = (*SUPPORTED, "omegaconf", "datasets", "safetensors", "numpy", "xxhash", "transformer-engine", "sglang")
DRIVER = Path("/dev/nvidiactl")  # there where NVIDIA's driver is
SHARED = Path("/dev/shm")  # where memory has a name by which processes can share it
# For the ranks and engines of a run: the C library keeps what is freed, or else a step's rollouts, and on a CPU its
# activations, are faulted in again page by page: a third of rank 0's time for a batch of 30 million tokens, a tenth of
# a small step on a CPU. 32 MiB is the most that it takes for the first.
KEPT = {"MALLOC_MMAP_THRESHOLD_": 32 << 20, "MALLOC_TRIM_THRESHOLD_": 1 << 40}
_ASK_TORCH = """
import torch
print(*(torch.cuda.get_device_properties(i).total_memory for i in range(torch.cuda.device_count())))
"""


_elsewhere: ContextVar[tuple[int, ...] | None] = ContextVar("the GPUs of a machine that is elsewhere", default=None)


@contextlib.contextmanager
def standing_for(others: tuple[int, ...]) -> Iterator[None]:
    """Inside, ``gpus`` are those of a machine that is elsewhere, for which a run is checked."""
    token = _elsewhere.set(others)
    try:
        yield
    finally:
        _elsewhere.reset(token)


def elsewhere() -> bool:
    """Whether it is another machine that is asked about: of this one's memory, disk and kernels nothing follows."""
    return _elsewhere.get() is not None


def gpus() -> tuple[int, ...]:
    """Memory in bytes of each GPU that a process started here computes on; empty without one or with a CPU torch."""
    others = _elsewhere.get()
    return _own_gpus() if others is None else others


@functools.cache
def _own_gpus() -> tuple[int, ...]:
    if "+cpu" in (installed("torch") or "+cpu"):
        return ()
    return _listed_gpus() or _found_gpus()


def _listed_gpus() -> tuple[int, ...]:
    """As nvidia-smi says, at once."""
    if not shutil.which("nvidia-smi"):
        return ()
    query = ["nvidia-smi", "--query-gpu=uuid,memory.total", "--format=csv,noheader,nounits"]
    answer = subprocess.run(query, capture_output=True, encoding="utf-8", errors="replace")
    found = [line.split(", ") for line in answer.stdout.splitlines()] if answer.returncode == 0 else []
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        chosen = [name.strip() for name in visible.split(",") if name.strip()]
        found = [gpu for i, gpu in enumerate(found) if str(i) in chosen or gpu[0].startswith(tuple(chosen))]
    sizes = [gpu[-1] for gpu in found]
    return tuple(int(size) * 2**20 for size in sizes) if all(map(str.isdecimal, sizes)) else ()  # [N/A]: shared memory


def gpu_name() -> str:
    """What the driver calls the first of this machine's GPUs; empty where nvidia-smi does not say."""
    return _first_gpu("name")


def gpu_capability() -> int:
    """CUDA's compute capability of the first of this machine's GPUs, x 10; 0 where nvidia-smi does not say."""
    whole, _, part = _first_gpu("compute_cap").partition(".")
    return 10 * int(whole) + int(part) if whole.isdecimal() and part.isdecimal() else 0


def _first_gpu(field: str) -> str:
    if not shutil.which("nvidia-smi"):
        return ""
    query = ["nvidia-smi", f"--query-gpu={field}", "--format=csv,noheader"]
    answer = subprocess.run(query, capture_output=True, encoding="utf-8", errors="replace")
    return answer.stdout.split("\n")[0].strip() if answer.returncode == 0 else ""


def cores() -> int:
    """CPU cores that this process may use."""
    return len(os.sched_getaffinity(0))


def memory() -> int:
    """Bytes of this machine's memory."""
    return psutil.virtual_memory().total


def _found_gpus() -> tuple[int, ...]:
    """As torch says: a container may lack nvidia-smi, which does not list the parts of a GPU (MIG) either."""
    if not DRIVER.exists() or os.environ.get("CUDA_VISIBLE_DEVICES") == "":
        return ()
    answer = subprocess.run([sys.executable, "-c", _ASK_TORCH], capture_output=True, encoding="utf-8", errors="replace")
    return tuple(map(int, answer.stdout.split())) if answer.returncode == 0 else ()


def mkl_is_slow() -> bool:
    """Whether this processor has AVX-512 that MKL, by which torch multiplies fp32, leaves unused: it is not Intel's."""
    information = Path("/proc/cpuinfo")
    text = information.read_text(encoding="utf-8", errors="replace") if information.exists() else ""
    return "avx512f" in text and "GenuineIntel" not in text


def shared_memory() -> int:
    """Bytes that are free where processes share memory by name; 0 where there is no such place."""
    return shutil.disk_usage(SHARED).free if SHARED.is_dir() and os.access(SHARED, os.W_OK | os.X_OK) else 0


def shared_memory_problems() -> list[str]:
    """Why processes cannot share memory by name here, which libraries of trainers and engines do."""
    if SHARED.is_dir():
        return []
    return [
        f"This machine has no {SHARED}, where the processes that write checkpoints, and those of an SGLang server, "
        "share memory: mount it (a container gets it by --shm-size or --ipc=host)."
    ]


def installed(package: str) -> str | None:
    """The installed version of a package; None without one."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def package_problems() -> list[str]:
    """One message per package that is missing or of a version that does not work, with what to install."""
    found = []
    for name, specifier in SUPPORTED.items():
        present = installed(name)
        if present is None:
            found.append(f'The package {name} is not installed: pip install "{name}{specifier}".')
        elif not SpecifierSet(specifier).contains(present, prereleases=True):
            found.append(f'{name} {present} is installed, which is not supported: pip install "{name}{specifier}".')
    return found


def free_port(address: str = "127.0.0.1") -> int:
    """A TCP port at this machine's ``address`` that nobody listens on; raises InputError when there is none."""
    try:
        with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET) as listener:
            listener.bind((address, 0))
            return int(listener.getsockname()[1])
    except OSError as error:
        raise InputError(
            f"There is no free port on {address} for processes to meet at ({error.strerror}): end processes that hold "
            "ports, or widen net.ipv4.ip_local_port_range."
        ) from None


def free_low_port(address: str = "127.0.0.1", first: int | None = None) -> int:
    """As ``free_port``, of 20000 to 29999: below those that connections are given, and with room for others that a
    server counts from its own (SGLang 0.5.13: 10000 more). The first that is free from ``first`` on, or any."""
    some = range(20000, 30000)
    tried = random.sample(some, 200) if first is None else [some[(first + i) % len(some)] for i in range(200)]
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    for port in tried:
        with socket.socket(family) as listener, contextlib.suppress(OSError):
            listener.bind((address, port))
            return port
    raise InputError(f"There is no free port of 20000 to 29999 on {address} for a server: end what holds them.")


def place() -> str:
    """What processes have in common that can read each other's memory: the system's boot, and the namespaces of
    processes and of shared memory, which containers have of their own."""
    boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="utf-8").strip()
    return boot + os.readlink("/proc/self/ns/pid") + os.readlink("/proc/self/ns/ipc")


def address_towards(host: str) -> str:
    """This machine's own address on the way to a host. Raises InputError for a name that is unknown or no way."""
    try:
        family, _, _, _, there = socket.getaddrinfo(host, 9, type=socket.SOCK_DGRAM)[0]
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.connect(there)  # sends nothing
            return str(probe.getsockname()[0])
    except OSError as error:
        raise InputError(f"There is no way from this machine to the host {host} ({error.strerror}).") from None


def own_address() -> str:
    """This machine's address on its way out; loopback when it has no network."""
    for nobody in ("192.0.2.1", "2001:db8::1"):  # for documentation only (RFC 5737, 3849): nothing is sent there
        with contextlib.suppress(InputError):
            return address_towards(nobody)
    return "127.0.0.1"


def interface_address(name: str) -> str | None:
    """The address of a network interface, IPv4 where it has one; None for one that is not here or has none."""
    found = {a.family: a.address for a in psutil.net_if_addrs().get(name, []) if not a.address.startswith("fe80")}
    return found.get(socket.AF_INET, found.get(socket.AF_INET6))


def interface_of(address: str) -> str | None:
    """The network interface that has an address of this machine."""
    for name, found in psutil.net_if_addrs().items():
        if any(each.address.partition("%")[0] == address for each in found):
            return name
    return None


def is_here(host: str) -> bool:
    """Whether a host is this machine. Raises InputError for a name that is unknown."""
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except OSError as error:
        raise InputError(f"the host {host} is not known here ({error.strerror}).") from None
    return is_address(str(found[0][4][0]))


def is_address(address: str) -> bool:
    """Whether this machine has an IP address."""
    try:
        parsed = ipaddress.ip_address(address)
        with socket.socket(socket.AF_INET6 if parsed.version == 6 else socket.AF_INET) as probe:
            probe.bind((address, 0))
        return not parsed.is_unspecified
    except (OSError, ValueError):
        return False


def facts() -> dict[str, Any]:
    """For the manifest: versions and hardware; no names."""
    return {
        "python": platform.python_version(),
        "versions": {name: found for name in RECORDED if (found := installed(name))},
        "system": f"{platform.system()} {platform.machine()}",
        "cores": cores(),
        "gpus": len(gpus()),
    }
