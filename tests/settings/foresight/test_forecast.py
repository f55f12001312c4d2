"""The whole forecast."""

import json
import sys
from collections import Counter
from collections.abc import Iterator

import pytest

from megatron_rl.config import Config
from megatron_rl.settings.foresight.forecast import foresee, told
from megatron_rl.settings.foresight.hardware import GPUS, Hardware, named, on_cpu
from megatron_rl.settings.foresight.suggest import applied
from megatron_rl.system import machine
from tests.settings.foresight.shapes import QWEN3_8B, QWEN3_235B, SMALL, of_8b, of_235b


@pytest.fixture(autouse=True)
def eight_gpus() -> Iterator[None]:
    """Of a node that is elsewhere."""
    with machine.standing_for((80 << 30,) * 8):
        yield


@pytest.mark.parametrize("gpu", GPUS)
def test_every_gpu_answers(gpu: str) -> None:
    config = of_8b()
    config.rollout.engines = config.actor.data_parallel = 8
    found = foresee(config, QWEN3_8B, named(gpu, 1, 8))
    assert found.step is not None and 0 < found.step.mfu < 0.6 and found.tokens_per_second > 0
    assert found.fits == (found.peak <= GPUS[gpu].memory) == (found.warnings() == [])
    assert json.loads(json.dumps(found.data()))["hardware"]["name"] == GPUS[gpu].name
    assert any("prompts of 512 tokens" in line for line in found.lines().values())


@pytest.mark.parametrize(("dtype", "peak"), [("bfloat16", "989"), ("float32", "67")])
def test_what_is_assumed_names_the_peak_of_the_dtype(dtype: str, peak: str) -> None:
    config = of_8b()
    config.model.dtype = dtype
    said = foresee(config, QWEN3_8B, named("h100", 1, 8)).assumptions()
    assert said["executed FLOPs of training at"] == f"53 % of {peak} TFLOP/s"


def test_engines_beside_on_and_apart_from_the_trainer() -> None:
    """A colocated server sleeps while the trainer learns; one that does not is there all the time."""
    config, hf_config = of_8b(), QWEN3_8B
    config.actor.tensor_parallel = 4
    h100 = named("h100", 1, 8)
    colocated = foresee(config, hf_config, h100)
    assert colocated.places.together
    assert colocated.peak == max(
        colocated.trainer.peak + 1e9,
        colocated.trainer.states + colocated.engine_weights + 4 * 3072 * 36 * 8 * 128 * 4,
    )
    config.rollout.sglang.colocated = False  # there are four GPUs more
    apart = foresee(config, hf_config, h100)
    assert not apart.places.together and apart.peak == apart.trainer.peak
    assert apart.engine_cache > colocated.engine_cache
    config.actor.tensor_parallel = 8
    crowded = foresee(config, hf_config, h100)
    assert crowded.places.together and crowded.peak > crowded.trainer.peak + crowded.engine_weights
    config.launch.nodes, config.launch.rollout_nodes = 2, 1
    assert not foresee(config, hf_config, named("h100", 2, 8)).places.together


def test_phases_of_a_colocated_step() -> None:
    """Asleep, gradients and optimiser make room for the engine's cache; nothing else changes."""
    config, on = of_8b(), named("h200", 1, 8)
    config.actor.data_parallel = config.rollout.engines = 8
    config.algorithm.minibatches = 2  # of which the second learns from another policy's completions
    awake = foresee(config, QWEN3_8B, on)
    assert list(awake.phases) == ["generate", "score", "update", "swap"] and awake.peak == max(awake.phases.values())
    assert awake.phases["update"] == awake.trainer.updating + 1e9
    assert awake.phases["swap"] == awake.trainer.states + awake.engine_weights
    config.actor.asleep = True
    asleep = foresee(config, QWEN3_8B, on)
    away = awake.trainer.gradients + awake.trainer.optimizer
    assert asleep.phases["update"] == awake.phases["update"]
    for phase in ("generate", "score", "swap"):
        assert awake.phases[phase] - asleep.phases[phase] == away
    assert asleep.engine_cache == pytest.approx(awake.engine_cache + away)
    assert "phases" in asleep.lines() and asleep.data()["memory"]["phases"] == asleep.phases


