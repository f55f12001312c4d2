"""The kernels on a GPU: to the bit, or to rounding, what torch's operations say there and on the CPU."""

import pytest
import torch

from megatron_rl.actor.modules import logprobs
from megatron_rl.resharding import quantise
from megatron_rl.resharding.layout import ParallelSizes
from megatron_rl.resharding.layouts.fp8 import quantised_names
from megatron_rl.resharding.layouts.megatron import megatron_layout
from megatron_rl.resharding.plan import Copy
from megatron_rl.resharding.quantise import ShardQuantiser
from megatron_rl.resharding.transports import cuda_ipc
from tests.resharding.reference import CUT as MODEL

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_logprobs_and_gradients_are_those_of_the_cpu(temperature: float) -> None:
    """Rows that end within a tile, several chunks, padding rows, and the gradient of the entropy."""
    assert logprobs.logprob_kernels(torch.device("cuda")) is not None
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.manual_seed(0)
    hidden, weight = 0.2 * torch.randn(70, 32), torch.randn(9000, 32)
    targets, up, down = torch.randint(0, 8990, (70,)), torch.randn(70), torch.randn(70)
    found = []
    for device in ("cpu", "cuda"):
        leaves = [t.detach().to(device).requires_grad_() for t in (hidden, weight)]
        got = logprobs.token_logprobs(*leaves, targets.to(device), vocab_size=8990, temperature=temperature, chunk=16)
        loss = (got[0] * up.to(device)).sum() + (got[1] * down.to(device)).sum()
        found.append([t.detach().cpu() for t in (*got, *torch.autograd.grad(loss, leaves))])
    for here, there in zip(*found, strict=True):
        assert (here - there).abs().max() < 3e-6 * (1 + here.abs().max())
    assert found[1][3][8990:].abs().max() == 0.0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("tensor", [1, 2])
@pytest.mark.parametrize("whole", [False, True])
def test_quantised_weights_are_those_of_the_cpu(dtype: torch.dtype, tensor: int, whole: bool) -> None:
    """Tiles that are whole, and those that edges or ranks cut."""
    assert quantise.quantise_kernels(torch.device("cuda")) is not None
    config = MODEL | ({"hidden_size": 256, "head_dim": 64, "intermediate_size": 384} if whole else {})
    sizes, names = ParallelSizes(tensor=tensor), quantised_names(config)
    layout = megatron_layout(config, sizes)
    for rank in range(tensor):
        weights = {n: (0.02 * torch.randn(shape)).to(dtype) for n, shape in layout.ranks[rank].locals.items()}
        for t in weights.values():
            t.view(-1)[::3] = -0.0
        here, there = (
            ShardQuantiser(layout, rank, names)({n: t.to(d) for n, t in weights.items()}, lambda vector: vector)
            for d in ("cpu", "cuda")
        )
        assert here.keys() == there.keys()
        for name, t in here.items():
            assert torch.equal(t.view(-1).view(torch.uint8), there[name].cpu().view(-1).view(torch.uint8)), name


def test_pulls_within_a_gpu_are_those_of_the_cpu() -> None:
    """Boxes of one run, of several, and of rows too short for any; bytes that are aligned and not."""
    source = torch.randn(3_000_000).bfloat16()
    copies = [
        Copy("w", (0, 0), shape, 0, "s", at, read, 0, "d", at + shift, write)
        for at, shift, shape, read, write in (
            (0, 0, (700, 1000), (1000, 1), (1000, 1)),
            (800_000, 1, (300, 1000), (1003, 1), (1000, 1)),
            (1_200_000, 8, (300, 1024), (1024, 1), (1032, 1)),
            (1_600_000, 3, (10, 7), (8, 1), (9, 1)),
            (1_700_000, 2, (700, 100), (1, 700), (100, 1)),
        )
    ]
    hashes, landed = [], []
    for device in ("cpu", "cuda"):
        place = torch.zeros(3_000_000, dtype=torch.bfloat16, device=device)
        end = cuda_ipc.Batched(copies, {(0, "s"): source.to(device)}, {"d": place})
        hashes.append([end.pull(version).tolist() for version in range(2)])
        landed.append(place.cpu())
    assert hashes[0] == hashes[1] and torch.equal(*landed)
