"""Suites during a run, with its engines: ``evaluation.suites``."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from megatron_rl.errors import refuse
from megatron_rl.evaluation.answering import Record, Speech, answer
from megatron_rl.evaluation.config import SuiteConfig
from megatron_rl.evaluation.registry import make_suite, report_of, suite_config
from megatron_rl.evaluation.suite import Suite
from megatron_rl.evaluation.summary import summarise
from megatron_rl.rewards.config import RewardsConfig
from megatron_rl.rewards.scoring import judge
from megatron_rl.rewards.workers.pool import RewardPool
from megatron_rl.rollout.protocol import Completer
from megatron_rl.rollout.rollout import Rollout

AT_ONCE = 4096  # completions that the engines are asked for


class Suites:
    """The suites of a run, and the workers that judge them. Raises InputError for what cannot be read."""

    def __init__(self, options: Mapping[str, Any], speech: Speech, rewards: RewardsConfig, seed: int) -> None:
        self.speech, self.seed = speech, seed
        self.suites: dict[str, tuple[Suite, SuiteConfig]] = {}
        for name, given in options.items():
            config, problems = suite_config(name, given)
            refuse(problems)
            self.suites[name] = make_suite(name, config, speech.tokenizer, seed), config
        self.pool: RewardPool | None = None
        if self.suites:
            reports = report_of({name: suite for name, (suite, _) in self.suites.items()})
            self.pool = RewardPool(replace(rewards, terms={}, args={}, schedules={}, overlong_buffer=0), reports)

    def __call__(self, engine: Completer) -> tuple[dict[str, float], list[Record]]:
        """Metrics, ``evaluation/SUITE/…``, and the completions. Every evaluation of a run draws with the same seeds."""
        metrics: dict[str, float] = {}
        kept: list[Record] = []
        for name, (suite, config) in self.suites.items():
            made = answer(suite, config, self.speech, engine, self._judge, str(self.seed), 0, AT_ONCE)
            records = [record for some in made for record in some]
            metrics |= metrics_of(name, summarise(suite, records, config.samples))
            kept += [{"suite": name} | record for record in records]
        return metrics, kept

    def _judge(self, groups: Sequence[Sequence[Rollout]]) -> list[None]:
        assert self.pool is not None
        return judge(self.pool, groups, 0)

    def close(self) -> None:
        """End the workers."""
        if self.pool is not None:
            self.pool.close()


def metrics_of(name: str, summary: Mapping[str, Any]) -> dict[str, float]:
    """The numbers of a summary by the names of metrics."""
    found = {"accuracy": summary["accuracy"]["mean"]}
    found |= {"accuracy_low": summary["accuracy"]["low"], "accuracy_high": summary["accuracy"]["high"]}
    found |= {measure: value["mean"] for measure, value in summary["measures"].items()}
    found |= {f"pass_at_{k}": value["mean"] for k, value in summary.get("pass_at", {}).items()}
    found |= {f"majority_at_{k}": value["mean"] for k, value in summary.get("majority_at", {}).items()}
    for kind, names in summary["by"].items():
        if len(names) > 1:
            found |= {f"{kind}/{each}": value["mean"] for each, value in names.items()}
    found |= {key: float(summary[key]) for key in ("unreadable", "truncated", "tokens")}
    return {f"evaluation/{name}/{key}": value for key, value in found.items()}
