"""Run by Python before anything else in servers on a CPU: what SGLang's imports expect of CUDA builds.

torchvision's build on PyPI is CUDA's; on a CPU its own library does not load, and its Python part then misses two
operators that it describes.

The memory in which a server keeps the experts of every token is registered with CUDA's runtime; without one there is
nothing to register it with.

SGLang draws by the seeds of requests in its deterministic mode alone, whose kernels are for GPUs. The draws themselves
are not: here they follow the seeds always.
"""

import importlib.util
import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import torch

_torchvision = torch.library.Library("torchvision", "DEF")
_torchvision.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
_torchvision.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")

torch.cuda.cudart = lambda: SimpleNamespace(cudaHostRegister=lambda *_: 0, cudaHostUnregister=lambda *_: 0)

BATCHES = "sglang.srt.sampling.sampling_batch_info"


class _Seeded:
    """Finds the module ``BATCHES``, and has its batches carry their requests' seeds."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        if name != BATCHES:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        assert spec is not None and spec.loader is not None
        load = spec.loader.exec_module

        def load_and_change(module: ModuleType) -> None:
            load(module)
            info = module.SamplingBatchInfo
            made = info.from_schedule_batch

            def from_schedule_batch(batch: Any, vocab_size: int) -> Any:
                found = made(batch, vocab_size)
                seeds = [request.sampling_params.sampling_seed for request in batch.reqs]
                if found.sampling_seed is None:
                    found.sampling_seed = torch.tensor([0 if seed is None else seed for seed in seeds])
                return found

            info.from_schedule_batch = staticmethod(from_schedule_batch)

        spec.loader.exec_module = load_and_change  # type: ignore[method-assign]
        return spec


sys.meta_path.insert(0, _Seeded())  # type: ignore[arg-type]
