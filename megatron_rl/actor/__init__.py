"""The Megatron-Core model that is trained, on this process's ranks."""

from megatron_rl.system.kernels import use_torchs_cudnn

use_torchs_cudnn()  # before anything here imports Megatron, which imports Transformer Engine
