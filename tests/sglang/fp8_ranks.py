"""One trainer rank of the FP8 swap: argv: the model's folder, the engine's folder, where rank 0 writes what it saw.

Under the environment of torch.distributed; MEGATRON_RL_KEY is the run's key.
"""

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from megatron_rl.actor import accelerator, groups
from megatron_rl.actor.config import ActorConfig, OptimizerConfig
from megatron_rl.actor.trainer import Actor
from megatron_rl.resharding.layout import Layout
from megatron_rl.resharding.swap import SwapSource
from megatron_rl.resharding.terms import Attached, Reach, SwapReport
from megatron_rl.swap.trainer import Swap
from megatron_rl.system.channel import key_from_environment
from megatron_rl.system.control import Control
from tests.sglang.swap_ranks import learning

SECONDS = 60.0


class Engine:
    """Rank 0's side of one worker."""

    def __init__(self, folder: str, out: Path) -> None:
        self.control = Control(str(out / "control"), key_from_environment())
        session = self.control.session()
        script = Path(__file__).with_name("fp8_engine.py")
        command = [sys.executable, "-W", "ignore", str(script), folder, self.control.address, session]
        self.process = subprocess.Popen(command)
        (self.worker,) = self.control.collect(session, "worker", [0], SECONDS)

    def reach(self, places: Sequence[str]) -> Reach:
        return Reach(fp8=True)

    def attach(self, source: SwapSource) -> Attached:
        tensors = source.tensors()
        shard, unread, dtypes = self.worker.ask("learn", tensors, torch.bfloat16, seconds=SECONDS)
        layout = Layout(tensors, (shard,), unread)
        plan, _ = self.worker.ask("attach", source, layout, seconds=SECONDS)
        return Attached(layout, plan, dtypes)

    def begin_swap(self, version: int) -> None:
        self.version = version

    def finish_swap(self, version: int, hashes: np.ndarray) -> SwapReport:
        seconds, size = self.worker.ask("pull", version, seconds=SECONDS)
        self.worker.ask("verify", version, hashes, seconds=SECONDS)
        self.worker.ask("commit", version, seconds=SECONDS)
        return SwapReport(version, "", size, seconds)

    def differing(self, folder: Path) -> list[str]:
        return self.worker.ask("differing", str(folder), seconds=SECONDS)


def main() -> None:
    folder, engine_folder, out = Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3])
    config = ActorConfig(tensor_parallel=2)
    groups.initialize(config, seed=0)
    engine: Any = Engine(engine_folder, out) if dist.get_rank() == 0 else None
    actor = Actor(json.loads((folder / "config.json").read_text()), config, "bfloat16", str(folder))
    actor.new_optimizer(OptimizerConfig(lr=3e-3, warmup_steps=0, decay="constant"))
    swap = Swap(actor, engine)

    def imitation(logprobs, entropy, batch):
        loss = -(batch.columns["weight"] * logprobs).sum()
        return loss, {"loss": loss}

    seen = []
    for version in range(2):
        metrics = swap(version)
        swap.export(out / str(version), folder)
        if engine is not None:
            seen.append({"differing": engine.differing(out / str(version)), "metrics": metrics})
        actor.update(actor.pack(learning(version)), imitation, 3e-3)
    if engine is not None:
        (out / "seen.json").write_text(json.dumps(seen))
        engine.process.kill()
    groups.shutdown()


if __name__ == "__main__":
    accelerator.adapt()
    main()
