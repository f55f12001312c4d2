"""What a run will need and how long its steps will take, on hardware that need not be here. Imports no torch."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from megatron_rl.config import Config
from megatron_rl.resharding.families.architecture import Architecture, read_architecture
from megatron_rl.settings.footprint import WEIGHT_BYTES, readable
from megatron_rl.settings.foresight.hardware import Hardware
from megatron_rl.settings.foresight.held import whole
from megatron_rl.settings.foresight.memory import Memory, trainer_memory
from megatron_rl.settings.foresight.places import Places, places
from megatron_rl.settings.foresight.seconds import Step, assumed, on_host, on_links, seconds, token_bytes
from megatron_rl.settings.foresight.work import Workload, scores, workload

_ASLEEP = 1.0e9  # bytes of a GPU that a colocated server keeps while the trainer has its memory; assumed
_LONG = 3600.0  # seconds of a step on a CPU that nobody means
_FEWEST = 4  # sequences of the longest kind that an engine must have room for


@dataclass(frozen=True)
class Forecast:
    """One step of RL, as it is predicted."""

    on: Hardware
    load: Workload
    trainer: Memory  # of the fullest rank
    engine_weights: float  # bytes of one worker of an engine
    engine_cache: float  # what is left for its keys and values; at least what is asked for, where it is not on a GPU
    running: float  # sequences that an engine decodes at a time
    engines: int  # that are started
    places: Places
    rate: float  # FLOP/s of dense products in the model's dtype, at most; 0: not known
    peak: float  # bytes of the fullest GPU, or of the fullest trainer process without one
    phases: dict[str, float]  # the same in each phase of a step
    step: Step | None  # None: the hardware's speed is not known, or there is no RL
    own: dict[str, str]  # what is assumed because of this configuration

    @property
    def fits(self) -> bool:
        """Whether it fits, by prediction."""
        return not self.on.gpus or self.peak <= self.on.memory

    @property
    def tokens_per_second(self) -> float:
        """New tokens of all completions over the seconds of a step."""
        return self.load.rows * self.load.completion / self.step.step if self.step else 0.0

    def warnings(self) -> list[str]:
        """What is likely to go wrong."""
        found, crowd, apart = [], self.places.crowd, self.places.apart
        if crowd > 1:
            found.append(
                f"rollout.engines={self.engines}: up to {crowd} engines are on the same GPUs and share their memory "
                f"and speed, which are there for {apart} engine{'s' if apart > 1 else ''}: rollout.engines={apart}."
            )
        if idle := self.places.idle:
            found.append(
                f"{idle} of {self.on.total} GPUs have nothing to do: each node that trains has {self.places.ranks} "
                f"trainer rank{'s' if self.places.ranks > 1 else ''}, and no engine is on these. Raise "
                "actor.data_parallel or rollout.engines, or take fewer GPUs."
            )
        if self.step is not None and not self.on.gpus and self.step.step > _LONG:
            found.append(
                f"A step is predicted to take {spelled(self.step.step)} on a CPU: such a model is trained on GPUs "
                "(--gpu NAME answers for them), or take a smaller one."
            )
        if self.fits:
            return found
        most = max(self.trainer.parts().items(), key=lambda part: part[1])
        return [
            *found,
            f"It will probably not fit: the fullest GPU is predicted to need {readable(self.peak)} of "
            f"{readable(self.on.memory)}, most of it {most[0]} ({readable(most[1])}). "
            + (
                "--suggest lists layouts that fit."
                if self.step is not None
                else "Shard further (actor.tensor_parallel, .pipeline_parallel or .data_parallel), or lower "
                "actor.micro_batch_tokens."
            ),
        ]

    def lines(self) -> dict[str, str]:
        """For people, as ``describe`` prints its lines."""
        on, parts = self.on, self.trainer.parts()
        where = f"{on.nodes} x {on.gpus} {on.name}, {readable(on.memory)} each" if on.gpus else f"{on.name}"
        held = ", ".join(f"{name} {readable(size)}" for name, size in parts.items() if size >= 5e5)
        found = {"hardware": where + (f" ({on.source})" if on.source else "")}
        if on.gpus:
            found["predicted"] = f"{readable(self.peak)} of {readable(on.memory)} on the fullest GPU"
        else:
            found["predicted"] = f"{readable(self.peak)} in the fullest trainer process, beyond its libraries"
        if len(self.phases) > 1:
            found["phases"] = ", ".join(f"{name} {readable(size)}" for name, size in self.phases.items())
        found["a rank"] = held
        if self.engine_cache:
            found["an engine"] = (
                f"{readable(self.engine_weights)} of weights a GPU, {readable(self.engine_cache)} for keys and values: "
                f"{self.running:.0f} sequences at a time"
                + (f", {self.places.crowd} engines on a GPU" if self.places.crowd > 1 else "")
                + (", on a trainer's GPU" if self.places.together else "")
            )
        if self.step is not None:
            found["a step"] = told(self.step)
            found["assumed"] = "; ".join(f"{name} {value}" for name, value in self.assumptions().items())
        return found

    def assumptions(self) -> dict[str, str]:
        """What the seconds rest on."""
        load, assume = self.load, assumed(self.on)
        return {
            "prompts of": f"{load.prompt:.0f} tokens",
            "completions of": f"{load.completion:.0f} (longest {load.longest})",
            "executed FLOPs of training at": f"{100 * assume.executed:.0f} % of {numbered(self.rate / 1e12)} TFLOP/s",
            "of experts at": f"{100 * assume.experts:.0f} % of that",
            "decoding at": f"{100 * assume.bandwidth:.0f} % of {self.on.bandwidth / 1e9:,.0f} GB/s, "
            f"or {100 * assume.decoding:.0f} % of the peak",
            "links at": f"{100 * assume.links:.0f} % of {numbered(self.on.near / 1e9)} and "
            f"{numbered(self.on.far / 1e9)} GB/s",
            "rewards": "none",
            **self.own,
        }

    def data(self) -> dict[str, Any]:
        """Plain data: bytes, seconds."""
        step = self.step
        return {
            "hardware": asdict(self.on),
            "workload": asdict(self.load),
            "memory": {
                "trainer": self.trainer.parts() | {"peak": self.trainer.peak},
                "engine": {"weights": self.engine_weights, "cache": self.engine_cache, "running": self.running},
                "together": self.places.together,
                "engines_on_a_gpu": self.places.crowd,
                "peak": self.peak,
                "phases": self.phases,
                "available": self.on.memory,
                "fits": self.fits,
            },
            "seconds": step.phases() if step else None,
            "mfu": step.mfu if step else None,
            "micro_batch_tokens": step.micro_batch if step else None,
            "tokens_per_second": self.tokens_per_second,
            "assumptions": asdict(assumed(self.on)),
        }


def told(step: Step) -> str:
    """A step's phases in words."""
    phases = step.phases()
    whole_step = phases.pop("step")
    parts = ", ".join(f"{name} {spelled(value)}" for name, value in phases.items() if value)
    lapped = "; generation beside the rest" if step.overlapped else ""
    return f"{spelled(whole_step)}: {parts}{lapped}; MFU of the updates {100 * step.mfu:.0f} %"


