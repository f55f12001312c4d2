"""Memory of a rank, part by part: by hand, against measured peaks, and how it moves with the options."""

from dataclasses import replace

import pytest

from benchmarks.gpu_shapes import SHAPES
from megatron_rl.config import Config
from megatron_rl.resharding.families import with_scalar_head
from megatron_rl.resharding.families.architecture import read_architecture
from megatron_rl.settings.footprint import footprint
from megatron_rl.settings.foresight.hardware import GPUS, named, on_cpu
from megatron_rl.settings.foresight.held import held
from megatron_rl.settings.foresight.memory import KERNELS, RUNTIME, Memory, rank_memory, trainer_memory
from megatron_rl.settings.foresight.work import most_tokens
from tests.settings.foresight.shapes import QWEN3_8B, QWEN3_235B, SMALL, of_8b, of_235b

ARCH = read_architecture(QWEN3_8B)


def test_by_hand() -> None:
    """Qwen3-8B on two GPUs of data parallelism, 16,384 tokens a micro-batch, a reference."""
    config = of_8b()
    config.actor.data_parallel, config.actor.recompute, config.algorithm.kl_coef = 2, "full", 0.01
    found = rank_memory(config, ARCH, named("h200"), 0, 16384)
    layer = 4096 * (4096 + 2 * 1024) + 4096 * 4096 + 3 * 4096 * 12288 + 2 * 4096 + 2 * 128
    weights = 36 * layer + 2 * 151936 * 4096 + 4096
    assert found.weights == 2 * weights
    assert found.gradients == 4 * weights
    assert found.optimizer == 12 * weights / 2
    assert found.activations == 16384 * 2 * (36 * 4096 + 2 * 4096)
    logits, hidden = 2048 * 151936, 16384 * 4096  # the latter's gradient summed in float32, then rounded
    assert found.logits == 2 * 151936 * 4096 + 2 * logits + 6 * hidden + 4 * 8192 * 4096
    assert (found.reference, found.runtime) == (2 * weights, RUNTIME)  # copied from the host while it scores
    assert found.peak == found.states + 2 * weights > found.states + found.activations + found.logits
    on_a_cpu = rank_memory(config, ARCH, on_cpu(1e11), 0, 16384)
    assert on_a_cpu.states == found.states - RUNTIME + KERNELS + 2 * weights  # it stays


TORCH = {"attention": "torch"}
SIXTEEN = {"gradients": "bfloat16", "moments": "bfloat16"}


@pytest.mark.parametrize(
    ("shape", "layers", "tokens", "options", "peak", "resting"),
    [
        ("qwen3-4b", 36, 16384, TORCH, 135.2, 67.53),
        ("qwen3-4b", 36, 16384, {}, 129.56, 67.53),
        ("qwen3-8b", 18, 16384, TORCH, 122.12, 79.18),
        ("qwen3-8b", 18, 16384, TORCH | {"logprob_chunk": 16384}, 125.9, 79.18),
        ("qwen3-8b", 18, 16384, TORCH | {"fp8": "tensorwise"}, 125.2, 85.65),
        ("qwen3-8b", 18, 16384, TORCH | {"fp8": "blockwise"}, 125.4, 85.65),
        ("qwen3-8b", 18, 16384, {}, 119.31, 79.18),
        ("qwen3-8b", 18, 16384, {"fp8": "tensorwise"}, 120.16, 85.65),
        ("qwen3-8b", 18, 16384, {"fp8": "blockwise"}, 120.34, 85.65),
        ("qwen3-8b", 18, 16384, {"fp8": "blockwise", "fp8_weights": True}, 120.34, 85.65),
        ("qwen3-8b", 18, 16384, {"asleep": True}, 119.31, 8.88),
        ("qwen3-8b", 18, 16384, SIXTEEN, 92.94, 52.82),
        ("qwen3-8b", 36, 8192, SIXTEEN | {"recompute": "selective", "recompute_modules": ["mlp"]}, 109.01, 91.63),
    ],
)
def test_within_two_percent_of_what_was_measured_on_an_h200(
    shape: str, layers: int, tokens: int, options: dict, peak: float, resting: float
) -> None:
    """docs/benchmarks.md, "On a GPU": GiB of tensors, sequences of one length."""
    config = Config()
    config.actor = replace(config.actor, **options)
    arch = read_architecture(SHAPES[shape] | {"num_hidden_layers": layers})
    found = rank_memory(config, arch, named("h200"), 0, tokens, ragged=False)
    assert (found.peak - found.runtime) / 2**30 == pytest.approx(peak, rel=0.02)
    assert (found.resting - found.runtime) / 2**30 == pytest.approx(resting, rel=0.02)


