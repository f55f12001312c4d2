"""Checkpoints of the trained models in Megatron's torch_dist format: weights, optimisers, random state and position.

The policy's tensors have Megatron's names; those of a model beside it (a critic) have them behind its own, "critic.".

A checkpoint loads at any sharding; at the same one training continues bit-identically. It is written into a
hidden folder, flushed and renamed when complete (``checkpoint_folder``), so a folder named step-* was whole.

With adapters (``actor.lora``) it holds these alone, and the hash of the folder that all other weights come from. A
reference that moves is in it.
"""

import json
import multiprocessing
import os
import shutil
from collections.abc import Mapping
from multiprocessing.managers import SyncManager
from pathlib import Path
from types import MethodType
from typing import Any

import torch
import torch.distributed as dist
from megatron.core import dist_checkpointing, parallel_state, tensor_parallel
from megatron.core.dist_checkpointing.mapping import ShardedObject, ShardedTensor
from megatron.core.dist_checkpointing.strategies import filesystem_async
from megatron.core.dist_checkpointing.utils import add_prefix_for_sharding
from megatron.core.optimizer import distrib_optimizer

from megatron_rl.actor import accelerator, groups
from megatron_rl.actor.checkpoint_folder import (
    BESIDE,
    STATE,
    all_checkpoints,
    list_files,
    read_entry,
    read_sizes,
    read_state,
)
from megatron_rl.actor.checkpoint_folder import latest as latest  # with this module's other functions
from megatron_rl.actor.trainer import Actor
from megatron_rl.errors import InputError
from megatron_rl.resharding.folders.fingerprint import fingerprint
from megatron_rl.system.files import rename_folder
from megatron_rl.system.processes import die_with_parent
from megatron_rl.system.stop import leave_to_parent

_COMMON = "common.pt"  # what is not sharded, such as the optimisers' groups
_NONE: dict[str, Actor] = {}

Beside = Mapping[str, Actor]
"""Trained models beside the policy, by name."""


def save(
    actor: Actor,
    folder: Path,
    name: str,
    state: dict[str, Any],
    keep: int,
    files: Mapping[str, bytes] | None = None,
    beside: Beside = _NONE,
) -> Path:
    """Write folder/step-{name}, with rank 0's ``files`` in it, and delete all but the ``keep`` newest; collective."""
    accelerator.adapt()
    if filesystem_async._results_queue is None:
        # As Megatron's own, but it dies with this process; without CUDA it can fork instead of importing the trainer
        # again, which takes seconds.
        manager = SyncManager(ctx=multiprocessing.get_context("spawn" if accelerator.on_gpu() else "fork"))
        manager.start(initializer=_serve_writers, initargs=(os.getpid(),))
        filesystem_async._results_queue = manager.Queue()
        tie_writers()
    target, partial = folder / f"step-{name}", folder / f".step-{name}"
    if dist.get_rank() == 0:
        for left in folder.glob(".step-*"):  # by attempts that were killed
            shutil.rmtree(left, ignore_errors=True)
        partial.mkdir(parents=True)
    groups.barrier()
    try:
        dist_checkpointing.save(_state_dict(actor, beside, loading=False), str(partial))
        if dist.get_rank() == 0:
            content: dict[str, Any] = {"state": state, "sizes": vars(actor.config.sizes())}
            if beside:
                content[BESIDE] = {other: {} for other in beside}
            if actor.adapted:
                content["base"] = {"hash": fingerprint(actor.model_folder)}
            content["reference"] = {"moves": _reference_moves(actor)}
            (partial / STATE).write_text(json.dumps(content, indent=2), encoding="utf-8")
            if not (partial / _COMMON).exists():  # Megatron-Core 0.19 puts it where 0.16 does not look
                torch.save(dist_checkpointing.load_common_state_dict(str(partial)), partial / _COMMON)
            for file, value in (files or {}).items():
                (partial / file).write_bytes(value)
            list_files(partial)
            shutil.rmtree(target, ignore_errors=True)  # left by an attempt that was resumed from an earlier step
            rename_folder(partial, target)
            for old in all_checkpoints(folder)[:-keep]:
                shutil.rmtree(old)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    groups.barrier()
    return target


def tie_writers() -> None:
    """Have the processes that Megatron forks to write files die with the one that forks them.

    They wait for each other: where all are killed but some, those would wait for ever. Call it once in a process.
    Megatron-Core 0.19 writes by threads of this one, which needs nothing.
    """
    writer: Any = filesystem_async.FileSystemWriterAsync
    write, here = writer.write_preloaded_data, os.getpid()

    def write_while_wanted(*arguments: Any, **named: Any) -> Any:
        if os.getpid() != here:
            parent = multiprocessing.parent_process()
            die_with_parent(parent.pid if parent else None)
        return write(*arguments, **named)

    writer.write_preloaded_data = staticmethod(write_while_wanted)


