"""Transformer Engine taken for granted: configurations made here of a run on GPUs that are elsewhere."""

import contextlib
import importlib
import sys
from collections.abc import Iterator
from types import ModuleType
from typing import Any

VERSION = "2.20"  # the one that settings/foresight/precision.py describes
_KERNELS = {  # what configurations look for before they take an option that needs it; None where it is missing
    "megatron.core.transformer.moe.moe_utils": (
        "fused_permute",
        "fused_permute_with_probs",
        "fused_sort_chunks_by_index",
        "fused_sort_chunks_by_index_with_probs",
        "fused_unpermute",
    ),
    "megatron.core.models.common.embeddings.rope_utils": (
        "fused_apply_rotary_pos_emb",
        "fused_apply_rotary_pos_emb_thd",
    ),
}
_PACKAGE = ("transformer_engine", "transformer_engine.pytorch", "transformer_engine.pytorch.optimizers")


class _FusedAdam:
    """The arguments that Megatron-Core's configuration of an optimiser looks for."""

    def __init__(
        self,
        master_weight_dtype: Any = None,
        exp_avg_dtype: Any = None,
        exp_avg_sq_dtype: Any = None,
        use_decoupled_grad: bool = False,
    ) -> None:
        raise NotImplementedError("it stands in for Transformer Engine's where nothing is computed")


def _importable() -> bool:
    try:
        importlib.import_module(_PACKAGE[-1])
    except (ImportError, OSError, RuntimeError):  # missing, or built for another torch
        return False
    return True


@contextlib.contextmanager
def assumed_transformer_engine() -> Iterator[None]:
    """Inside, Megatron-Core's configurations find what they ask of Transformer Engine; nothing else may be done there.

    Where it can be imported, it is itself.
    """
    if _importable():
        yield
        return
    utils: Any = importlib.import_module("megatron.core.utils")
    known, utils._te_version = utils._te_version, None
    before = []
    for module, names in _KERNELS.items():
        holder = importlib.import_module(module)
        for name in names:
            before.append((holder, name, getattr(holder, name, None)))
            setattr(holder, name, object())
    hidden = {name: sys.modules.pop(name) for name in _PACKAGE if name in sys.modules}
    standing: dict[str, Any] = {name: ModuleType(name) for name in _PACKAGE}
    standing[_PACKAGE[0]].__version__, standing[_PACKAGE[-1]].FusedAdam = VERSION, _FusedAdam
    sys.modules.update(standing)
    try:
        yield
    finally:
        for name in _PACKAGE:
            del sys.modules[name]
        sys.modules.update(hidden)
        for holder, name, value in before:
            setattr(holder, name, value)
        utils._te_version = known
