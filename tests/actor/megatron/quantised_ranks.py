"""Two ranks whose layers keep their weights in FP8: real updates, checkpoints and references, and what swaps read."""

import json
import sys
from pathlib import Path

import torch
import torch.distributed as dist

from megatron_rl.actor import accelerator, groups
from megatron_rl.actor.config import ActorConfig
from megatron_rl.actor.megatron.quantised import is_quantised, value
from megatron_rl.actor.trainer import Actor
from megatron_rl.resharding.layouts.megatron import megatron_layout
from megatron_rl.swap.published import Offered
from tests.actor.megatron.in_blocks import InBlocks, stand_in
from tests.actor.training_ranks import SETTINGS, run, sequences


def objective(logprobs: torch.Tensor, entropy: torch.Tensor, batch: object) -> tuple[torch.Tensor, dict]:
    loss = -(batch.columns["weight"] * logprobs).sum()  # type: ignore[attr-defined]
    return loss, {"loss": loss}


def mains(actor: Actor) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """Each weight in FP8, as the optimiser's part of it, and that part of the optimiser's."""
    names = {id(p): name for name, p in actor.quantised.weights.items()}
    found = actor.quantised._mains(actor.optimizer)
    return {names[id(p)]: (value(p).view(-1)[part], main.detach().clone()) for p, main, part in found}


def by_hand(folder: Path, out: Path) -> None:
    """Loading, two stages and a swap, number by number."""
    config = ActorConfig(data_parallel=2, fp8_weights=True)
    groups.initialize(config, seed=0)
    hf = json.loads((folder / "config.json").read_text())
    plain = Actor(hf, config, "bfloat16", str(folder))
    weights = plain.quantised.weights
    assert len(weights) == 4 * hf["num_hidden_layers"] and all(is_quantised(p) for p in weights.values())
    given = {name: plain.quantised._begin[p] for name, p in weights.items()}
    loaded = {name: InBlocks.of(t) for name, t in given.items()}
    for name, p in weights.items():
        assert torch.equal(p.codes, loaded[name].codes) and torch.equal(p.inverse, loaded[name].inverse)
    plain.new_optimizer(SETTINGS)
    for name, (_, main) in mains(plain).items():
        assert main.isfinite().all() and set(main.tolist()) <= set(given[name].float().view(-1).tolist())
    layout = megatron_layout(hf, config.sizes())
    offered = Offered(plain, layout, "cuda_ipc", False)
    places = {name: t.data_ptr() for name, t in offered.tensors.items()}
    before = {name: t.clone() for name, t in offered.tensors.items()}
    plain.update(plain.pack(sequences(0)), objective, 1e-2)
    offered.refresh()
    moved = [name for name, t in offered.tensors.items() if not torch.equal(t, before[name])]
    assert set(weights) <= set(moved) and places == {name: t.data_ptr() for name, t in offered.tensors.items()}
    for name, p in weights.items():
        assert torch.equal(offered.tensors[name], p.dequantize()) and p.gathered
        again = InBlocks.of(p.dequantize())  # what is read and written back is the same
        assert torch.equal(again.codes, p.codes) and torch.equal(again.inverse, p.inverse)
    for here, main in mains(plain).values():  # three bits behind the first, and bfloat16 before
        assert ((here.float() - main).abs() <= main.abs() / 15 + here.float().abs().max() / 448 / 2).all()
    kept = {name: main for name, (_, main) in mains(plain).items()}
    plain.new_optimizer(SETTINGS)
    for name, (_, main) in mains(plain).items():
        assert torch.equal(main, kept[name].bfloat16().float()), name
    held = {name: p.codes.clone() for name, p in weights.items()}
    gather = [torch.zeros_like(torch.stack([t.float().sum() for t in held.values()])) for _ in range(2)]
    dist.all_gather(gather, torch.stack([t.float().sum() for t in held.values()]))
    assert torch.equal(*gather)  # the ranks' replicas
    assert plain.finite()
    if dist.get_rank():
        next(plain.quantised._mains(plain.optimizer))[1][0] = torch.inf
    assert not plain.finite()
    (out / f"by-hand-{dist.get_rank()}").touch()


if __name__ == "__main__":
    accelerator.adapt()
    jobs = json.loads(Path(sys.argv[1]).read_text())
    for job in jobs:
        if job["actor"].get("fp8_weights"):  # from here on all models have them
            stand_in()
        run(job, Path(sys.argv[2]))
    by_hand(Path(jobs[0]["model"]), Path(sys.argv[2]))
    dist.destroy_process_group()
