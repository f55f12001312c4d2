"""Copies of weights for processes that cannot read the weights themselves."""

import os
import pickle
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.distributed as dist

from megatron_rl.errors import InputError
from megatron_rl.resharding.layout import Layout
from megatron_rl.resharding.transports.shared_memory import publish, unshared
from megatron_rl.swap.published import Offered, packed
from tests.conftest import ROOT
from tests.rollout.embedded.conftest import configuration

READ = """
import pickle, sys
for name, tensor in sorted(pickle.load(sys.stdin.buffer).open().tensors.items()):
    print(name, tensor.tolist())
"""


@dataclass
class Rank:
    """What is asked of an actor: a rank's weights."""

    weights: dict[str, torch.Tensor]
    hf_config: dict[str, Any]

    def parameters(self) -> dict[str, torch.Tensor]:
        return self.weights


@pytest.fixture
def one_rank() -> Iterator[None]:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def read_elsewhere(tensors: dict[str, torch.Tensor]) -> list[str]:
    """What another process finds in the memory of these."""
    memory = pickle.dumps(publish(tensors))
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", READ], input=memory, capture_output=True, env=env, check=True)
    return done.stdout.decode().splitlines()


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


def test_weights_that_find_no_room_to_be_shared_are_offered_as_copies(
    one_rank: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    weights = {"a": torch.arange(3.0), "b": torch.arange(4).to(torch.bfloat16)}
    rank: Any = Rank(weights, configuration("qwen3").to_dict())
    for module in ("megatron_rl.system.machine", "megatron_rl.resharding.transports.shared_memory"):
        monkeypatch.setattr(f"{module}.shared_memory", lambda: 19)
    assert unshared(weights) == 20
    with pytest.raises(InputError, match=r"/dev/shm has 0 MB free; this rank's share of the weights needs 0 MB"):
        publish(weights)
    offered = Offered(rank, Layout({}, ()), "shared_memory", fp8=False)
    assert (
        "/dev/shm has 0 MB free and the weights need 0 MB: they are read from copies in other memory"
        in capsys.readouterr()[0]
    )
    weights["a"] += 1
    weights["b"] += 1
    assert read_elsewhere(offered.tensors) == ["a [0.0, 1.0, 2.0]", "b [0.0, 1.0, 2.0, 3.0]"]
    offered.refresh()
    assert read_elsewhere(offered.tensors) == ["a [1.0, 2.0, 3.0]", "b [1.0, 2.0, 3.0, 4.0]"]
    assert unshared(weights) == 20  # they were not moved
    monkeypatch.setattr("megatron_rl.system.machine.shared_memory", lambda: 20)
    assert Offered(rank, Layout({}, ()), "shared_memory", fp8=False).tensors["a"] is weights["a"]
    assert not capsys.readouterr()[0]


def test_copies_leave_no_descriptors_behind() -> None:
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(3):
        copies = packed({"a": torch.zeros(5), "b": torch.zeros(2, dtype=torch.bfloat16)})
        publish(copies)
        assert len(os.listdir("/proc/self/fd")) == before + 2
        del copies
    assert len(os.listdir("/proc/self/fd")) == before
