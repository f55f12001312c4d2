"""What each GPU computes, what check says of it, and what is advised."""

import pytest

from megatron_rl.actor.megatron.shapes import UNIFIED
from megatron_rl.resharding.families.architecture import read_architecture
from megatron_rl.resharding.layout import ParallelSizes
from megatron_rl.resharding.layouts.fp8 import canonical_box, quantised_names
from megatron_rl.resharding.layouts.megatron import megatron_layout
from megatron_rl.settings.check import check
from megatron_rl.settings.fit import warnings
from megatron_rl.settings.foresight.hardware import Hardware, named
from megatron_rl.settings.foresight.precision import (
    advice,
    block_scales,
    check_precision,
    check_weights,
    mismatch_of,
    mismatch_on,
    recipes,
)
from megatron_rl.system import machine
from tests.settings.foresight.shapes import QWEN3_8B, QWEN3_235B, SMALL, of_8b

DENSE, EXPERTS, TINY = (read_architecture(shape) for shape in (QWEN3_8B, QWEN3_235B, SMALL))
TABLE = {
    "a100": [],
    "rtx4090": ["delayed", "tensorwise"],
    "h100": ["delayed", "tensorwise", "blockwise"],
    "h200": ["delayed", "tensorwise", "blockwise"],
    "b200": ["delayed", "tensorwise", "blockwise", "mxfp8"],
}


@pytest.mark.parametrize("gpu", TABLE)
def test_the_table(gpu: str) -> None:
    assert recipes(named(gpu)) == TABLE[gpu]
    for fp8 in TABLE["b200"]:
        found = check_precision(fp8, named(gpu), None)
        assert len(found) == (fp8 not in TABLE[gpu])
        assert all(f"use actor.fp8={(TABLE[gpu] or ['none'])[-1]}." in said for said in found)


def test_weights_in_fp8_are_for_ada_and_hopper() -> None:
    assert check_weights(True, named("h100")) == [] == check_weights(False, named("b200"))
    (said,) = check_weights(True, named("b200"))
    assert said.startswith("actor.fp8_weights=true is for Ada and Hopper, and the B200")


def test_a_consumers_blackwell_lacks_mxfp8() -> None:
    on = Hardware("RTX 5090", 32 << 30, 0.0, capability=120, gpus=1)
    (said,) = check_precision("mxfp8", on, None)
    assert said.startswith("actor.fp8=mxfp8 is not among the products of the RTX 5090 (compute capability 12.0)")
    assert check_precision("blockwise", on, (13, 0)) == [] != check_precision("blockwise", on, (12, 8))
    assert check_precision("mxfp8", Hardware("an unknown GPU", 0, 0.0, gpus=1), None) == []  # which may have it


@pytest.mark.parametrize(
    ("gpu", "arch", "actor", "said"),
    [
        ("a100", DENSE, {}, "bfloat16; the A100 80 GB has no FP8 products"),
        ("h100", DENSE, {}, "bfloat16; actor.fp8=tensorwise 1.26 x and actor.fp8=blockwise 1.19 x as fast"),
        ("rtx4090", DENSE, {}, "actor.fp8=tensorwise 1.26 x as fast at the 8B shape on an H200 (measured), on the"),
        ("b200", DENSE, {}, "on the B200 not measured (it has tensorwise, blockwise, mxfp8)"),
        ("h100", TINY, {}, "bfloat16; FP8 pays for dense models from about 7 B on, and this one has 0.0 B"),
        ("h200", EXPERTS, {}, "bfloat16; for experts of width 1536 FP8 gains next to nothing"),
        ("h200", DENSE, {"fp8": "blockwise"}, "FP8 blockwise; unified with the engines' FP8: blocks of 128 x 128"),
        (
            "h200",
            DENSE,
            {"fp8": "blockwise", "bf16_layers": 2},
            "unified with the engines' FP8, but for 4 of 36 layers",
        ),
        (
            "h200",
            DENSE,
            {"fp8": "tensorwise", "bf16_layers": 2},
            "first and the last 2 layers in bfloat16; the engines'",
        ),
        (
            "b200",
            DENSE,
            {"fp8": "blockwise"},
            "not unified with the engines' FP8: on the B200 SGLang quantises once more",
        ),
        (
            "h200",
            TINY,
            {"fp8": "blockwise"},
            "not unified with the engines' FP8: hidden_size is 32, which blocks of 128",
        ),
    ],
)
def test_advice(gpu: str, arch: object, actor: dict, said: str) -> None:
    config = of_8b()
    config.rollout.sglang.fp8 = True
    for name, value in actor.items():
        setattr(config.actor, name, value)
    assert said in advice(config, arch, named(gpu, 1, 8))  # type: ignore[arg-type]
    config.model.dtype = "float32"
    assert advice(config, arch, named(gpu, 1, 8)) == "float32"  # type: ignore[arg-type]


def test_rollouts_in_fp8_need_their_mismatch_corrected() -> None:
    config = of_8b()
    assert warnings(config) == []
    config.rollout.sglang.fp8 = True
    (said,) = warnings(config)
    assert "the actor computes in bfloat16" in said and "algorithm.correction=truncated" in said
    config.actor.fp8 = "tensorwise"
    assert "with actor.fp8=tensorwise" in warnings(config)[0]
    for correction, fp8 in (("truncated", "none"), ("masked", "tensorwise"), ("none", "blockwise")):
        config.algorithm.correction, config.actor.fp8 = correction, fp8
        assert warnings(config) == []
    config.actor.bf16_layers = 2  # of which the engines have none
    (said,) = warnings(config)
    assert said.startswith("With actor.bf16_layers=2 the first and the last 2 layers are in bfloat16 in the actor")
    config.algorithm.correction = "truncated"
    assert warnings(config) == []


