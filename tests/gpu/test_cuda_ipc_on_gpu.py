"""The swap of tests/resharding/test_transport.py out of other processes' GPU memory, and a hash that is the CPU's."""

import multiprocessing
from multiprocessing.connection import Connection
from pathlib import Path

import pytest
import torch

from megatron_rl.resharding.execute import flat
from megatron_rl.resharding.plan import Plan
from megatron_rl.resharding.transports.cuda_ipc import CudaIpc, DeviceMemory, HeldOnDevice, offer
from megatron_rl.resharding.transports.device_hash import PERIOD, device_hashes, hash_keys
from megatron_rl.resharding.transports.transport import Inbound, Outbound, Owned
from tests.resharding.reference import Tensors
from tests.resharding.transports.test_transport import Ends, check_swap, copies_to

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


def own(pipe: Connection, plan: Plan, rank: int, weights: Tensors, readers: int) -> None:
    """A source rank: offers its weights, and hashes them for every version it is told."""
    parameters = {name: t.cuda() for name, t in weights.items()}
    torch.cuda.synchronize()
    pipe.send([offer(parameters) for _ in range(readers)])
    end = HeldOnDevice(plan, rank, parameters)
    for version in iter(pipe.recv, None):
        pipe.send(end.push(version))


class Owner:
    """An ``Outbound`` in another process."""

    def __init__(self, plan: Plan, rank: int, weights: Tensors, readers: int) -> None:
        spawn = multiprocessing.get_context("spawn")
        self.pipe, theirs = spawn.Pipe()
        arguments = (theirs, plan, rank, {name: t.cpu() for name, t in weights.items()}, readers)
        self.process = spawn.Process(target=own, args=arguments, daemon=True)
        self.process.start()
        theirs.close()

    def offers(self) -> list[DeviceMemory]:
        """One for each reader; waits until the process has started."""
        offers: list[DeviceMemory] = self.pipe.recv()
        return offers

    def push(self, version: int) -> Owned:
        self.pipe.send(version)
        owned: Owned = self.pipe.recv()
        return owned

    def stop(self) -> None:
        self.pipe.send(None)
        self.process.join(60)


def test_a_swap_is_proved_poisons_and_heals(tmp_path: Path) -> None:
    started: list[Owner] = []

    def connect(plan: Plan, held: list[Tensors], wanted: list[Tensors], folder: Path) -> Ends:
        started.extend(Owner(plan, r, tensors, len(wanted)) for r, tensors in enumerate(held))
        offers = [owner.offers() for owner in started]
        inbound: list[Inbound] = [
            CudaIpc(copies_to(plan, r), [o[r] for o in offers], {n: flat(t) for n, t in tensors.items()}, 60)
            for r, tensors in enumerate(wanted)
        ]
        owners: list[Outbound] = [*started]
        return owners, inbound

    try:
        check_swap(connect, tmp_path, "cuda")
    finally:
        for owner in started:
            owner.stop()
    assert [owner.process.exitcode for owner in started] == [0] * len(started)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float8_e4m3fn])
def test_the_hash_is_equal_on_both_devices(dtype: torch.dtype) -> None:
    numbers = torch.randn(3, 2 * PERIOD).to(dtype)
    columns = numbers[:, 5 : PERIOD + 77]
    here = device_hashes([numbers, columns], [dtype] * 2, hash_keys(torch.device("cpu")))
    there = numbers.cuda()
    keys = hash_keys(torch.device("cuda"))
    assert device_hashes([there, there[:, 5 : PERIOD + 77]], [dtype] * 2, keys).tolist() == here.tolist()
