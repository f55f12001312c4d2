"""Seconds of a step: by hand, against measured speeds, and how they move with the options."""

from dataclasses import replace

import pytest

from benchmarks.gpu_shapes import SHAPES
from megatron_rl.config import Config
from megatron_rl.resharding.families.architecture import read_architecture
from megatron_rl.settings.foresight.hardware import GPUS, named
from megatron_rl.settings.foresight.held import active, whole
from megatron_rl.settings.foresight.seconds import ON_GPU, generating, learning, on_host, on_links, seconds
from megatron_rl.settings.foresight.work import (
    Workload,
    head_flops,
    layer_flops,
    micro_batches,
    row_flops,
    scored,
    workload,
)
from tests.settings.foresight.shapes import QWEN3_8B, QWEN3_235B, of_8b

ARCH = read_architecture(QWEN3_8B)
H100 = named("h100")


@pytest.mark.parametrize(
    ("shape", "layers", "length", "recompute", "fp8", "speed"),
    [
        ("qwen3-4b", 36, 4096, "full", "none", 12774),  # this and the next with an earlier head
        ("qwen3-4b", 36, 16384, "full", "none", 9217),
        ("qwen3-4b", 36, 4096, "none", "none", 18117),
        ("qwen3-8b", 18, 4096, "none", "none", 20121),
        ("qwen3-8b", 18, 4096, "none", "tensorwise", 26009),
        ("qwen3-8b", 18, 4096, "none", "blockwise", 23900),
    ],
)
def test_within_a_tenth_of_what_was_measured_on_an_h200(
    shape: str, layers: int, length: int, recompute: str, fp8: str, speed: float
) -> None:
    """docs/benchmarks.md, "On a GPU": tokens a second of updates on two micro-batches of 16,384 tokens."""
    config = Config()
    config.actor.recompute, config.actor.fp8 = recompute, fp8
    load = Workload(32768 // length, 1, 0, length, length, length, 1, 1)
    arch = read_architecture(SHAPES[shape] | {"num_hidden_layers": layers})
    _, update, _, size = learning(config, arch, named("h200"), load)
    assert size == 16384
    assert 32768 / update == pytest.approx(speed, rel=0.1)


def test_an_update_by_hand() -> None:
    """One GPU, no recomputation: three passes over the layers, four over the head, the optimiser."""
    config = of_8b()
    load = workload(config)
    assert (load.rows, load.prompt, load.completion, load.length) == (256, 512, 1024, 1536)
    forward, update, mfu, size = learning(config, ARCH, H100, load)
    tokens, trained = 256 * 1536, 256 * 1024
    layers = 2 * 36 * (4096 * (2 * 4096 + 2 * 1024) + 3 * 4096 * 12288) + 2 * 36 * 4096 * 1536
    head, rate = trained * 2 * 4096 * 151936, 989e12 * ON_GPU.executed
    weights = whole(ARCH)
    optimising = (weights * 8 + weights * 30) / (0.8 * 3.35e12)
    assert forward == pytest.approx((tokens * layers + head) / rate)
    assert update == pytest.approx((3 * tokens * layers + 4 * head) / rate + optimising + ON_GPU.update)
    assert mfu == pytest.approx(256 * row_flops(ARCH, 1536, 1024) / update / 989e12)
    assert size == 16384


def test_what_is_not_trained_has_no_gradient_to_compute() -> None:
    """Adapters and frozen layers: one pass fewer over matrices, on a CPU 0.71 and 0.83 x (docs/planning.md)."""
    config = of_8b()
    load, shape = workload(config), ARCH
    _, whole_update, _, _ = learning(config, shape, H100, load)
    layers = 256 * 1536 * layer_flops(shape)
    head, rate = 256 * 1024 * head_flops(shape), 989e12 * ON_GPU.executed
    optimising = whole(shape) * 38 / (0.8 * 3.35e12)
    config.actor.lora.rank = 16
    adapters = 16 * 36 * (4096 + 6144 + 4096 + 4096 + 4096 + 24576 + 12288 + 4096)
    share = adapters / whole(shape)
    _, update, _, _ = learning(config, shape, H100, load)
    saved = ((1 - 3 * share) * (layers + head)) / rate + (1 - share) * optimising
    assert update == pytest.approx(whole_update - saved, rel=1e-6)
    config.actor.lora.rank, config.actor.freeze = 0, ["model.layers.?.*"]
    _, frozen, _, _ = learning(config, shape, H100, load)
    left = 1 - 10 * (whole(shape) - 2 * 151936 * 4096 - 4096) / 36 / whole(shape)
    assert frozen == pytest.approx(whole_update - (1 - left) * ((layers + head) / rate + optimising), rel=1e-3)


def test_a_stage_of_which_nothing_is_trained_has_no_gradients_to_exchange() -> None:
    config = of_8b()
    config.actor.pipeline_parallel, config.actor.data_parallel = 2, 2
    config.actor.megatron = {"overlap_grad_reduce": True}
    config.actor.freeze = ["model.embed_tokens.*", "model.layers.?.*", "model.layers.1[0-7].*"]
    _, update, _, _ = learning(config, ARCH, H100, workload(config))
    config.actor.freeze = []
    assert 0 < update < learning(config, ARCH, H100, workload(config))[1]


def test_generation_by_hand() -> None:
    """256 completions at a time on one GPU: weights and caches are read at every step, but for the last long ones."""
    config = of_8b()
    load = workload(config)
    cached = 36 * 8 * 128 * 2 * 2
    weights = 2 * whole(ARCH)

    def step(sequences: float, context: float) -> float:
        return (weights + sequences * context * cached) / (0.8 * 3.35e12) + 36 * 3e-5

    prefill = 32 * 512 * 2 * active(ARCH) / (0.6 * 989e12)
    expected = prefill + 1024 * step(256, 512 + 512) + 1024 * step(25.6, 512 + 1024)
    assert generating(config, ARCH, H100, load, 1000.0) == pytest.approx(expected)
    assert generating(config, ARCH, H100, load, 64.0) == pytest.approx(prefill + 4 * 1024 * step(64, 1024))


@pytest.mark.parametrize("gpu", GPUS)
def test_more_recomputation_takes_longer(gpu: str) -> None:
    config, times = of_8b(), []
    for config.actor.recompute in ("none", "selective", "full"):
        times.append(learning(config, ARCH, named(gpu), workload(config))[1])
    assert times == sorted(times) and times[0] < times[1] < times[2]


def test_what_makes_updates_slower() -> None:
    """Small micro-batches, a pipeline's bubble, experts and tensor ranks that are on other nodes."""
    config = of_8b()
    load = workload(config)
    fast = learning(config, ARCH, H100, load)[1]
    config.actor.micro_batch_tokens = 256
    assert learning(config, ARCH, H100, load)[1] > 2 * fast
    config = of_8b()
    config.actor.packing = False
    assert learning(config, ARCH, H100, load)[3] == 1536
    config.actor.packing, config.actor.data_parallel = True, 8
    spread = learning(config, ARCH, named("h100", 1, 8), load)[1]
    assert fast / 8 < spread < fast / 7
    config.actor.data_parallel, config.actor.pipeline_parallel = 2, 4
    assert learning(config, ARCH, named("h100", 1, 8), load)[1] > spread
    config.actor.pipeline_parallel, config.actor.tensor_parallel = 1, 4
    near = learning(config, ARCH, named("h100", 1, 8), load)[1]
    assert near > spread
    config.actor.tensor_parallel, config.actor.data_parallel = 8, 1
    assert learning(config, ARCH, named("h100", 2, 4), load)[1] > learning(config, ARCH, named("h100", 1, 8), load)[1]


def test_links_are_those_between_the_nodes_that_ranks_are_dealt_to() -> None:
    """Eight ranks on two nodes of eight GPUs are four on each: gradients are added up over the network."""
    config = of_8b()
    config.actor.data_parallel = 8
    load, one, two = workload(config), named("h100", 1, 8), named("h100", 2, 8)
    gradients = whole(ARCH) * 6 * 7 / 8 / 0.75
    slower = learning(config, ARCH, two, load)[1] - learning(config, ARCH, one, load)[1]
    assert slower == pytest.approx(gradients / one.far - gradients / one.near)
    config.launch.rollout_nodes = 1  # the ranks have one node
    assert learning(config, ARCH, two, load) == learning(config, ARCH, one, load)
    config.launch.rollout_nodes = 0
    config.actor.tensor_parallel, config.actor.data_parallel = 4, 2  # of a node each
    near = learning(config, ARCH, one, load)[0]
    assert learning(config, ARCH, two, load)[0] == near
    config.actor.tensor_parallel, config.actor.data_parallel = 8, 1
    assert learning(config, ARCH, two, load)[0] > 3 * near


def test_the_hosts_part_of_the_optimiser_takes_time() -> None:
    """Its bytes over one thread's 10 GB/s, gradients and weights over PCIe; what sleeps goes there and comes back."""
    config = of_8b()
    load, weights = workload(config), whole(ARCH)
    update = learning(config, ARCH, H100, load)[1]
    config.actor.optimizer_on_host = 1.0
    away = weights * (28 / 10e9 + 8 / H100.host) - weights * 30 / (0.8 * H100.bandwidth)
    assert learning(config, ARCH, H100, load)[1] - update == pytest.approx(away)
    config.actor.optimizer_on_host, config.actor.asleep = 0.0, True
    assert learning(config, ARCH, H100, load)[1] - update == pytest.approx(2 * 12 * weights / H100.host)
    assert on_host(config, H100) == {"copies to the host and back at": "50 GB/s"}
    config.actor.optimizer_on_host = 0.5
    assert on_host(config, H100)["AdamW there at"] == "10 GB/s of memory a rank"


def test_what_overlaps_takes_the_passes_time() -> None:
    """All but a bucket, as long as the passes last; the last update's weights are wanted at once, by the swap."""
    config = of_8b()
    config.actor.data_parallel, config.algorithm.minibatches = 8, 4
    load, on, weights = workload(config), named("h100", 1, 8), whole(ARCH)
    after = learning(config, ARCH, on, load)[1]
    config.actor.megatron = {"overlap_grad_reduce": True}
    reduced = learning(config, ARCH, on, load)[1]
    number = weights * 7 / 8 / (0.75 * on.near)
    bucket = 1 - 40e6 / weights
    assert after - reduced == pytest.approx(4 * 4 * number * bucket)
    assert on_links(config, on) == {
        "gradients added up": "beside the passes, but for a bucket",
        "weights handed out": "after them",
    }
    config.actor.megatron |= {"overlap_param_gather": True}
    both = learning(config, ARCH, on, load)[1]
    assert reduced - both == pytest.approx(3 * 2 * number * bucket)
    config.actor.megatron["bucket_size"] = int(weights / 2)
    assert after - learning(config, ARCH, on, load)[1] == pytest.approx((4 * 4 + 3 * 2) * number / 2, rel=1e-6)
    config.actor.data_parallel, config.launch.nodes = 2, 2  # over a network that is slower than the passes
    config.actor.micro_batch_tokens = 512
    slow = replace(named("h100", 2, 1), far=1e8)
    lapped = learning(config, ARCH, slow, load)[1]
    config.actor.megatron = {}
    assert 0 < learning(config, ARCH, slow, load)[1] - lapped < lapped / 100
    config.actor.data_parallel = 1
    assert on_links(config, on) == {}
    config.rollout.sglang.nodes = 2
    assert on_links(config, on) == {"the network between an engine's nodes": "not counted"}


def test_engines_share_the_links_of_a_swap() -> None:
    """Of a GPU that has several of them, and of the ranks that send to all."""
    config = of_8b()
    load, on, size = workload(config), named("h100", 2, 8), 2 * whole(ARCH)

    def swap(crowd: int = 1) -> float:
        return seconds(config, ARCH, on, load, 256.0, crowd).swap - ON_GPU.swap

    hashing = size / ON_GPU.hashed
    alone = size / (0.75 * on.near)
    assert swap() == pytest.approx(alone + hashing)
    assert swap(crowd=2) == pytest.approx(2 * (alone + hashing))
    config.rollout.engines = 8  # from one rank
    assert swap() == pytest.approx(8 * alone + hashing)
    config.actor.data_parallel = 8
    assert swap() == pytest.approx(alone + hashing)
    config.launch.nodes, config.launch.rollout_nodes = 2, 1
    assert swap() == pytest.approx(size / (0.75 * on.far) + hashing)
    config.rollout.sglang.tensor_parallel, config.actor.data_parallel = 2, 4  # eight engines of two GPUs, four ranks
    assert swap() == pytest.approx(2 * size / (0.75 * on.far) + hashing)


def test_a_whole_step() -> None:
    config = of_8b()
    config.algorithm.kl_coef, config.algorithm.minibatches = 0.01, 4
    load = workload(config)
    step = seconds(config, ARCH, H100, load, 256.0)
    assert step.phases()["step"] == step.generate + step.learn + step.swap
    assert step.reference == pytest.approx(step.score + 2 * whole(ARCH) / H100.host)
    config.rollout.staleness = 1
    beside = seconds(config, ARCH, H100, load, 256.0)
    assert beside.step == max(step.generate, step.learn) + step.swap
    config.rollout.staleness, config.rollout.engine = 0, "embedded"  # beside the GPU, on a CPU
    assert seconds(config, ARCH, H100, load, 256.0).generate > 50 * step.generate
    config.run.steps = 0
    config.evaluation.prompts = 0
    assert seconds(config, ARCH, H100, load, 256.0).generate == 0


@pytest.mark.parametrize(
    ("changed", "roles"),
    [
        ({}, []),
        ({"kl_coef": 0.1}, ["reference"]),
        ({"minibatches": 2}, ["policy"]),
        ({"minibatches": 2, "bypass": True}, []),
        ({"name": "rloo", "kl_coef": 0.1}, ["policy", "reference"]),
        ({"name": "distillation"}, ["policy", "teacher"]),
        ({"name": "ppo"}, ["critic"]),
    ],
)
def test_who_is_scored(changed: dict, roles: list[str]) -> None:
    """As the algorithms themselves say (``PolicyGradient.needs``)."""
    config = Config()
    config.algorithm = replace(config.algorithm, **changed)
    assert scored(config) == roles


def test_micro_batches() -> None:
    config = of_8b()
    load = workload(config)
    assert micro_batches(config.actor, load, 1536.0) == (24, 16384.0)
    config.actor.data_parallel = 16
    assert micro_batches(config.actor, load, 1536.0) == (2, 12288.0)
    assert micro_batches(config.actor, replace(load, updates=4), 1536.0) == (4, 6144.0)
    config.actor.pipeline_parallel, config.actor.virtual_pipeline = 3, 2
    assert micro_batches(config.actor, load, 1536.0)[0] == 3
    assert workload(config, 100).completion == 100 and workload(config, 1e9).completion == 2048
    config.rollout.ignore_eos = True
    assert workload(config).completion == 2048


@pytest.mark.parametrize("running", [1, 4, 16, 256])
def test_engines_in_fp8_read_half_of_the_weights_of_experts_too(running: int) -> None:
    """At most twice as fast as in bfloat16, whatever share of the experts a step meets."""
    config, shape = of_8b(), read_architecture(QWEN3_235B)
    load = workload(config)
    taken = []
    for config.rollout.sglang.fp8 in (False, True):
        taken.append(generating(config, shape, H100, load, running))
    assert taken[0] / 2 <= taken[1] <= taken[0]