@pytest.mark.parametrize("gpu", [*GPUS, "cpu"])
def test_more_recomputation_takes_less(gpu: str) -> None:
    """Attention that keeps no scores has as much to keep when it is computed again: there selective saves nothing."""
    config, peaks = of_8b(), []
    for config.actor.recompute in ("none", "selective", "full"):
        peaks.append(trainer_memory(config, ARCH, named(gpu)).peak)
    assert peaks[0] >= peaks[1] > peaks[2]
    assert gpu != "cpu" or peaks[0] > peaks[1]


@pytest.mark.parametrize(
    ("changed", "parts"),
    [
        ({"tensor_parallel": 2}, ("weights", "gradients", "optimizer", "activations", "logits")),
        ({"tensor_parallel": 2, "sequence_parallel": True}, ("weights", "activations")),
        ({"pipeline_parallel": 2}, ("weights", "gradients", "optimizer")),
        ({"data_parallel": 2}, ("optimizer",)),
        ({"context_parallel": 2}, ("optimizer",)),
        ({"micro_batch_tokens": 4096}, ("activations",)),
        ({"logprob_chunk": 512}, ("logits",)),
    ],
)
def test_what_sharding_saves(changed: dict, parts: tuple[str, ...]) -> None:
    config = of_8b()
    before = trainer_memory(config, ARCH, named("h100"))
    config.actor = replace(config.actor, **changed)
    after = trainer_memory(config, ARCH, named("h100"))
    assert after.peak < before.peak
    for part in parts:
        assert after.parts()[part] < before.parts()[part]


def test_stages_of_a_pipeline_keep_several_micro_batches() -> None:
    config = of_8b()
    config.actor.pipeline_parallel = 4
    kept = [rank_memory(config, ARCH, named("h100"), stage, 4096).activations for stage in range(3)]
    assert kept[0] / 4 == pytest.approx(kept[1] / 3) == pytest.approx(kept[2] / 2)
    config.actor.virtual_pipeline = 3  # as 2 x 3 + 2 x 4 + 1 chunks of three
    assert rank_memory(config, ARCH, named("h100"), 0, 4096).activations == pytest.approx(kept[0] / 4 * 15 / 3)


def test_models_beside_the_policy() -> None:
    """A critic has gradients and moments, a teacher weights."""
    config = of_8b()
    alone = trainer_memory(config, ARCH, named("h100"))
    critic, teacher = read_architecture(with_scalar_head(QWEN3_8B)), read_architecture(SMALL)
    both = trainer_memory(config, ARCH, named("h100"), critic, teacher)
    values, small = alone.weights / 2 - 151936 * 4096 + 4096, 2 * 58592
    assert both.beside == 18 * values + small
    assert both.peak - alone.peak == both.beside


def test_experts_are_sharded_over_their_own_ranks() -> None:
    config = of_235b()
    arch = read_architecture(QWEN3_235B)
    found = trainer_memory(config, arch, named("h100"))
    experts = 47 * 4 * 3 * 4096 * 1536  # of 128 experts each of 32 ranks has four
    assert found.weights / 2 - experts == pytest.approx(47 * 18.3e6 + 151936 * 1024, rel=0.02)
    assert found.optimizer == pytest.approx(12 * (experts + (found.weights / 2 - experts) / 8))


def test_the_largest_micro_batch() -> None:
    config = of_8b()
    assert most_tokens(config) == 16384  # 256 rows of up to 3,072 tokens would be more
    config.rollout.prompts_per_step, config.rollout.group_size = 1, 2
    assert most_tokens(config) == 2 * 3072
    config.actor.context_parallel = 4
    assert most_tokens(config) == 2 * 3072 / 4
    config.actor.packing = False
    assert most_tokens(config) == 3072 / 4
    config.run.steps, config.sft.steps, config.sft.data.path, config.sft.data.max_tokens = 0, 1, "rows.jsonl", 8192
    config.actor.packing = True
    assert most_tokens(config) == 16384


def test_adapters_have_gradients_and_moments_alone() -> None:
    config = of_8b()
    config.actor.lora.rank = 16
    found = trainer_memory(config, ARCH, named("h100"))
    adapters = 36 * 16 * ((4096 + 6144) + (4096 + 4096) + (4096 + 24576) + (12288 + 4096))
    assert found.gradients == pytest.approx(4 * adapters)
    assert found.optimizer == pytest.approx(12 * adapters)


def test_more_numbers_in_adapters_than_in_the_model_are_counted() -> None:
    config = of_8b()
    config.actor.lora.rank = 4000
    adapters = 36 * 4000 * ((4096 + 6144) + (4096 + 4096) + (4096 + 24576) + (12288 + 4096))
    assert trainer_memory(config, ARCH, named("h100")).gradients == pytest.approx(4 * adapters)


