"""fp32 matrix products by torch's MKL and by oneDNN, one thread: forward, input gradient, weight gradient.

python -m benchmarks.products
"""

import time
from collections.abc import Callable
from functools import partial

import torch

from megatron_rl.actor.modules import onednn

SIZES = ((8560, 128, 768), (2048, 128, 512), (1024, 384, 128), (512, 1024, 3072))  # rows, inputs, outputs


def seconds(action: Callable[[], object]) -> float:
    """The shortest of many runs."""
    times = []
    for _ in range(20):
        started = time.perf_counter()
        action()
        times.append(time.perf_counter() - started)
    return min(times)


def main() -> None:
    """Print GFLOP/s and their ratio."""
    torch.set_num_threads(1)
    print(f"used on this processor: {'yes' if onednn.pays() else 'no'}")
    print(f"{'rows x inputs x outputs':>24}{'':>10}{'MKL':>8}{'oneDNN':>8}{'ratio':>7}  GFLOP/s")
    for rows, inputs, outputs in SIZES:
        x, w, grad = torch.randn(rows, inputs), torch.randn(outputs, inputs), torch.randn(rows, outputs)
        work = 2e-9 * rows * inputs * outputs
        for name, a, b in (("forward", x, w.t()), ("input", grad, w), ("weight", grad.t(), x)):
            mkl, own = work / seconds(partial(torch.matmul, a, b)), work / seconds(partial(onednn.product, a, b))
            print(f"{f'{rows} x {inputs} x {outputs}':>24}{name:>10}{mkl:8.0f}{own:8.0f}{own / mkl:7.2f}")


if __name__ == "__main__":
    main()
