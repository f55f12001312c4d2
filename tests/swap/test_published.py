"""Copies of weights for processes that cannot read the weights themselves."""

import torch

from megatron_rl.resharding.transports.shared_memory import publish
from megatron_rl.swap.published import packed


def test_copies_lie_in_one_storage_for_each_dtype() -> None:
    kinds = (torch.bfloat16, torch.float32, torch.float8_e4m3fn)
    tensors = {f"{i}": torch.randn(i % 7 + 1, 3).to(kinds[i % 3]) for i in range(100)}
    tensors["transposed"] = torch.randn(5, 4).T
    tensors["scalar"] = torch.tensor(2.0)
    copies = packed(tensors)
    memory = publish(copies)
    assert len(memory.buffers) == len(kinds)
    assert all(place.offset % 64 == 0 for place in memory.places.values())
    mapped = memory.open()
    for name, tensor in tensors.items():
        assert copies[name].is_contiguous() and copies[name].shape == tensor.shape
        assert torch.equal(copies[name].float(), tensor.float())
    copies["1"].zero_()
    assert mapped.tensors["1"].eq(0).all()  # readers see what is written later
    assert torch.equal(mapped.tensors["4"], tensors["4"].view(-1))
    mapped.close()


def test_nothing_needs_no_storage() -> None:
    assert packed({}) == {}
