"""A reference policy: what it shares, how it follows, and when."""

from types import SimpleNamespace

import pytest
import torch

from megatron_rl.actor.tuning.reference import Reference
from megatron_rl.algorithms.config import AlgorithmConfig
from megatron_rl.training.models import Models


def parameters(dtype: torch.dtype = torch.float32) -> dict[str, torch.nn.Parameter]:
    torch.manual_seed(0)
    return {name: torch.nn.Parameter(torch.randn(3, 4).to(dtype)) for name in ("a", "b")}


def test_what_has_the_same_numbers_is_not_copied() -> None:
    live = parameters()
    kept = {"a": live["a"].data.clone(), "b": live["b"].data + 1}
    reference = Reference(live, kept, moves=False)
    assert reference.held["a"] is kept["a"]
    assert reference.held["b"] is not kept["b"] and torch.equal(reference.held["b"], live["b"])
    before = kept["a"].clone()
    reference.let_move()  # no more: it would change what is kept
    reference.follow(0.5)
    live["a"].data.add_(1)
    reference.follow(0.5)
    assert torch.equal(kept["a"], before) and not torch.equal(reference.held["a"], before)


@pytest.mark.parametrize("moves", [False, True])
def test_beside_a_gpu_it_lies_in_pinned_blocks(moves: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Which a GPU reads by itself: one block for small tensors, each at a multiple of 64 bytes."""
    live, made, empty = parameters(torch.bfloat16), [], torch.empty

    def record(*args: object, pin_memory: bool = False, **kwargs: object) -> torch.Tensor:
        made.append(pin_memory)
        return empty(*args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr("megatron_rl.actor.accelerator.on_gpu", lambda: True)
    monkeypatch.setattr(torch, "empty", record)
    reference = Reference(live, {"a": live["a"].data.clone()} if not moves else {}, moves)
    assert made and all(made)
    assert all(torch.equal(held, live[name].float() if moves else live[name]) for name, held in reference.held.items())
    storages = {held.untyped_storage().data_ptr() for held in reference.held.values()}
    assert len(storages) == 2  # one of each is another's, or the largest piece fills a block
    reference.let_move()
    assert all(made) and {held.dtype for held in reference.held.values()} == {torch.float32}


def test_the_model_computes_with_it_for_a_while() -> None:
    live = parameters(torch.bfloat16)
    places = {name: p.data_ptr() for name, p in live.items()}
    reference = Reference(live, {}, moves=True)
    before = {name: p.data.clone() for name, p in live.items()}
    for p in live.values():
        p.data.mul_(2)
    with reference.in_place():
        assert all(torch.equal(p.data, before[n]) and p.dtype == torch.bfloat16 for n, p in live.items())
    assert all(torch.equal(p.data, 2 * before[n]) and p.data_ptr() == places[n] for n, p in live.items())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_it_is_an_average_in_float32(dtype: torch.dtype) -> None:
    """From 0 towards 1 with decay 0.999: 1 - 0.999^n, which bfloat16 would never leave 0.5 for."""
    live = {"a": torch.nn.Parameter(torch.zeros(1, dtype=dtype))}
    reference = Reference(live, {}, moves=True)
    live["a"].data.fill_(1)
    for _ in range(1000):
        reference.follow(0.999)
    assert reference.held["a"].item() == pytest.approx(1 - 0.999**1000, abs=1e-5)


def test_it_is_reset_after_every_so_many_steps() -> None:
    models = object.__new__(Models)
    live = parameters()
    models.policy = SimpleNamespace(  # type: ignore[assignment]
        kept_reference=Reference(live, {}, moves=True), gather=lambda: None
    )
    config = AlgorithmConfig(kl_coef=0.1, reference_every=3)
    same = []
    for step in range(1, 8):
        for p in live.values():
            p.data.add_(1)
        models.keep_up(config, step)
        same.append(torch.equal(models.policy.kept_reference.held["a"], live["a"].data))
    assert same == [step % 3 == 0 for step in range(1, 8)]