@torch.no_grad()
def load(actor: Actor, checkpoint: Path, beside: Beside = _NONE) -> dict[str, Any]:
    """Restore weights, optimisers and, at the same sharding, random state; returns the saved position. Collective.

    The models have the optimisers of the stage that the checkpoint was written in, and where that had one the policy
    has a reference, which is restored if it moves. Raises InputError when the checkpoint does not hold one of those
    ``beside`` the policy, and when the weights beside adapters have other numbers now.
    """
    accelerator.adapt()
    if missing := beside.keys() - read_entry(checkpoint, BESIDE).keys():
        raise InputError(
            f"{checkpoint} holds no {min(missing)}: the run was without one when it was written. Continue it as it was "
            "(algorithm.name), or begin a new run from its policy (model.path)."
        )
    _require_same_base(actor, checkpoint)
    if actor.kept_reference is not None and read_entry(checkpoint, "reference").get("moves"):
        actor.kept_reference.let_move()
    same = read_sizes(checkpoint) == vars(actor.config.sizes())
    content = _state_dict(actor, beside, loading=True)
    if not same:
        del content["rng"]
    loaded = dist_checkpointing.load(content, str(checkpoint))
    _restore(actor, loaded, checkpoint)
    for name, other in beside.items():
        _restore(other, loaded[name], checkpoint)
    if same:
        rng = loaded["rng"]
        torch.set_rng_state(rng["cpu"])
        torch.cuda.set_rng_state(rng["device"])
        tensor_parallel.get_cuda_rng_tracker().set_states(rng["tracker"])
    return read_state(checkpoint)


def load_optimizer(actor: Actor, checkpoint: Path) -> None:
    """Restore the policy's optimiser alone, of a checkpoint of another run with the same weights; collective."""
    accelerator.adapt()
    content = {"optimizer": _trained(actor, loading=True)["optimizer"]}
    _restore_optimizer(actor, dist_checkpointing.load(content, str(checkpoint)))


def _restore(actor: Actor, loaded: dict[str, Any], checkpoint: Path) -> None:
    for i, chunk in enumerate(actor.chunks):
        missing, _ = chunk.load_state_dict(loaded[f"model{i}"], strict=not actor.adapted)
        trained = {name for name, p in chunk.named_parameters() if p.requires_grad}
        if lost := [name for name in missing if name in trained]:
            raise ValueError(f"{checkpoint} lacks {lost}")
        for name, held in loaded.get(f"reference{i}", {}).items():
            assert actor.kept_reference is not None
            actor.kept_reference.held[name].copy_(held)
    _restore_optimizer(actor, loaded)


def _restore_optimizer(actor: Actor, loaded: dict[str, Any]) -> None:
    several, now = len(actor.optimizer.chained_optimizers) > 1, actor.optimizer.config
    for state in loaded["optimizer"].values() if several else [loaded["optimizer"]]:
        for group in state["optimizer"]["param_groups"]:
            # Megatron-Core 0.19 tells groups apart by these too, and whoever continues a run may have changed them
            group["max_lr"], group["min_lr"] = now.lr, now.min_lr
    actor.optimizer.load_state_dict(loaded["optimizer"])
    actor.merge()
    for optimizer in _torch_optimizers(actor):
        for entry in optimizer.optimizer.state.values():
            entry["step"] = entry["step"].clone()  # loading leaves all parameters with one shared tensor


def _state_dict(actor: Actor, beside: Beside, *, loading: bool) -> dict[str, Any]:
    content = _trained(actor, loading)
    for name, other in beside.items():
        content[name] = _trained(other, loading)
        add_prefix_for_sharding(content[name], f"{name}.")
    rng = {
        "cpu": torch.get_rng_state(),
        "device": torch.cuda.get_rng_state(),
        "tracker": tensor_parallel.get_cuda_rng_tracker().get_states(),
    }
    places = [
        (parallel_state.get_pipeline_model_parallel_world_size(), parallel_state.get_pipeline_model_parallel_rank()),
        (parallel_state.get_tensor_model_parallel_world_size(), parallel_state.get_tensor_model_parallel_rank()),
        (
            parallel_state.get_data_parallel_world_size(with_context_parallel=True),
            parallel_state.get_data_parallel_rank(with_context_parallel=True),
        ),
    ]
    content["rng"] = ShardedObject("rng", rng, tuple(p[0] for p in places), tuple(p[1] for p in places))
    return content


def _trained(actor: Actor, loading: bool) -> dict[str, Any]:
    """Weights and optimiser of one model, and its reference if that moves."""
    for optimizer in _torch_optimizers(actor):
        _complete(optimizer)
    for optimizer in actor.optimizer.chained_optimizers:
        begin(optimizer)
    metadata: dict[str, Any] = {
        "distrib_optim_sharding_type": "fully_reshardable",  # the type that loads at any sharding
        "chained_optim_avoid_prefix": True,
        "dp_cp_group": parallel_state.get_data_parallel_group(with_context_parallel=True),
    }
    if actor.adapted or actor.config.freeze:  # layers that are not all trained: each with keys of its own, unstacked
        metadata["non_homogeneous_layers"] = True
    content: dict[str, Any] = {
        f"model{i}": _without_base(actor, chunk.sharded_state_dict(metadata=metadata))
        for i, chunk in enumerate(actor.chunks)
    }
    content["optimizer"] = actor.optimizer.sharded_state_dict(dict(content), is_loading=loading, metadata=metadata)
    # In bfloat16, into which loading reads as well: after the optimiser's, which knows weights by identity.
    held = actor.quantised.read()
    for i in range(len(actor.chunks)):
        for name, entry in content[f"model{i}"].items():
            entry.data = held.get(f"{i}/{name}", entry.data)
    if _reference_moves(actor):
        content |= {f"reference{i}": _reference(actor, i, metadata) for i in range(len(actor.chunks))}
    return content