def test_blocks_that_do_not_divide_a_ranks_part_are_not_the_engines() -> None:
    """Qwen3-8B's 12,288 features of an MLP are 96 blocks, which 64 ranks cut apart."""
    config = of_8b()
    config.rollout.sglang.fp8, config.actor.fp8 = True, "blockwise"
    assert mismatch_of(config, DENSE) == []
    (said,) = mismatch_of(config, TINY)
    assert said.startswith("With actor.fp8=blockwise hidden_size is 32, which blocks of 128 do not divide, so ")
    assert said.endswith("set algorithm.correction=truncated or masked.")
    config.actor.tensor_parallel = 64
    (said,) = mismatch_of(config, DENSE)
    assert "(num_attention_heads x head_dim / actor.tensor_parallel) is 64" in said
    assert said.endswith("truncated or masked, or lower the parallel size.")
    config.algorithm.correction = "masked"
    assert mismatch_of(config, DENSE) == []
    config.algorithm.correction, config.actor.fp8 = "none", "tensorwise"
    assert mismatch_of(config, DENSE) == []  # of which there is a warning whatever the sizes are


@pytest.mark.parametrize("head_dim", [64, 96, 128, 256])
@pytest.mark.parametrize("heads", [(8, 8), (16, 2)])
@pytest.mark.parametrize("tensor", [1, 2])
@pytest.mark.parametrize("mlp", [768, 640])
def test_blocks_are_the_engines_where_each_lies_in_one_tensor(
    head_dim: int, heads: tuple[int, int], tensor: int, mlp: int
) -> None:
    """Of the matrices as Megatron shards and fuses them, against Hugging Face's, of which the engines' blocks are."""
    shape = QWEN3_8B | {"num_attention_heads": heads[0], "num_key_value_heads": heads[1], "head_dim": head_dim}
    shape |= {"hidden_size": 1024, "intermediate_size": mlp, "num_hidden_layers": 1}
    names, layout = quantised_names(shape), megatron_layout(shape, ParallelSizes(tensor=tensor))
    alike = True
    for shard in layout.ranks:
        for s in (s for s in shard.segments if s.tensor in names):
            columns, grouped = shard.locals[s.local][-1], len(s.start) == 3  # by the heads' groups
            for group in range(s.shape[0] if grouped else 1):
                row, column = divmod(s.offset + group * s.strides[0] * grouped, columns)
                (theirs, at), extent = canonical_box(layout.tensors[s.tensor], s.start, s.shape)
                height = s.shape[1] if grouped else extent[0]
                theirs += group * layout.tensors[s.tensor].index[1] * grouped
                alike &= not any(n % UNIFIED for n in (row, column, theirs, at, height, extent[1]))
    config = of_8b()
    config.rollout.sglang.fp8, config.actor.fp8, config.actor.tensor_parallel = True, "blockwise", tensor
    assert (mismatch_of(config, read_architecture(shape)) == []) is alike


def test_check_warns_of_blocks_that_are_not_the_engines() -> None:
    """Of 12,800 features each of eight ranks has 12.5 blocks; an engine on one GPU has 100."""
    config, wider = of_8b(), QWEN3_8B | {"intermediate_size": 12800}
    config.rollout.sglang.fp8, config.actor.fp8 = True, "blockwise"
    config.actor.tensor_parallel, config.actor.sequence_parallel = 8, True
    with machine.standing_for((named("h200").memory,) * 8):
        assert check(config, contents=False, known=QWEN3_8B).warnings == []
        (said,) = check(config, contents=False, known=wider).warnings
    assert said.startswith("With actor.fp8=blockwise intermediate_size / actor.tensor_parallel is 1600, which blocks")


def test_blocks_are_not_the_engines_on_blackwell() -> None:
    config = of_8b()
    config.rollout.sglang.fp8, config.actor.fp8 = True, "blockwise"
    assert mismatch_on(config, named("h200")) == []
    (said,) = mismatch_on(config, named("b200"))
    assert said.startswith("On the B200 SGLang quantises the weights of rollout.sglang.fp8=true once more")
    config.algorithm.correction = "truncated"
    assert mismatch_on(config, named("b200")) == []
    config.algorithm.correction, config.actor.fp8 = "none", "mxfp8"
    assert mismatch_on(config, named("b200")) == []  # of which there is a warning on any GPU


def test_blocks_are_scaled_as_the_engines_where_both_have_them(monkeypatch: pytest.MonkeyPatch) -> None:
    name = "NVTE_FP8_BLOCK_SCALING_FP32_SCALES"
    monkeypatch.delenv(name, raising=False)
    config = of_8b()
    config.rollout.sglang.fp8 = True
    for fp8 in ("none", "tensorwise", "blockwise"):
        config.actor.fp8 = fp8
        assert block_scales(config, 90) == ({name: "1"} if fp8 == "blockwise" else {})
    assert block_scales(config, 100) == {}  # which emulates them with powers of two
    monkeypatch.setenv(name, "0")
    assert block_scales(config, 90) == {name: "0"}
    assert f"{name}=0 asks for other scales" in advice(config, DENSE, named("h200", 1, 8))
    (said,) = warnings(config)
    assert said.startswith(f"{name}=0 in the environment has Transformer Engine scale the blocks")
    monkeypatch.setenv(name, "1")
    assert warnings(config) == []
    config.rollout.sglang.fp8 = False
    assert block_scales(config, 90) == {}
