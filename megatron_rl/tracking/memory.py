"""Memory of this process, as the metrics of a step show it."""

import sys

import psutil


def memory() -> dict[str, float]:
    """``memory/host_gb`` now; on a GPU the most of it allocated since the last call, ``memory/gpu_gb`` (10^9 bytes)."""
    found = {"memory/host_gb": psutil.Process().memory_info().rss / 1e9}
    torch = sys.modules.get("torch")  # a process that has not imported it has nothing there
    if torch and torch.cuda.is_available() and torch.cuda.is_initialized():
        found["memory/gpu_gb"] = torch.cuda.max_memory_allocated() / 1e9
        torch.cuda.reset_peak_memory_stats()
    return found