def test_frozen_weights_have_neither_gradients_nor_moments() -> None:
    """The embedding and the first 18 of Qwen3-8B's 36 layers."""
    config = of_8b()
    whole = trainer_memory(config, ARCH, named("h200"))
    config.actor.freeze = ["model.embed_tokens.*", "model.layers.{0-17}.*"]
    layer = 4096 * (4096 + 2 * 1024) + 4096 * 4096 + 3 * 4096 * 12288 + 2 * 4096 + 2 * 128
    trained = 18 * layer + 151936 * 4096 + 4096
    found = trainer_memory(config, ARCH, named("h200"))
    assert (found.gradients, found.optimizer) == (4 * trained, 12 * trained)
    assert (found.weights, found.activations) == (whole.weights, whole.activations)


def test_the_stage_of_which_nothing_is_frozen_is_the_fullest() -> None:
    config = of_8b()
    config.actor.pipeline_parallel, config.actor.freeze = 2, ["model.layers.{0-16}.*"]
    both = [rank_memory(config, ARCH, named("h200"), stage, 16384) for stage in (0, 1)]
    config.actor.freeze = []
    assert both[1] == rank_memory(config, ARCH, named("h200"), 1, 16384)
    layer = 4096 * (4096 + 2 * 1024) + 4096 * 4096 + 3 * 4096 * 12288 + 2 * 4096 + 2 * 128
    assert both[0].gradients == 4 * (layer + 151936 * 4096)


def test_frozen_experts_leave_the_rest_to_train() -> None:
    """A rank's experts are its own, with eight groups of them on eight ranks; the rest's state is shared by all."""
    config, arch = of_8b(), read_architecture(QWEN3_235B)
    config.actor.data_parallel = config.actor.expert_parallel = 8
    config.actor.freeze = ["*.mlp.experts.*"]
    found = rank_memory(config, arch, named("h200"), 0, 16384)
    dense = held(arch, config.actor.sizes(), 0).dense
    assert (found.gradients, found.optimizer) == (4 * dense, 12 * dense / 8)


def of_actor(**actor: object) -> Memory:
    config = of_8b()
    config.actor.data_parallel = 2
    config.actor = replace(config.actor, **actor)
    return trainer_memory(config, ARCH, named("h200"))


def test_what_options_of_memory_leave() -> None:
    """Qwen3-8B on two GPUs of data parallelism: 8.2 billion weights, of whose state each has a half."""
    plain = of_actor()
    weights = plain.weights / 2
    assert plain.optimizer == 12 * weights / 2
    assert of_actor(moments="bfloat16").optimizer == (4 + 4) * weights / 2
    assert of_actor(optimizer_on_host=0.75).optimizer == 3 * weights / 2
    assert of_actor(optimizer_on_host=1.0).optimizer == 0
    rounded = of_actor(gradients="bfloat16")
    assert rounded.gradients == plain.gradients / 2 and rounded.exchange == 4 * weights / 2
    assert of_actor(gradients="bfloat16", moments="bfloat16").exchange == 0
    assert rounded.peak < plain.peak
    asleep = of_actor(asleep=True)
    assert asleep.peak == plain.peak and plain.resting == plain.states
    assert asleep.resting == asleep.weights + asleep.runtime == plain.states - plain.gradients - plain.optimizer
    layers = weights - 2 * 151936 * 4096 - 4096
    fp8, half = of_actor(fp8="tensorwise"), of_actor(fp8="tensorwise", bf16_layers=9)
    assert fp8.weights == of_actor(fp8="tensorwise", fp8_weights=True).weights == 2 * weights + 2 * layers
    assert half.weights == 2 * weights + layers
    assert plain.activations - fp8.activations == 2 * (plain.activations - half.activations) > 0


def test_layers_that_are_computed_anew() -> None:
    none, full = of_actor(), of_actor(recompute="full")
    half = of_actor(recompute="full", recompute_method="block", recompute_layers=18)
    assert half.activations == pytest.approx((none.activations + full.activations) / 2)
    units = of_actor(recompute="full", recompute_layers=4)
    ends = 16384 * 2 * 2 * 4096
    assert units.activations - ends == pytest.approx((full.activations - ends) / 4)
    assert units.backward > 2 * full.backward
    mlp = of_actor(recompute="selective", recompute_modules=["mlp"])
    assert none.activations - mlp.activations == 16384 * 2 * 36 * 3 * 12288


def test_the_least_that_check_asks_for_follows() -> None:
    config = of_8b()
    config.actor.data_parallel = 2
    plain = footprint(config, QWEN3_8B)
    config.actor.moments, config.actor.gradients = "bfloat16", "bfloat16"
    count = plain.parameters
    assert plain.ranks[0] - footprint(config, QWEN3_8B).ranks[0] == 2 * count + 2 * count
    assert footprint(config, QWEN3_8B).host == plain.host == 0
    config.actor.moments, config.actor.gradients, config.actor.optimizer_on_host = "float32", "float32", 0.5
    half = footprint(config, QWEN3_8B)
    assert plain.ranks[0] - half.ranks[0] == 3 * count and half.host == 8 * count
    config.actor.asleep = True
    assert footprint(config, QWEN3_8B).host == 8 * count + 6 * count