def spelled(value: float) -> str:
    """0.35 s, 12.3 s, 4,210 s."""
    return f"{value:,.0f} s" if value >= 100 else f"{value:.1f} s" if value >= 10 else f"{value:.2f} s"


def numbered(value: float) -> str:
    """0.125, 62.5, 2,250."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def foresee(
    config: Config,
    hf_config: Mapping[str, Any],
    on: Hardware,
    tokens: float | None = None,
    critic: Mapping[str, Any] | None = None,
    teacher: Mapping[str, Any] | None = None,
    prompt: float = 0.0,
) -> Forecast:
    """Of a configuration without violations; ``tokens``, ``prompt``: mean lengths (``work.workload``)."""
    arch = read_architecture(hf_config)
    beside = [read_architecture(model) if model is not None else None for model in (critic, teacher)]
    return foreseen(config, arch, on, workload(config, tokens, prompt), *beside)


def foreseen(
    config: Config,
    arch: Architecture,
    on: Hardware,
    load: Workload,
    critic: Architecture | None = None,
    teacher: Architecture | None = None,
) -> Forecast:
    """The same of what has been read."""
    rollout, item = config.rollout, WEIGHT_BYTES[config.model.dtype]
    trainer = trainer_memory(config, arch, on, critic, teacher)
    served = on.gpus > 0 and rollout.engine == "sglang" and config.generates() and not rollout.sglang.urls
    tensor = rollout.sglang.tensor_parallel if rollout.engine == "sglang" else 1
    weights = whole(arch) * (1 if rollout.sglang.fp8 and served else item) / tensor
    a_token = token_bytes(arch, item) / min(tensor, arch.kv_heads)
    where = places(config, on)
    together, crowd = where.together, where.crowd
    cache, running = 0.0, float(rollout.max_running)
    phases = {"update": trainer.updating if trainer.on_gpu else trainer.peak}
    if trainer.on_gpu and scores(config):
        phases = {"score": trainer.scoring} | phases
    if served:
        colocated = together and rollout.sglang.colocated
        least = _FEWEST * load.room * a_token
        beside = (trainer.resting if colocated else trainer.peak) if together else trainer.runtime
        cache = max((on.memory * 0.95 - beside) / crowd - weights, 0.0)
        running = min(running, cache / ((load.prompt + load.completion) * a_token))
        # Everything of the trainer's but what rests lives while it learns alone, when a colocated server sleeps.
        there = crowd * (_ASLEEP if colocated else weights + least) if together else 0.0
        phases = {
            "generate": beside + crowd * (weights + least),
            **{name: size + there for name, size in phases.items()},
            "swap": trainer.resting + (crowd * (weights + (0 if colocated else least)) if together else 0),
        }
    peak = max(phases.values())
    rate = on.rate(config.model.dtype)
    known = config.run.steps > 0 and rate > 0
    return Forecast(
        on,
        load,
        trainer,
        weights if config.generates() else 0.0,
        cache,
        running,
        rollout.engines,
        where,
        rate,
        peak,
        phases,
        seconds(config, arch, on, load, running, crowd) if known else None,
        on_host(config, on) | on_links(config, on),
    )
