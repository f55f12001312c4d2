"""The kernels of logprob_kernels in Triton's interpreter, which works in host memory: what torch says, with gradients.

Run by test_logprobs.py as a process of its own, with TRITON_INTERPRET=1.
"""

import tempfile

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from megatron_rl.actor.modules import logprob_kernels, logprobs

REAL, ROWS, TOKENS = 53, 64, 17  # vocabulary, padded rows of the output matrix


def use_kernels() -> None:
    """As on a GPU, with tiles so small that rows end within one, and some are padding altogether."""
    logprob_kernels.TILE = 16
    logprobs.logprob_kernels = lambda device: logprob_kernels  # type: ignore[assignment]


def case() -> tuple[torch.Tensor, ...]:
    torch.manual_seed(0)
    hidden, weight = 0.3 * torch.randn(TOKENS, 12), torch.randn(ROWS, 12)
    weight[REAL:] = 100.0  # padding that would be seen
    return hidden, weight, torch.randint(0, REAL, (TOKENS,)), torch.randn(TOKENS), torch.randn(TOKENS)


def naive(temperature: float, with_entropy: bool) -> list[torch.Tensor]:
    """Log-probs, entropies and the gradients of hidden states and matrix, in float64."""
    hidden, weight, targets, up, down = case()
    hidden, weight = hidden.double().requires_grad_(), weight.double().requires_grad_()
    log_p = ((hidden @ weight[:REAL].t()) / temperature).log_softmax(-1)
    found = log_p.gather(1, targets[:, None]).squeeze(1), -(log_p.exp() * log_p).sum(-1)
    loss = (found[0] * up).sum() + (found[1] * down).sum() * with_entropy
    return [t.detach() for t in (*found, *torch.autograd.grad(loss, (hidden, weight)))]


def fused(temperature: float, with_entropy: bool, chunk: int, tensor: int = 1, context: int = 1) -> list[torch.Tensor]:
    """The same, of this rank's tokens and rows, brought together from all ranks."""
    hidden, weight, targets, up, down = case()
    rank = dist.get_rank() if tensor * context > 1 else 0
    shard, part = rank % tensor, slice(rank // tensor, None, context)
    rows = slice(shard * ROWS // tensor, (shard + 1) * ROWS // tensor)
    mine, matrix = hidden[part].clone().requires_grad_(), weight[rows].clone().requires_grad_()
    got = logprobs.token_logprobs(
        *(mine, matrix, targets[part]),
        vocab_size=REAL,
        temperature=temperature,
        rank=shard,
        group=dist.group.WORLD if tensor > 1 else None,
        chunk=chunk,
    )
    loss = (got[0] * up[part]).sum() + (got[1] * down[part]).sum() * with_entropy
    of_hidden, of_weight = torch.autograd.grad(loss, (mine, matrix))
    whole = [torch.zeros(TOKENS), torch.zeros(TOKENS), torch.zeros_like(hidden), torch.zeros_like(weight)]
    for place, value, at, share in zip(
        whole, (*got, of_hidden, of_weight), (part, part, part, rows), (tensor, tensor, 1, 1), strict=True
    ):
        place[at] = value.detach() / share  # a tensor-parallel rank has all log-probs, and a share of the gradients
        if tensor * context > 1:
            dist.all_reduce(place)
    return whole


def compare(**sharding: int) -> None:
    for temperature, with_entropy, chunk in ((1.0, True, 5), (1.0, False, 64), (0.6, True, 64), (0.6, False, 5)):
        expected = naive(temperature, with_entropy)
        for got, wanted in zip(fused(temperature, with_entropy, chunk, **sharding), expected, strict=True):
            gap = (got - wanted).abs().max().item()
            assert gap < 1e-6 * (1 + wanted.abs().max().item()), (sharding, temperature, with_entropy, chunk, gap)
        assert got[REAL:].abs().max() == 0.0  # of padding rows


def rank_of_two(rank: int, meeting: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=2)
    use_kernels()
    compare(tensor=2)
    compare(context=2)
    dist.destroy_process_group()


def half_precision_is_torchs() -> None:
    """bfloat16 logits: the kernels round where torch's operations do, so gradients agree to that rounding."""
    hidden, weight, targets, up, down = case()
    found = []
    for kernels in (False, True):
        if kernels:
            use_kernels()
        mine, matrix = (t.bfloat16().requires_grad_() for t in (hidden, weight))
        got = logprobs.token_logprobs(mine, matrix, targets, vocab_size=REAL, chunk=5)
        grads = torch.autograd.grad((got[0] * up + got[1] * down).sum(), (mine, matrix))
        assert grads[0].dtype == grads[1].dtype == torch.bfloat16
        found.append([t.detach().float() for t in (*got, *grads)])
    for plain, kernel, limit in zip(*found, (1e-6, 1e-6, 2**-7, 2**-7), strict=True):
        assert (plain - kernel).abs().max() < limit * (1 + plain.abs().max())


def extremes_stay_finite() -> None:
    hidden = torch.tensor([[300.0], [-300.0]], requires_grad=True)
    got, entropy = logprobs.token_logprobs(
        hidden, torch.tensor([[1.0], [-1.0], [0.5]]), torch.tensor([0, 0]), vocab_size=3
    )
    assert got.tolist() == [0.0, -600.0] and entropy.tolist() == [0.0, 0.0]
    (got.sum() + entropy.sum()).backward()
    assert torch.isfinite(hidden.grad).all()


def nan_is_seen() -> None:
    hidden = torch.tensor([[1.0], [torch.nan]])
    got, entropy = logprobs.token_logprobs(hidden, torch.ones(40, 1), torch.tensor([0, 0]), vocab_size=40)
    assert got.isnan().tolist() == entropy.isnan().tolist() == [False, True]


if __name__ == "__main__":
    half_precision_is_torchs()
    use_kernels()
    compare()
    extremes_stay_finite()
    nan_is_seen()
    with tempfile.TemporaryDirectory() as folder:
        mp.spawn(rank_of_two, (f"{folder}/meeting",), nprocs=2)
