"""What rank 0 has besides its share of the models: data, engines, reward workers and the records of a run.

The other ranks have an ``Elsewhere``, which answers None to the same questions, so that all ranks run the same lines.
"""

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from megatron_rl.config import Config
from megatron_rl.data.tokenizer import check_vocabulary, decode, end_tokens, load_tokenizer, make_encoder
from megatron_rl.errors import refuse
from megatron_rl.evaluation.answering import Speech
from megatron_rl.evaluation.during import Suites
from megatron_rl.evaluation.held_out import HeldOut
from megatron_rl.resharding.families.architecture import read_architecture
from megatron_rl.rewards.registry import changed_rubrics, reward_facts
from megatron_rl.rewards.scoring import judge, score
from megatron_rl.rewards.workers.pool import RewardPool, Scored
from megatron_rl.rollout.collect import collect
from megatron_rl.rollout.dynamic.refill import Drawn, Refill, Round
from megatron_rl.rollout.dynamic.stored import FILE as CARRIED
from megatron_rl.rollout.dynamic.stored import pack, unpack
from megatron_rl.rollout.embedded.client import EmbeddedEngine, EnginePool
from megatron_rl.rollout.measure import staleness
from megatron_rl.rollout.prefetch import Prefetch
from megatron_rl.rollout.protocol import Completion, Engine, Sampling
from megatron_rl.rollout.rollout import Rollout
from megatron_rl.rollout.saved import Saved, save_rollouts
from megatron_rl.rollout.strategies import Strategy
from megatron_rl.rollout.strategies.hinted import Hinted, require_steps
from megatron_rl.rollout.strategies.single import Single
from megatron_rl.system import stop
from megatron_rl.system.channel import ENGINES, key_from_environment
from megatron_rl.system.supervision.screen import activity, duration
from megatron_rl.tracking.clock import Clock
from megatron_rl.tracking.console import SHOWN, heldout_table, where_next
from megatron_rl.tracking.console import Progress as Shown
from megatron_rl.tracking.memory import memory
from megatron_rl.tracking.metrics import Metrics
from megatron_rl.tracking.run_folder import RunFolder
from megatron_rl.training.alarms import Alarms
from megatron_rl.training.batch import Step
from megatron_rl.training.beside import Beside
from megatron_rl.training.progress import Progress, due
from megatron_rl.training.stages.stage import Stage
from megatron_rl.training.supply import Supply
from megatron_rl.training.throughput import peak_flops, prompt_flops, update_flops