@pytest.mark.parametrize(
    ("rl", "kl", "sft", "pairs", "phases"),
    [
        (1, 0.0, 0, 0, ["generate", "update", "swap"]),
        (1, 0.1, 0, 0, ["generate", "score", "update", "swap"]),
        (1, 0.0, 0, 1, ["generate", "score", "update", "swap"]),
        (0, 0.1, 1, 0, ["update"]),
        (0, 0.0, 1, 1, ["score", "update"]),  # the reference's log-probs of the pairs
    ],
)
def test_phases_are_those_of_the_stages(rl: int, kl: float, sft: int, pairs: int, phases: list[str]) -> None:
    config = of_8b()
    config.evaluation.prompts = 0
    config.run.steps, config.algorithm.kl_coef, config.sft.steps, config.preference.steps = rl, kl, sft, pairs
    found = foresee(config, QWEN3_8B, named("h200", 1, 8))
    assert list(found.phases) == phases
    assert ("phases" in found.lines()) == (len(phases) > 1)


def test_engines_on_one_gpu_share_its_memory_and_speed() -> None:
    """Where GPUs run out, engines begin again at the first (``first_gpus``): no hardware comes from that."""
    config, on = of_8b(), named("h200", 1, 8)
    config.actor.data_parallel = config.rollout.engines = 8
    config.actor.asleep, config.actor.recompute = True, "full"
    alone = foresee(config, QWEN3_8B, on)
    config.rollout.engines = 16
    two = foresee(config, QWEN3_8B, on)
    assert (two.places.crowd, two.places.apart) == (2, 8) and alone.places.crowd == 1 and alone.warnings() == []
    assert two.warnings()[0].startswith("rollout.engines=16: up to 2 engines are on the same GPUs")
    room = 0.95 * on.memory - two.trainer.resting
    assert two.engine_cache == pytest.approx(room / 2 - two.engine_weights)
    assert alone.engine_cache == pytest.approx(room - two.engine_weights)
    least = 4 * 3072 * 36 * 8 * 128 * 4
    assert two.phases["generate"] == two.trainer.resting + 2 * (two.engine_weights + least)
    assert two.phases["update"] == alone.phases["update"] + 1e9
    assert two.step and alone.step and two.step.generate > alone.step.generate
    assert two.data()["memory"]["engines_on_a_gpu"] == 2


def test_engines_over_nodes_share_gpus_too() -> None:
    """Eight engines of eight workers on two nodes have 16 GPUs: those of two engines."""
    config, on = of_8b(), named("h100", 3, 8)
    config.actor.data_parallel = 8
    config.launch.nodes, config.launch.rollout_nodes = 3, 2
    sglang = config.rollout.sglang
    sglang.colocated, sglang.nodes, sglang.tensor_parallel, config.rollout.engines = False, 2, 8, 8
    found = foresee(config, QWEN3_8B, on)
    assert (found.places.crowd, found.places.apart, found.places.together) == (4, 2, False)
    assert found.warnings()[0].endswith("2 engines: rollout.engines=2.")
    config.rollout.engines = 2
    assert foresee(config, QWEN3_8B, on).places.crowd == 1
    # Beside ranks on the same nodes, four GPUs of each are left, and a worker of an engine lies on every one.
    config.launch.rollout_nodes, config.launch.nodes, sglang.nodes, sglang.tensor_parallel = 0, 2, 1, 1
    config.rollout.engines = 8
    assert foresee(config, QWEN3_8B, named("h100", 2, 8)).places.crowd == 1
    config.rollout.engines = 9
    assert (
        foresee(config, QWEN3_8B, named("h100", 2, 8)).places
        == foresee(applied(config, {"rollout.engines": 10}), QWEN3_8B, named("h100", 2, 8)).places
    )


