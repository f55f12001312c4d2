"""What rank 0 does besides training: draw prompts, have them completed and scored, build batches, keep the records."""

import os
import threading
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import xxhash

from megatron_rl.actor.rows import Sequence
from megatron_rl.algorithms.advantages import group_advantages
from megatron_rl.algorithms.aggregation import token_weights
from megatron_rl.config import Config
from megatron_rl.data.registry import make_task, require_targets
from megatron_rl.data.sampler import Sampler
from megatron_rl.data.task import Example
from megatron_rl.data.tokenizer import check_vocabulary, end_tokens, load_tokenizer, make_encoder
from megatron_rl.errors import InputError
from megatron_rl.evaluation.mean import summarise
from megatron_rl.rewards.pool import RewardPool, Scored
from megatron_rl.rewards.sample import Sample
from megatron_rl.rollout.embedded.client import EmbeddedEngine, EnginePool
from megatron_rl.rollout.prefetch import Ahead
from megatron_rl.rollout.protocol import Completion, Engine, Request, Sampling
from megatron_rl.system.channel import ENGINES, key_from_environment
from megatron_rl.tracking.console import RL_COLUMNS, SFT_COLUMNS, Progress, duration, summary_table, where_next
from megatron_rl.tracking.metrics import Metrics
from megatron_rl.tracking.run_folder import RunFolder

if TYPE_CHECKING:
    from megatron_rl.training.progress import Position


@dataclass
class Batch:
    """One rollout, ready for training: mini-batches of sequences, one optimiser step each per epoch."""

    minibatches: list[list[Sequence]]
    versions: list[tuple[int, int]]  # of the weights, and how many tokens they drew
    metrics: dict[str, float] = field(default_factory=dict)
    rows: list[dict[str, Any]] = field(default_factory=list)  # completions with their rewards, for the record


