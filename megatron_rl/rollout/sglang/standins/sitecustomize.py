"""Run by Python before anything else in servers on a CPU: what SGLang's imports expect of CUDA builds.

torchvision's build on PyPI is CUDA's; on a CPU its own library does not load, and its Python part then misses two
operators that it describes.
"""

import torch

_torchvision = torch.library.Library("torchvision", "DEF")
_torchvision.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
_torchvision.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
