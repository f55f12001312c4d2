"""One engine worker without its server: a real SGLang model of FP8 weights that rank 0 swaps.

argv: the model's folder, rank 0's address, the session. SGLang computes in FP8 on GPUs only; on a CPU its model is
built and loaded, and what prepares it for the CPU's own FP8 kernels is left out (on a GPU of compute capability 9.0
that step changes nothing).
"""

import json
import os
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file
from sglang.srt.layers.quantization.fp8 import Fp8LinearMethod

from megatron_rl.resharding.layouts.fp8 import SCALE
from megatron_rl.resharding.layouts.sglang import EngineSizes
from megatron_rl.resharding.quantise import quantise_blockwise, quantised_names
from megatron_rl.rollout.sglang.worker import METHODS, Weights
from megatron_rl.system.channel import key_from_environment
from megatron_rl.system.control import answer_calls, call_in
from tests.conftest import free_port
from tests.sglang.traced_ranks import build


class Compared(Weights):
    """A worker's weights, and how they differ from those that SGLang loads from a folder."""

    def differing(self, folder: str) -> list[str]:
        """The parameters that are not, bit by bit, what SGLang's own loading of the quantised folder gives."""
        pulled = {n: p.detach().clone() for n, p in self.model.named_parameters()}
        names = quantised_names(json.loads((Path(folder) / "config.json").read_text()))
        full: list[tuple[str, torch.Tensor]] = []
        for name, tensor in load_file(f"{folder}/model.safetensors").items():
            if name in names:
                quantised, scales = quantise_blockwise(tensor)
                full += [(name, quantised), (name + SCALE, scales)]
            else:
                full.append((name, tensor))
        self.model.load_weights(full)
        loaded = dict(self.model.named_parameters())
        assert {torch.float8_e4m3fn, torch.float32, torch.bfloat16} == {p.dtype for p in loaded.values()}
        return [
            n for n, p in pulled.items() if not torch.equal(p.view(torch.uint8), loaded[n].detach().view(torch.uint8))
        ]


if __name__ == "__main__":
    os.environ |= {"RANK": "0", "WORLD_SIZE": "1", "MASTER_PORT": str(free_port())}
    Fp8LinearMethod.process_weights_after_loading_block_quant = lambda self, layer: None
    model = build(Path(sys.argv[1]), EngineSizes(), True, weights="dummy")
    with call_in(sys.argv[2], key_from_environment(), sys.argv[3], 0) as connection:
        answer_calls(connection, Compared(model, 0), (*METHODS, "differing"))