class Driver:
    """Owns the data, the engines, the reward workers and the records of a run."""

    def __init__(self, config: Config, run: RunFolder) -> None:
        self.config, self.run = config, run
        self.tokenizer = load_tokenizer(run.model_folder())
        check_vocabulary(self.tokenizer, run.hf_config())
        self.encode = make_encoder(self.tokenizer)
        self.task = make_task(config.data, config.run.seed, self.tokenizer)
        if config.sft.steps:
            require_targets(self.task)
        known = run.manifest().get("data_fingerprint", self.task.fingerprint())
        if known != self.task.fingerprint():
            raise InputError(f"The data of {run.path} changed since the run began: restore it, or use a new run.name.")
        seed, shuffle = config.run.seed, config.data.shuffle
        self.prompts = Sampler(self.task.train, config.rollout.prompts_per_step, seed, shuffle)
        self.targets = Sampler(self.task.train, config.sft.batch_size, seed + 1, shuffle)
        self.heldout = list(self.task.heldout[: config.evaluation.prompts])
        self.rewards = RewardPool(config.rewards)
        self.engine = _engine(config, run)
        self.rollouts = Ahead(self.collect, config.rollout.staleness, config.run.steps)
        self._scoring = threading.Lock()

    def begin(self, at: "Position", plan_hash: str) -> None:
        """Open the records where the run continues."""
        self.run.update_manifest(plan_hash=plan_hash, data_fingerprint=self.task.fingerprint())
        self.records = Metrics(self.run, self.config, at.records or None)
        self.progress = {
            "sft": Progress("sft", self.config.sft.steps, SFT_COLUMNS, lines=12),
            "rl": Progress("rl", self.config.run.steps, RL_COLUMNS),
        }
        self.earlier, self.started = at.seconds, time.monotonic()

    def record(self, at: "Position", metrics: dict[str, float], rows: list[dict[str, Any]] | None = None) -> None:
        """Keep and show the numbers of the step that ``at`` has just completed."""
        now = time.monotonic()
        seconds = now - getattr(self, "_last", self.started)
        self._last = now
        metrics = metrics | {"time/step": seconds, "tokens_per_second": metrics["tokens"] / seconds}
        self.records.log(at.step, metrics, at.stage)
        self.records.completions(at.step, rows or [])
        self.progress[at.stage].step(at.step - 1, metrics)

    def settle(self, at: "Position") -> None:
        """Note in ``at`` how far the records reach, for the checkpoint that holds it."""
        at.records = self.records.position()
        at.seconds = self.earlier + time.monotonic() - self.started

    def finish(self, at: "Position") -> None:
        """Close everything, print the summary."""
        self.settle(at)
        self.records.close()
        self.rewards.close()
        self.engine.stop()
        shown = {"before", "after SFT", "after RL"}
        results = {label: values for label, values in at.evaluations.items() if label in shown}
        names = list(dict.fromkeys(k for values in results.values() for k in values if not k.endswith("/length")))
        rows = {
            name.replace("/", ", ").replace("_", " "): {
                k: f"{100 * v[name]:.1f} %" for k, v in results.items() if name in v
            }
            for name in names
        }
        print()
        print(summary_table(rows, list(results), f"Held-out ({len(self.heldout)} prompts)"))
        print(f"{at.version + 1} weight swaps, each proved by its hashes; {duration(at.seconds)}.")
        print(where_next(self.run), flush=True)

    def sampling(self, temperature: float, experts: bool = False) -> Sampling:
        """The rollout's sampling parameters at a temperature (0: greedy)."""
        rollout = self.config.rollout
        return Sampling(
            max_new_tokens=rollout.max_new_tokens,
            temperature=temperature,
            top_p=rollout.top_p,
            top_k=rollout.top_k,
            stop_tokens=end_tokens(self.run.model_folder(), self.tokenizer),
            ignore_stop=rollout.ignore_eos,
            experts=experts,
        )

    def generate(
        self, examples: list[Example], samples: int, temperature: float, label: str, experts: bool = False
    ) -> list[list[Completion]]:
        """``samples`` completions per example; a seed depends on the run's seed, ``label`` and its place alone."""
        requests = [
            Request(
                self.encode(example.prompt),
                [
                    xxhash.xxh3_64_intdigest(f"{self.config.run.seed}/{label}/{i}/{j}".encode()) >> 1
                    for j in range(samples)
                ],
            )
            for i, example in enumerate(examples)
        ]
        return self.engine.generate(requests, self.sampling(temperature, experts))

    def score(self, examples: list[Example], groups: list[list[Completion]], step: int) -> list[tuple[Sample, Scored]]:
        """Every completion as text with its reward, group after group."""
        samples = [
            Sample(
                prompt=example.prompt,
                response=self.tokenizer.decode(completion.tokens, skip_special_tokens=False),
                answer=example.answer,
                data_source=example.data_source,
                extra=example.extra,
                step=step,
                finish_reason=completion.finish_reason,
            )
            for example, group in zip(examples, groups, strict=True)
            for completion in group
        ]
        return list(zip(samples, self.rewards.score(samples), strict=True))

    def take(self, at: "Position") -> Batch:
        """The rollout for the step after ``at``: made now, or begun up to rollout.staleness steps ago."""
        batch = self.rollouts.take(at.step)
        self.engine.release()
        versions = np.array([[at.version - version, count] for version, count in batch.versions])
        batch.metrics["staleness"] = float((versions[:, 0] * versions[:, 1]).sum() / versions[:, 1].sum())
        batch.metrics["staleness_max"] = float(versions[:, 0].max())
        return batch

    def before_swap(self) -> None:
        """Unless completions may be interrupted, wait for those that are under way and have an engine."""
        if not self.config.rollout.in_flight:
            self.rollouts.finish(self.engine.stalled)

    def collect(self, step: int) -> Batch:
        """One rollout of the present policy: prompts, completions, rewards, advantages, mini-batches."""
        rollout, algorithm = self.config.rollout, self.config.algorithm
        started = time.perf_counter()
        examples = self.prompts.draw(step)
        replay = rollout.sglang.routing_replay
        groups = self.generate(examples, rollout.group_size, rollout.temperature, f"rl/{step}", replay)
        generated = time.perf_counter()
        with self._scoring:
            scored = self.score(examples, groups, step)
        finished = time.perf_counter()
        rewards = np.array([s.reward for _, s in scored]).reshape(len(examples), rollout.group_size)
        advantages = group_advantages(rewards, algorithm.std, algorithm.std_eps)
        size = len(examples) // algorithm.minibatches
        minibatches = [
            self.sequences(examples[i : i + size], groups[i : i + size], advantages[i : i + size])
            for i in range(0, len(examples), size)
        ]
        metrics = self._metrics(examples, groups, scored, rewards)
        metrics |= {"time/generate": generated - started, "time/reward": finished - generated}
        versions = [span for group in groups for completion in group for span in completion.versions]
        return Batch(minibatches, versions, metrics, self._rows(groups, scored, advantages))

    def sequences(
        self, examples: list[Example], groups: list[list[Completion]], advantages: np.ndarray
    ) -> list[Sequence]:
        """The training sequences of one mini-batch; their weights add up to 1."""
        pairs = [(e, c) for e, group in zip(examples, groups, strict=True) for c in group]
        weights = token_weights([len(c.tokens) for _, c in pairs], self.config.algorithm.aggregation)
        return [
            _sequence(self.encode(e.prompt), c, weight=w, advantage=a)
            for (e, c), w, a in zip(pairs, weights, advantages.reshape(-1), strict=True)
        ]

    def imitate(self, step: int) -> list[Sequence]:
        """One supervised batch: prompt tokens weigh sft.prompt_weight, target tokens 1; weights add up to 1."""
        pairs = [(self.encode(e.prompt), self.encode(e.target)) for e in self.targets.draw(step)]
        weights = [
            np.concatenate([[0.0], np.full(len(p) - 1, self.config.sft.prompt_weight), np.ones(len(t))])
            for p, t in pairs
        ]
        total = sum(w.sum() for w in weights)
        return [
            Sequence(np.array(p + t, dtype=np.int64), {"weight": (w / total).astype(np.float32)})
            for (p, t), w in zip(pairs, weights, strict=True)
        ]

    def evaluate(self, at: "Position", label: str) -> dict[str, float]:
        """Held-out metrics of the present policy: one sample per prompt and, where asked for, the greedy completion."""
        if not self.heldout:
            return {}
        modes = {"sampled": self.config.rollout.temperature} | (
            {"greedy": 0.0} if self.config.evaluation.greedy else {}
        )
        result: dict[str, float] = {}
        for mode, temperature in modes.items():
            groups = self.generate(self.heldout, 1, temperature, "heldout")
            reports = [
                self.task.report(e, self.tokenizer.decode(g[0].tokens, skip_special_tokens=False))
                for e, g in zip(self.heldout, groups, strict=True)
            ]
            result |= {f"{mode}/{k}": v for k, v in summarise(reports).items()}
            result[f"{mode}/length"] = float(np.mean([len(g[0].tokens) for g in groups]))
        self.records.log(at.step, result | {"weight_version": float(at.version)}, "eval")
        shown = ", ".join(f"{k.replace('/', ' ')} {v:.3f}" for k, v in result.items() if k.endswith("/correct"))
        print(f"held-out, {label}: {shown or 'no held-out examples'}", flush=True)
        return result

    def _metrics(
        self,
        examples: list[Example],
        groups: list[list[Completion]],
        scored: list[tuple[Sample, Scored]],
        rewards: np.ndarray,
    ) -> dict[str, float]:
        completions = [c for group in groups for c in group]
        per_completion = [e for e, group in zip(examples, groups, strict=True) for _ in group]
        reports = [self.task.report(e, s.response) for e, (s, _) in zip(per_completion, scored, strict=True)]
        lengths = np.array([len(c.tokens) for c in completions])
        metrics = {
            "reward": float(rewards.mean()),
            "reward_std": float(rewards.std()),
            "accuracy": summarise(reports)["correct"],
            "equal_groups": float((rewards == rewards[:, :1]).all(1).mean()),
            "length": float(lengths.mean()),
            "length_max": float(lengths.max()),
            "truncated": float(np.mean([c.finish_reason == "length" for c in completions])),
            "tokens": float(lengths.sum()),  # generated
            "reward_timeouts": float(sum(s.timed_out for _, s in scored)),
            "reward_crashes": float(sum(s.crashed for _, s in scored)),
        }
        components = summarise([s.components for _, s in scored])
        return metrics | {f"reward/{k}": v for k, v in components.items()}

    def _rows(
        self, groups: list[list[Completion]], scored: list[tuple[Sample, Scored]], advantages: np.ndarray
    ) -> list[dict[str, Any]]:
        completions = [c for group in groups for c in group]
        flat = advantages.reshape(-1)
        count = min(self.config.tracking.completions, len(completions))
        return [
            {
                "prompt": scored[i][0].prompt,
                "response": scored[i][0].response,
                "answer": scored[i][0].answer,
                "reward": scored[i][1].reward,
                "components": scored[i][1].components,
                "advantage": float(flat[i]),
                "finish_reason": completions[i].finish_reason,
                "weight_versions": completions[i].versions,
            }
            for i in np.linspace(0, len(completions) - 1, count).round().astype(int)
        ]


def _engine(config: Config, run: RunFolder) -> Engine:
    key = key_from_environment()
    if config.rollout.engine == "sglang":
        from megatron_rl.rollout.sglang.pool import SGLangEngines

        return SGLangEngines(config, run.model_folder(), key, run.logs())
    return EnginePool([EmbeddedEngine(address, key) for address in os.environ[ENGINES].split(",")])


def _sequence(prompt: tuple[int, ...], completion: Completion, *, weight: float, advantage: float) -> Sequence:
    tokens = np.array([*prompt, *completion.tokens], dtype=np.int64)

    def column(values: Any) -> np.ndarray:
        filled = np.zeros(len(tokens), dtype=np.float32)
        filled[len(prompt) :] = values
        return filled

    return Sequence(
        tokens,
        {
            "weight": column(weight),
            "advantage": column(advantage),
            "rollout_logprobs": column(completion.logprobs),
        },
        prompt=len(prompt),
        experts=completion.experts,
    )
