"""The model inside of the embedded engine's process, and the state of its weights."""

import os
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForCausalLM
from transformers.initialization import no_init_weights

from megatron_rl.errors import InputError, SwapError
from megatron_rl.resharding.execute import flat, pull
from megatron_rl.resharding.families.architecture import read_architecture
from megatron_rl.resharding.folders.check import transformers_config
from megatron_rl.resharding.folders.hf import read_hf_config
from megatron_rl.resharding.folders.load import open_hf_folder
from megatron_rl.resharding.layouts.transformers import files_layout, transformers_layout
from megatron_rl.resharding.plan import make_plan
from megatron_rl.resharding.swap import Receiver, SwapSource
from megatron_rl.resharding.terms import Attached, SwapReport
from megatron_rl.rollout.embedded.attention import ATTENTION
from megatron_rl.rollout.embedded.decoder import stack_weights
from megatron_rl.rollout.embedded.generate import generate
from megatron_rl.rollout.embedded.score import score
from megatron_rl.rollout.embedded.true_on_policy import replace_layers
from megatron_rl.rollout.protocol import Completion, Given, Request, Sampling, Scored
from megatron_rl.system import machine


class TransformersEngine:
    """What a ``protocol.Engine`` has in its process: transformers' modules, built from a folder's config.json.

    Its weights are undefined, and it is poisoned (it raises ``SwapError`` instead of generating), until a swap has been
    verified or a folder's weights were loaded, and after a swap that began until it has been. ``say`` is told how many
    completions are done, and of how many.
    """

    def __init__(self, folder: Path, dtype: torch.dtype, max_running: int, true_on_policy: bool = False) -> None:
        self.layout = transformers_layout(read_hf_config(folder))
        config = transformers_config(folder)
        with no_init_weights():
            self.model = AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation=ATTENTION).eval()
        self.model.tie_weights()
        if true_on_policy:
            replace_layers(self.model)
        stack_weights(self.model)  # before a swap is planned to where they lie
        self.max_running = max_running
        self.say: Callable[[int, int], None] = lambda done, asked: None
        self.receiver: Receiver | None = None
        self.copying: Future[float] | None = None
        self.copier = ThreadPoolExecutor(1)
        self.version = -1  # of the weights; negative: poisoned
        self.poisoned = "no complete swap yet"

    def load(self, folder: Path) -> None:
        """Take the weights of a folder, as version 0: there is no trainer. Raises InputError as ``open_hf_folder``."""
        hf_config = read_hf_config(folder)
        tensors = open_hf_folder(folder, hf_config)
        plan = make_plan(files_layout(hf_config), self.layout)
        sources = {(0, name): tensor for name, tensor in tensors.items()}
        with torch.no_grad():
            pull(plan.copies, sources, {name: flat(p) for name, p in self.model.named_parameters()})
        self.version = 0

    def place(self) -> str:
        """Of this process, to compare with the ranks'."""
        return machine.place()

    def attach(self, source: SwapSource) -> Attached:
        """Plan the way from the ranks' memory into the model.

        Raises InputError when the trainer turns its queries and keys by other angles than transformers does.
        """
        if self.copying is not None:
            raise SwapError("a swap is running: finish it before the engine is attached again")
        self._poison("no complete swap since the engine was attached")
        if self.receiver is not None:
            self.receiver.close()
        _check_rotary(self.model, source.hf_config)
        self.receiver = Receiver(self.layout, dict(self.model.named_parameters()), source)
        return Attached(self.layout, self.receiver.plan_hash)

    def begin_swap(self, version: int) -> None:
        """Start copying in a thread."""
        if self.receiver is None:
            raise SwapError("the engine is not attached to a trainer")
        if self.copying is not None:
            raise SwapError(f"swap {version} began before the last one was finished")
        self._poison(f"swap {version} is not finished")
        self.copying = self.copier.submit(self._pull, self.receiver, version)

    def finish_swap(self, version: int, hashes: np.ndarray) -> SwapReport:
        """Wait for the copy and have it verified."""
        receiver, copying, self.copying = self.receiver, self.copying, None
        if receiver is None or copying is None:
            raise SwapError(f"swap {version} was not begun")
        self._poison(f"swap {version} failed")
        seconds = copying.result()
        receiver.verify(version, hashes)
        receiver.commit(version)
        self.version = version
        return SwapReport(version, receiver.plan_hash, receiver.bytes, seconds)

    def generate(self, requests: Sequence[Request], sampling: Sampling) -> list[list[Completion]]:
        """Completions by the weights of the last swap."""
        if self.version < 0:
            raise SwapError(f"the engine serves nothing: {self.poisoned}")
        return generate(
            self.model, requests, sampling, version=self.version, max_running=self.max_running, say=self.say
        )

    def score(self, given: Sequence[Given]) -> list[Scored]:
        """Log-probabilities of given tokens by the weights of the last swap."""
        if self.version < 0:
            raise SwapError(f"the engine serves nothing: {self.poisoned}")
        return score(self.model, given)

    def health(self) -> dict[str, Any]:
        """Process id, weight version (-1: poisoned) and resident memory in bytes."""
        pages = int(Path("/proc/self/statm").read_text(encoding="utf-8").split()[1])
        resident = pages * os.sysconf("SC_PAGE_SIZE")
        return {"pid": os.getpid(), "weight_version": self.version, "resident_bytes": resident}

    def release(self) -> None:
        """Nothing: the embedded engine keeps its memory, and takes weights in swaps only."""

    def stalled(self) -> bool:
        """Never: an embedded engine that ends ends the run."""
        return False

    def stop(self) -> None:
        """Let go of the ranks' memory."""
        self._poison("the engine was stopped")
        self.copier.shutdown()
        if self.receiver is not None:
            self.receiver.close()

    def _poison(self, reason: str) -> None:
        self.version, self.poisoned = -1, reason

    @staticmethod
    def _pull(receiver: Receiver, version: int) -> float:
        started = time.perf_counter()
        receiver.pull(version)
        return time.perf_counter() - started


def _check_rotary(model: torch.nn.Module, hf_config: Mapping[str, Any]) -> None:
    """No weight holds the rotary embedding, so no hash of a swap does: compare what both sides made of config.json."""
    ours = read_architecture(hf_config).inverse_frequencies()
    for name, module in model.named_modules():
        theirs = getattr(module, "inv_freq", None)
        scaling = getattr(module, "attention_scaling", 1.0)
        if theirs is not None and (scaling != 1.0 or not torch.equal(theirs.cpu(), ours)):
            raise InputError(
                f"The engine's rotary embedding ({name}, which transformers makes of config.json) is not the one that "
                f"the trainer computes: have config.json's rope_parameters say all of it, and no other key."
            )