class Controller:
    """Owns the data, the engines, the reward workers and the records of a run.

    Without ``generates`` it has neither engines nor workers, whatever the configuration says.
    """

    def __init__(self, config: Config, run: RunFolder, at: Progress, generates: bool = True) -> None:
        self.config, self.run = config, run
        self.tokenizer = load_tokenizer(run.model_folder())
        check_vocabulary(self.tokenizer, run.hf_config())
        self.encode = make_encoder(self.tokenizer)
        self.end_tokens = end_tokens(run.model_folder(), self.tokenizer)
        self.arch = read_architecture(run.hf_config())
        self.peak_flops = peak_flops(getattr(torch, config.model.dtype))  # of one rank
        self.supply = Supply(config, self.tokenizer, at.stage, run.manifest())
        self.prompts = self.supply.prompts
        self.single = Single(self.encode, self.decode)  # of evaluations
        self.strategy = self._strategy()
        self.engine: Engine | None = None
        self.rewards: RewardPool | None = None
        if generates and self.supply.task is not None and config.scores():
            refuse(changed_rubrics(run.manifest().get("rewards", {}), reward_facts(config.rewards)))
            self.rewards = RewardPool(config.rewards, self.supply.task.report)
        if generates and config.generates():
            self.engine = _engine(config, run)
        self.rollouts = Prefetch(self._draw, self._collect, config.rollout.staleness, config.run.steps)
        self.batches = Refill(config.rollout, config.rewards.parts_at, self.rollouts.take, self._observe, self.warn)
        self.alarms = Alarms(config.alarms)
        self.beside = Beside(config, self.arch, self.peak_flops, run.nodes())
        self.held_out = HeldOut(self.supply.held_out(), config.evaluation)
        suites = config.evaluation.suites if config.generates() else {}
        self.suites = Suites(suites, Speech(self.tokenizer, self.end_tokens), config.rewards, config.run.seed)

    def begin(self, at: Progress, plan_hash: str, checkpoint: Path | None) -> None:
        """Open the records, and set the prompts and what waits for its step, where the run continues."""
        self.supply.restore(at)
        self.batches.cursor = at.cursors.get("rl", {})
        self.rollouts.number = self.batches.cursor.get("round", at.step if at.stage == "rl" else 0)
        under_way = [(indices, cursor, step) for indices, cursor, step in at.under_way]
        if under_way and all(len(indices) == self.config.rollout.round_size for indices, *_ in under_way):
            self.rollouts.kept.extend(under_way)  # a curriculum would choose others now
            self.prompts["rl"].restore(under_way[-1][1])
        if checkpoint is not None and (file := checkpoint / CARRIED).exists():
            self._carry_on(file.read_bytes())
        self.alarms.restore(at.alarms)
        self.strategy.restore(at.strategy)
        asked = reward_facts(self.config.rewards) if self.rewards is not None else {}
        self.run.update_manifest(
            plan_hash=plan_hash,
            peak_flops=self.peak_flops,
            **self.supply.facts(),
            **({"rewards": asked} if asked else {}),
        )
        for what, count in self.supply.notes.items():
            print(f"data: {count:,} {what}", flush=True)
        self.records = Metrics(self.run, self.config, at.records or None)
        self.shown = {
            name: Shown(name, steps, SHOWN[name][0], lines=SHOWN[name][1])
            for name, steps in self.config.chain().items()
        }
        self.clock = Clock(at.seconds)

    def batch(self, stage: Stage, at: Progress) -> Step:
        """What all ranks learn from in the step after ``at``."""
        self.clock.begin()
        doing = "generating" if stage.samples else "tokenising"
        with self._signs_of_life(f"{stage.name} step {at.step + 1}: {doing}"):
            self._step = stage.batch(self, at)
        if self.engine is not None and not stage.samples:
            self.engine.release()
        activity(f"{stage.name} step {at.step + 1}: learning")
        return self._step

    def take(self, at: Progress) -> Drawn:
        """The rollouts for the step after ``at``: made now, or begun up to rollout.staleness steps ago."""
        assert self.engine is not None
        drawn = self.batches.take(at.step, at.version)
        self.engine.release()
        drawn.metrics |= staleness(drawn.groups, at.version)
        self._drawn = drawn
        return drawn

    def before_swap(self) -> None:
        """Unless completions may be interrupted, wait for those that are under way and have an engine."""
        if self.engine is not None and not self.config.rollout.in_flight:
            self.rollouts.finish(self.engine.stalled)

    def record(self, at: Progress, metrics: dict[str, float], credit: list[float]) -> None:
        """Keep and show the numbers of the step that ``at`` has just completed."""
        metrics = self._step.metrics | metrics
        metrics |= self.clock.step(metrics["tokens"]) | memory()
        metrics |= self._utilisation(at, metrics["time/update"])
        self.records.log(at.step, metrics, at.stage)
        self.records.completions(at.step, self._rows(self._step.rollouts, credit))
        if self._step.rollouts and due(self.config.tracking.rollouts, at):
            self.keep_rollouts(self._drawn, at.step, at.version - 1, credit)
        self.shown[at.stage].step(at.step - 1, metrics)
        at.cursors[at.stage] = self._step.cursor
        if self._step.rollouts and self.beside.add(metrics, self._step.rollouts):
            self._compare()
        self._alarmed = self.alarms.look(metrics) if self._step.rollouts else []

    def _compare(self) -> None:
        """Show how long steps take, beside what was predicted, and keep it."""
        if found := self.beside.told():
            print("\n".join(found), flush=True)
            self.run.update_manifest(foreseen=self.beside.data())

    def keep_rollouts(self, drawn: Drawn, step: int, version: int, credit: list[float]) -> None:
        """Write all rollouts of a step that began with weights of a version."""
        facts = {"step": step, "seed": self.config.run.seed, "weight_version": version, "cursor": drawn.cursor}
        facts["metrics"] = {name: value for name, value in drawn.metrics.items() if not name.startswith("time/")}
        save_rollouts(self.run.rollouts, Saved(drawn.groups, credit, facts))

    def _utilisation(self, at: Progress, seconds: float) -> dict[str, float]:
        epochs = self.config.algorithm.epochs if at.stage == "rl" else 1
        step, whole, spared = self._step, 0.0, 0.0
        for rows, prompts, some in zip(step.minibatches, step.spared, step.learnable(), strict=True):
            if some:
                whole += epochs * update_flops(self.arch, rows)
                spared += epochs * prompt_flops(self.arch, prompts)
        possible = seconds * self.peak_flops * self.config.actor.sizes().world
        return {"mfu": (whole - spared) / possible, "shared_prompts": spared / max(whole, 1.0)}

    def alarmed(self) -> list[str]:
        """What the step that was recorded last raised alarms of."""
        return self._alarmed

    def evaluate(self, at: Progress, label: str, held_out: bool, suites: bool) -> dict[str, float]:
        """Metrics of the weights in the engine on held-out questions, on suites, or on both; none without an engine.

        Returned are those of the held-out questions, and the accuracy of each suite.
        """
        if self.engine is None:
            return {}
        metrics: dict[str, float] = {}
        with self.clock.span("evaluate"), self._signs_of_life(f"evaluating {label}"):
            if held_out and self.rewards is not None:
                metrics, rows = self._held_out(at, self.engine, self.rewards)
                self.records.completions(at.step, rows, label)
            if suites:
                of_suites, rows = self.suites(self.engine)
                metrics |= of_suites
                self.records.completions(at.step, rows, label)
        if metrics:
            recorded = metrics | {"weight_version": float(at.version)} | self.clock.spans("evaluate")
            self.records.log(at.step, recorded, "eval")
            told = {k: v for k, v in metrics.items() if k.endswith(("/correct", "/accuracy"))}
            shown = ", ".join(f"{k.removeprefix('evaluation/').replace('/', ' ')} {v:.3f}" for k, v in told.items())
            print(f"held-out, {label}: {shown}", flush=True)
        return {k: v for k, v in metrics.items() if not k.startswith("evaluation/") or k.endswith("/accuracy")}

    def _held_out(
        self, at: Progress, engine: Engine, rewards: RewardPool
    ) -> tuple[dict[str, float], list[dict[str, Any]]]:
        return self.held_out(
            self.single,
            engine,
            self.sampling,
            self.config.rollout.temperature,
            lambda groups: judge(rewards, groups, at.step),
            f"{self.config.run.seed}/heldout",
        )

    def warn(self, text: str) -> None:
        """Tell the user what does not stop the run."""
        print(f"warning: {text}", flush=True)

    def keep_batch(self, at: Progress) -> str:
        """Write the present step's rows beside the records, for whoever looks into what broke; returns the file."""
        return str(self.run.keep_rows(f"{at.stage}-{at.step + 1:06d}", self._step.minibatches))

    def settle(self, at: Progress) -> dict[str, bytes]:
        """Note in ``at`` how far the records reach, for the checkpoint that holds it; returns more files of it."""
        at.records = self.records.position()
        at.seconds = self.clock.seconds
        at.alarms = self.alarms.state()
        at.strategy = self.strategy.state()
        at.under_way = self.rollouts.under_way()
        at.observed = {stage: history for stage, prompts in self.prompts.items() if (history := prompts.history())}
        return {CARRIED: pack(self.batches.waiting)} if self.batches.waiting else {}

    def finish(self, at: Progress) -> None:
        """Print the summary of a run that is complete."""
        self.settle(at)
        print()
        self._compare()
        if table := heldout_table(at.evaluations, len(self.held_out.examples)):
            print(table)
        swaps = at.version + 1
        if self.engine is not None:
            print(f"{swaps} weight swap{'s' if swaps > 1 else ''}, each proved by its hashes; {duration(at.seconds)}.")
        print(where_next(self.run, at.stage, at.step), flush=True)
        self.run.mark_complete(at.stage, at.step)

    def close(self, at: Progress) -> None:
        """Finish the records, end the workers and the engines."""
        self.records.close()
        if self.rewards is not None:
            self.rewards.close()
        self.suites.close()
        if self.engine is not None:
            self.engine.stop()

    def stopping(self) -> bool:
        """Whether somebody has asked the run to stop."""
        return stop.requested()

    def decode(self, completion: Completion) -> str:
        """A completion's text, special tokens included but for the one that ended it."""
        stops = self.end_tokens if completion.finish_reason == "stop" else ()
        return decode(self.tokenizer, completion.tokens, stops)

    def sampling(self, temperature: float, experts: bool = False) -> Sampling:
        """The rollout's sampling parameters at a temperature (0: greedy)."""
        rollout = self.config.rollout
        return Sampling(
            max_new_tokens=rollout.max_new_tokens,
            temperature=temperature,
            top_p=rollout.top_p,
            top_k=rollout.top_k,
            stop_tokens=self.end_tokens,
            ignore_stop=rollout.ignore_eos,
            experts=experts,
        )

    @contextmanager
    def _signs_of_life(self, what: str) -> Iterator[None]:
        """Say every second how many completions the engines have made, while what is done inside goes on."""
        over = threading.Event()

        def say() -> None:
            while not over.wait(1.0):
                done, total = self.engine.progress() if self.engine is not None else (0, 0)
                activity(f"{what}, {done} of {total} completions" if total else what)

        activity(what)
        thread = threading.Thread(target=say, name="signs of life", daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()

    def _strategy(self) -> Strategy:
        """How groups come about; raises InputError for examples that it cannot be used with."""
        if self.config.rollout.strategy == "single" or not self.config.run.steps:
            return self.single
        assert self.supply.task is not None
        require_steps(self.supply.task.train, self.encode, self.config.data.max_prompt_tokens)
        return Hinted(self.config.rollout.hints, self.encode, self.decode)

    def _draw(self, number: int, step: int) -> tuple[list[int], dict[str, int], int]:
        """The examples of a round, where the prompts stand behind them, and the step that it is meant for."""
        prompts = self.prompts["rl"]
        return prompts.draw(self.config.rollout.round_size, step), prompts.state() | {"round": number + 1}, step

    def _observe(self, index: int, accuracy: float) -> None:
        self.prompts["rl"].observe(index, accuracy)

    def _carry_on(self, content: bytes) -> None:
        """Have the groups that wait in a checkpoint wait again."""
        waiting = unpack(content, self.prompts["rl"].examples.__getitem__, Scored)
        if self.config.rollout.dynamic.filter:
            self.batches.waiting = waiting
        else:
            self.warn(f"{len(waiting)} groups that waited for a step are left out: rollout.dynamic.filter=false.")

    def _collect(self, number: int, drawn: tuple[list[int], dict[str, int], int]) -> Round:
        """Rollouts of the present policy; in whatever thread ``Prefetch`` chooses."""
        (indices, cursor, step), rollout = drawn, self.config.rollout
        engine, rewards, task = self.engine, self.rewards, self.supply.task
        assert engine is not None and rewards is not None and task is not None
        done = collect(
            [task.train[index] for index in indices],
            rollout.group_size,
            self.strategy,
            engine,
            self.sampling(rollout.temperature, rollout.sglang.routing_replay),
            lambda groups: score(rewards, groups, step, rollout.max_new_tokens),
            f"{self.config.run.seed}/rl/{number}",
        )
        self.strategy.observe(done.groups)
        return Round(indices, done.groups, cursor, done.seconds)

    def _rows(self, rollouts: list[Rollout], credit: list[float]) -> list[dict[str, Any]]:
        """Some of a step's completions, evenly spread over its samples, as records."""
        count = min(self.config.tracking.completions, len(rollouts))
        return [
            {
                "id": (r := rollouts[i]).example.id,
                "data_source": r.example.data_source,
                "prompt": r.example.prompt,
                "response": r.text,
                "answer": r.example.answer,
                "reward": r.scored.reward,
                "components": r.scored.components,
                "report": r.scored.report,
                "advantage": credit[i],
                "tokens": r.length,
                "extra": r.example.facts,
                "finish_reason": r.finish,
                "weight_versions": r.versions,
            }
            | ({"round": r.round, "hint_rate": r.hint_rate} if r.hinted is not None else {})
            for i in np.linspace(0, len(rollouts) - 1, count).round().astype(int)
        ]


class Elsewhere:
    """A ``Controller``'s place on the ranks that have none."""

    engine = None

    def __init__(self) -> None:
        self.clock = Clock()

    def begin(self, at: Progress, plan_hash: str, checkpoint: Path | None) -> None: ...
    def batch(self, stage: Stage, at: Progress) -> None: ...
    def before_swap(self) -> None: ...
    def record(self, at: Progress, metrics: dict[str, float], credit: list[float]) -> None: ...
    def evaluate(self, at: Progress, label: str, held_out: bool, suites: bool) -> None: ...
    def warn(self, text: str) -> None: ...
    def keep_batch(self, at: Progress) -> None: ...
    def settle(self, at: Progress) -> None: ...
    def finish(self, at: Progress) -> None: ...
    def close(self, at: Progress) -> None: ...
    def stopping(self) -> None: ...
    def alarmed(self) -> None: ...


def _engine(config: Config, run: RunFolder) -> Engine:
    key = key_from_environment()
    if config.rollout.engine == "sglang":
        from megatron_rl.rollout.sglang.pool import SGLangEngines
        from megatron_rl.rollout.sglang.servers.hosts import hosts_of

        served = config.served()
        hosts = hosts_of(served.rollout.engines, served.trainers)
        return SGLangEngines(served, run.model_folder(), key, run.logs(), hosts)
    return EnginePool([EmbeddedEngine(address, key) for address in os.environ[ENGINES].split(",")], run.path / "swap")