def test_gpus_with_nothing_to_do_are_named() -> None:
    """Eight ranks on two nodes are four on each; so are colocated engines, which lie on the ranks' GPUs."""
    config = of_8b()
    config.actor.data_parallel = config.rollout.engines = 8
    config.actor.recompute = "full"
    two = foresee(config, QWEN3_8B, named("h200", 2, 8))
    assert (two.places.idle, two.places.ranks) == (8, 4)
    assert two.warnings()[-1].startswith("8 of 16 GPUs have nothing to do: each node that trains has 4 trainer ranks")
    for changed, nodes, idle in (
        ({"rollout.engines": 11}, 2, 5),  # six on the first node and five on the second
        ({"rollout.engines": 16}, 2, 0),
        ({"rollout.sglang.colocated": False}, 2, 0),
        ({"rollout.sglang.colocated": False, "rollout.engines": 3}, 2, 5),
        ({"rollout.sglang.colocated": False, "launch.rollout_nodes": 1, "rollout.engines": 7}, 2, 1),
        ({"rollout.sglang.colocated": False, "launch.rollout_nodes": 1}, 3, 8),
        ({}, 1, 0),
        ({"rollout.engine": "embedded", "actor.data_parallel": 6}, 1, 2),
    ):
        assert foresee(applied(config, changed), QWEN3_8B, named("h200", nodes, 8)).places.idle == idle


def test_computing_anew_takes_time() -> None:
    config, on, seconds = of_8b(), named("h200", 1, 8), []
    for how in (
        {"recompute": "none"},
        {"recompute": "selective", "recompute_modules": ["mlp"]},
        {"recompute": "full", "recompute_method": "block", "recompute_layers": 30},
        {"recompute": "full", "recompute_method": "uniform", "recompute_layers": 1},
    ):
        step = foresee(applied(config, {f"actor.{name}": value for name, value in how.items()}), QWEN3_8B, on).step
        assert step is not None
        seconds.append(step.update)
    assert seconds == sorted(seconds) and len(set(seconds)) == 4


def test_room_for_caches_bounds_how_many_are_generated_at_a_time() -> None:
    config = of_8b()
    config.actor.data_parallel = config.rollout.engines = 8
    roomy, tight = (foresee(config, QWEN3_8B, named(gpu, 1, 8)) for gpu in ("h200", "a100-80"))
    assert roomy.running == 256 > tight.running
    assert tight.running == tight.engine_cache / (1536 * 36 * 8 * 128 * 2 * 2)


def test_without_a_known_speed_there_is_memory_alone() -> None:
    found = foresee(of_8b(), QWEN3_8B, Hardware("X1", 1 << 40, 0.0, gpus=8))
    assert found.step is None and found.fits and found.tokens_per_second == 0 and "a step" not in found.lines()


def test_on_a_cpu() -> None:
    with machine.standing_for(()):
        config = Config()
        config.rollout.max_new_tokens = 32
        config.model.dtype = "float32"
        found = foresee(config, SMALL, on_cpu(1e11))
    assert found.fits and found.step is not None and "MFU" in told(found.step)
    assert found.lines()["predicted"].endswith("in the fullest trainer process, beyond its libraries")


def test_a_forecast_takes_no_time() -> None:
    """Counted from sizes: for 512 replicas by about as many calls as for 8, and not too many."""

    def calls(replicas: int) -> int:
        config, seen = of_235b(), Counter[str]()
        config.actor.data_parallel = replicas
        sys.setprofile(lambda frame, event, argument: seen.update([event]))
        try:
            foresee(config, QWEN3_235B, named("h100", replicas, 8))
        finally:
            sys.setprofile(None)
        return seen["call"] + seen["c_call"]

    calls(8)  # the first imports and remembers
    few, many = calls(8), calls(512)
    assert many < 1.2 * few and few < 100_000