def _without_base(actor: Actor, entries: dict[str, Any]) -> dict[str, Any]:
    """Of a model with adapters these alone."""

    def base(data: Any) -> bool:
        return isinstance(data, torch.nn.Parameter) and not data.requires_grad

    return {name: e for name, e in entries.items() if not (actor.adapted and base(getattr(e, "data", None)))}


def _reference_moves(actor: Actor) -> bool:
    return actor.kept_reference is not None and actor.kept_reference.moves


def _reference(actor: Actor, chunk: int, metadata: dict[str, Any]) -> dict[str, Any]:
    """The reference's tensors of one chunk, by local name; they lie as the model's do, under names of their own."""
    assert actor.kept_reference is not None
    reference = actor.kept_reference
    names = {id(p): name for name, p in reference.parameters.items()}
    found = {}
    for entry in actor.chunks[chunk].sharded_state_dict(prefix="reference.", metadata=metadata).values():
        name = names.get(id(getattr(entry, "data", None)))
        if name is not None:
            entry.data = reference.held[name]
            if isinstance(entry, ShardedTensor):
                entry.dtype = entry.data.dtype
            found[name] = entry
    lost = [n for n in reference.held if n.startswith(f"{chunk}/") and n not in found]
    if lost:
        raise ValueError(f"the reference's {lost} cannot be kept in a checkpoint")
    return found


def _require_same_base(actor: Actor, checkpoint: Path) -> None:
    if not actor.adapted:
        return
    there = groups.share(groups.first() and fingerprint(actor.model_folder))
    if read_entry(checkpoint, "base").get("hash") != there:
        raise InputError(
            f"The weights in {actor.model_folder} are not those that the adapters in {checkpoint} were trained for: "
            "restore them."
        )


def _torch_optimizers(actor: Actor) -> list[Any]:
    """The distributed optimisers that step with torch's AdamW (no Transformer Engine, no apex)."""
    return [] if distrib_optimizer.HAVE_APEX_OR_TE else list(actor.optimizer.chained_optimizers)


def _complete(optimizer: Any) -> None:
    """Let Megatron save and load torch's AdamW exactly.

    Megatron asserts one ``step`` for all parameters and expects every state to exist. States are created as AdamW
    would have before its first step, and ``step`` (kept in the parameter groups) is left out of the tensor states.
    """
    for group in optimizer.optimizer.param_groups:
        for p in group["params"]:
            if not optimizer.optimizer.state[p]:
                optimizer.optimizer.state[p] = _zeros(p)

    def set_states(self: Any, model_param: Any, tensors: dict[str, torch.Tensor]) -> None:
        group, order = self.model_param_group_index_map[model_param]
        main = self.optimizer.param_groups[group]["params"][order]
        for name, destination in (("param", main), *self.optimizer.state[main].items()):
            if name != "step":
                destination.copy_(tensors[name])

    optimizer._set_main_param_and_optimizer_states = MethodType(set_states, optimizer)


def begin(optimizer: Any) -> None:
    """Make the states that Transformer Engine's optimiser, and one on the host, make at their first step.

    Megatron's own way asks the first for less than newer versions want, and has the second make a step.
    """
    if optimizer.optimizer is None:  # this rank trains none of these weights
        return
    shared = getattr(optimizer.optimizer, "sub_optimizers", None)  # of one that the host has a part of
    if shared is None and not optimizer.config.use_precision_aware_optimizer:
        if optimizer.init_state_fn is not None:
            optimizer.init_state_fn(optimizer.optimizer, optimizer.config)
        return
    for each in [optimizer.optimizer] if shared is None else shared:
        for p in [p for group in each.param_groups for p in group["params"] if not each.state[p]]:
            if hasattr(each, "initialize_state"):  # Transformer Engine's
                each.initialize_state(p, each.store_param_remainders and p.dtype == torch.bfloat16)
            else:
                each.state[p] = _zeros(p)
    if shared is not None:
        optimizer.optimizer._sync_sub_optimizers_state_to_hdo()


def _zeros(p: torch.Tensor) -> dict[str, torch.Tensor]:
    """The state of torch's AdamW before its first step."""
    return {"step": torch.zeros(()), "exp_avg": torch.zeros_like(p.data), "exp_avg_sq": torch.zeros_like(p.data)}


def _serve_writers(parent: int) -> None:
    """First in the process that those which write a checkpoint report to: it must live until all is written."""
    die_with_parent(parent)
    leave_to_parent()
