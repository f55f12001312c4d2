"""How long the phases of RL's steps take, beside how long they were predicted to, and why where these are far apart."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from statistics import median
from typing import Any

import torch

from megatron_rl.actor import accelerator
from megatron_rl.config import Config
from megatron_rl.resharding.families.architecture import Architecture
from megatron_rl.rollout.rollout import Rollout
from megatron_rl.settings.foresight.forecast import foreseen, spelled
from megatron_rl.settings.foresight.hardware import Hardware, of_name, on_cpu
from megatron_rl.settings.foresight.seconds import ON_GPU, Step
from megatron_rl.settings.foresight.work import workload
from megatron_rl.system import machine

EARLY = 3  # steps after which it is said for the first time; the first, in which all is warmed up, does not count
FAR = 1.5  # times as long as predicted
_SMALL = {True: 4096, False: 512}  # tokens of a micro-batch that keep a GPU, or a CPU, busy


class Beside:
    """Collects the steps' rows on rank 0; ``peak``: FLOP/s of one rank's device."""

    def __init__(self, config: Config, arch: Architecture, peak: float, nodes: int = 1) -> None:
        self.config, self.arch, self.on = config, arch, _hardware(config, peak, nodes)
        self.rows: list[dict[str, float]] = []

    def add(self, metrics: Mapping[str, float], rollouts: Sequence[Rollout]) -> bool:
        """Take a step's row; returns whether it is time to say something."""
        row = {name: value for name, value in metrics.items() if name.startswith("time/") or name == "mfu"}
        drawn = sum(rollout.length for rollout in rollouts) / len(rollouts)
        whole = sum(len(rollout.tokens) for rollout in rollouts) / len(rollouts)
        self.rows.append(row | {"rows": len(rollouts), "completion": drawn, "prompt": whole - drawn})
        return len(self.rows) == EARLY

    def _median(self, name: str) -> float:
        counted = self.rows[1:] or self.rows
        return median(row.get(name, 0.0) for row in counted)

    def measured(self) -> dict[str, float]:
        """Seconds by phase, in the mean over steps; without what was never done."""
        found = {name: self._median(f"time/{name}") for name in ("generate", "reward", "score", "reference", "swap")}
        found["update"] = max(self._median("time/update") - found["score"] - found["reference"], 0.0)
        return {name: value for name, value in found.items() if value > 5e-4} | {"step": self._median("time/step")}

    def predicted(self) -> Step | None:
        """Of steps with completions as long as they were; None of a GPU whose speed is not known."""
        if self.on is None or not self.rows:
            return None
        load = replace(
            workload(self.config),
            rows=max(round(self._median("rows")), 1),
            prompt=self._median("prompt"),
            completion=max(self._median("completion"), 1.0),
        )
        return foreseen(self.config, self.arch, self.on, load).step

    def told(self) -> list[str]:
        """A line of phases and, where they are far apart, one of reasons; nothing before there is a step."""
        step = self.predicted()
        if step is None:
            return []
        phases, took = step.phases(), self.measured()
        parts = [
            f"{name} {spelled(value)}" + (f" ({spelled(phases[name])})" if phases.get(name) else "")
            for name, value in took.items()
        ]
        lines = [f"seconds of a step, measured (predicted): {', '.join(parts)}"]
        if reasons := self.reasons(step, took):
            lines.append(
                f"MFU {100 * self._median('mfu'):.2g} % (predicted {100 * step.mfu:.2g} %): {'; '.join(reasons)}"
            )
        return lines

    def reasons(self, step: Step, took: Mapping[str, float]) -> list[str]:
        """What probably makes it slower than predicted, or keeps a prediction low."""
        actor, rollout, found = self.config.actor, self.config.rollout, []
        slow = [name for name in ("generate", "update", "swap") if took.get(name, 0) > FAR * step.phases()[name]]
        on_gpu = self.on is not None and self.on.gpus > 0
        low = (on_gpu and step.mfu < ON_GPU.executed / 2) or self._median("mfu") < step.mfu / FAR
        if low and not actor.packing:
            found.append("packing off")
        if low and step.micro_batch < _SMALL[on_gpu]:
            size = f"{step.micro_batch / 1000:.2g}k" if step.micro_batch >= 1000 else f"{step.micro_batch:.0f}"
            found.append(f"micro-batches of {size} tokens")
        if low and actor.recompute == "full":
            found.append("recompute=full computes every layer twice")
        if low and actor.pipeline_parallel > 1:
            found.append(f"a pipeline of {actor.pipeline_parallel} stages waits at its ends")
        busy = actor.sizes().world * actor.threads + (rollout.engines * rollout.threads if step.overlapped else 0)
        cores = machine.cores()
        if not on_gpu and busy > cores:
            found.append(f"{busy} threads share {cores} cores")
        elif not on_gpu and slow and os.getloadavg()[0] > FAR * cores:
            found.append(f"other work on the machine: {os.getloadavg()[0]:.1f} processes want {cores} cores")
        if "generate" in slow and rollout.engine == "embedded" and on_gpu:
            found.append("the embedded engine generates on the CPU")
        if slow and not found:
            found.append(f"{', '.join(slow)} slower than assumed")
        return found

    def data(self) -> dict[str, Any]:
        """For the manifest."""
        step = self.predicted()
        assert step is not None
        took = self.measured()
        return {
            "steps": len(self.rows),
            "measured": took,
            "predicted": step.phases(),
            "mfu": {"measured": self._median("mfu"), "predicted": step.mfu},
            "reasons": self.reasons(step, took),
        }


def _hardware(config: Config, peak: float, nodes: int) -> Hardware | None:
    if not accelerator.on_gpu():
        return replace(on_cpu(peak, config.actor.threads), nodes=nodes)
    found = of_name(torch.cuda.get_device_name())
    return replace(found, nodes=nodes, gpus=max(len(machine.gpus()), 1)) if found else None
