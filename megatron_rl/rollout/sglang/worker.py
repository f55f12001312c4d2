"""What runs inside every worker of an SGLang server while its weights are swapped.

SGLang calls ``swap`` (``--custom-weight-loader``) in the process that holds the model. It calls rank 0 (``control``)
and does what rank 0 asks for: learn where the model keeps the canonical tensors, pull their bytes into place, hash
them, and make them usable. Whatever goes wrong is told to rank 0 and leaves the weights poisoned; nothing is raised,
for an exception here would end the server without a word.
"""

import json
import logging
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from megatron_rl.resharding.families.rope import KEYS as ROPE_KEYS
from megatron_rl.resharding.layout import Layout, Shard, TensorSpec
from megatron_rl.resharding.layouts.learnt.learn import fingerprint, learn
from megatron_rl.resharding.swap import Receiver, SwapSource
from megatron_rl.resharding.transports.meeting import Meeting
from megatron_rl.system.channel import key_from_environment
from megatron_rl.system.control import answer_calls, call_in

METHODS = ("config", "learn", "attach", "connect", "poison", "pull", "digest", "verify", "commit")
_KEPT = "megatron_rl_weights"  # attribute of the model that lives from swap to swap


class Weights:
    """One worker's weights: what rank 0 can ask for."""

    def __init__(self, model: torch.nn.Module, rank: int) -> None:
        self.model, self.rank = model, rank
        self.receiver: Receiver | None = None
        self.learnt: Any = None
        self.fingerprint = ""
        self.found = False  # in this call, where they were learnt: SGLang moves nothing while it is in the hook

    def config(self) -> dict[str, Any]:
        """The model's config.json, with the rotary embedding that the server was started with.

        Not all that SGLang makes of it, which on a CPU has sizes that it pads.
        """
        config: Any = self.model.config
        path = Path(config.name_or_path) / "config.json"
        made = config.to_dict()
        if not path.is_file():
            return dict(made)
        said = json.loads(path.read_text(encoding="utf-8"))
        if not any(key in made for key in ROPE_KEYS):
            return dict(said)
        others = {key: value for key, value in said.items() if key not in ROPE_KEYS}
        return others | {key: made[key] for key in ROPE_KEYS if key in made}

    def learn(self, tensors: dict[str, TensorSpec], dtype: torch.dtype) -> tuple[Shard, frozenset[str], dict[str, str]]:
        """Trace the model's own loading: this worker's layout, the tensors it did not take, its parameters' dtypes."""
        self.learnt = learn(self.model, self.model.load_weights, tensors, dtype)  # type: ignore
        self.fingerprint = fingerprint(self.model, self.learnt.parameters)
        dtypes = {name: str(p.dtype).removeprefix("torch.") for name, p in self.learnt.parameters.items()}
        return self.learnt.shard, self.learnt.unread, dtypes

    def attach(self, source: SwapSource, layout: Layout) -> tuple[str, np.ndarray]:
        """Plan the way from the trainer's ranks into this worker, and poison its weights.

        Returns the plan's hash, and which of its copies are to this worker.
        """
        if self.receiver is not None:
            self.receiver.close()
        self.receiver = Receiver(layout, self.learnt.parameters, source, self.rank)
        self.receiver.poison()
        return self.receiver.plan_hash, self.receiver.indices

    def connect(self, meeting: Meeting) -> None:
        """Meet the trainer's ranks, which send from now on."""
        self._attached().connect(meeting)

    def poison(self) -> None:
        """Make the weights unusable."""
        self._attached().poison()

    def pull(self, version: int) -> tuple[float, int]:
        """Bring the weights, still poisoned; seconds and bytes."""
        return self._timed(lambda receiver: receiver.pull(version))

    def digest(self, version: int) -> tuple[float, int]:
        """As ``pull``, of weights that SGLang itself has loaded."""
        return self._timed(lambda receiver: receiver.digest(version))

    def verify(self, version: int, hashes: np.ndarray) -> None:
        """Compare what landed with the owners' hashes (uint64, one per copy to this worker): SwapError."""
        self._attached().verify(version, hashes)

    def commit(self, version: int) -> None:
        """Make the weights usable: all workers of the engine are proved."""
        self._attached().commit(version)

    def spoil(self) -> None:
        """After an error: whatever is in the weights now, they are not usable."""
        if self.receiver is not None:
            self.receiver.poison()

    def _timed(self, action: Callable[[Receiver], Any]) -> tuple[float, int]:
        receiver = self._attached()
        started = time.perf_counter()
        action(receiver)
        return time.perf_counter() - started, receiver.bytes

    def _attached(self) -> Receiver:
        if self.receiver is None:
            raise RuntimeError("the worker is not attached to a trainer")
        if not self.found and fingerprint(self.model, self.learnt.parameters) != self.fingerprint:
            raise RuntimeError("SGLang has moved its parameters since their layout was learnt")
        self.found = True
        return self.receiver


def swap(model: torch.nn.Module, named_tensors: Sequence[tuple[str, torch.Tensor]]) -> None:
    """The custom weight loader. ``named_tensors`` holds one entry, whose name is the call to make, as JSON."""
    call = json.loads(named_tensors[0][0])
    weights: Weights | None = getattr(model, _KEPT, None)
    if weights is None:
        weights = Weights(model, dist.get_rank())
        setattr(model, _KEPT, weights)
    weights.found = False
    try:
        with call_in(call["control"], key_from_environment(), call["session"], weights.rank) as connection:
            answer_calls(connection, weights, METHODS, call["seconds"], weights.spoil)
    except Exception:  # rank 0 sees a worker that is gone
        logging.getLogger(__name__).exception("a swap broke off")
        weights.spoil()
