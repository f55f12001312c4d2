"""How well a policy does on questions that it was not trained on."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from megatron_rl.data.task import Example
from megatron_rl.evaluation.config import EvaluationConfig
from megatron_rl.rollout.collect import collect
from megatron_rl.rollout.mean import summarise
from megatron_rl.rollout.protocol import Engine, Sampling
from megatron_rl.rollout.rollout import Rollout
from megatron_rl.rollout.strategies import Strategy


@dataclass
class HeldOut:
    """A task's held-out examples, completed and judged by the task's report."""

    examples: Sequence[Example]
    config: EvaluationConfig

    def __call__(
        self,
        strategy: Strategy,
        engine: Engine,
        sampling: Callable[[float], Sampling],
        temperature: float,
        judge: Callable[[Sequence[Sequence[Rollout]]], Sequence[None]],
        seed: str,
    ) -> tuple[dict[str, float], list[dict[str, Any]]]:
        """Metrics of one sample per example and, where asked for, of the greedy completion; and every completion.

        Metrics are means over the examples, "{mode}/{name}"; ``seed`` as in ``collect``. Both are empty without
        examples.
        """
        modes = {"sampled": temperature} | ({"greedy": 0.0} if self.config.greedy else {})
        metrics: dict[str, float] = {}
        rows: list[dict[str, Any]] = []
        for mode, heat in modes.items() if self.examples else ():
            done = collect(self.examples, 1, strategy, engine, sampling(heat), judge, seed)
            rollouts = done.flat()
            reports = [r.scored.report for r in rollouts if r.scored.report is not None]
            metrics |= {f"{mode}/{k}": v for k, v in summarise(reports).items()}
            metrics[f"{mode}/length"] = float(np.mean([r.length for r in rollouts]))
            rows += [
                {
                    "mode": mode,
                    "id": r.example.id,
                    "data_source": r.example.data_source,
                    "prompt": r.example.prompt,
                    "response": r.text,
                    "answer": r.example.answer,
                    "report": r.scored.report,
                    "tokens": r.length,
                    "extra": r.example.facts,
                    "finish_reason": r.finish,
                }
                for r in rollouts
            ]
        return metrics, rows
