"""Block-wise FP8: against a tile-by-tile reference, and of shards against the full tensor, bit by bit."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_rl.errors import InputError
from megatron_rl.resharding import quantise
from megatron_rl.resharding.execute import pull
from megatron_rl.resharding.layout import Layout, ParallelSizes
from megatron_rl.resharding.layouts.fp8 import SCALE, cut_tensors, quantised_engine, quantised_source, scale_shape
from megatron_rl.resharding.layouts.megatron import megatron_layout
from megatron_rl.resharding.layouts.sglang import EngineSizes, sglang_layout
from megatron_rl.resharding.layouts.transformers import files_layout
from megatron_rl.resharding.plan import make_plan
from megatron_rl.resharding.proof import prove
from megatron_rl.resharding.quantise import (
    LARGEST,
    ShardQuantiser,
    _scale,
    dequantise_blockwise,
    quantise_blockwise,
    quantised_names,
)
from tests.conftest import PATIENCE, ROOT
from tests.resharding.families.test_families import DEEPSEEK, DEEPSEEK_V3, GLM4_MOE
from tests.resharding.reference import CUT as MODEL
from tests.resharding.reference import Case, Tensors, cases, hf_tensors, megatron_shards
from tests.resharding.sglang_reference import sglang_shards


def tiles_of(weight: torch.Tensor, block: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Every tile by itself, in plain arithmetic."""
    shape = [math.ceil(n / block) for n in weight.shape]
    quantised, scales = torch.empty(weight.shape, dtype=torch.float8_e4m3fn), torch.empty(shape)
    for i in range(shape[0]):
        for j in range(shape[1]):
            place = (slice(i * block, (i + 1) * block), slice(j * block, (j + 1) * block))
            tile = weight[place].to(torch.float32)
            scales[i, j] = tile.abs().max() / 448
            quantised[place] = (tile / scales[i, j]).to(torch.float8_e4m3fn)
    return quantised, scales


def same(a: torch.Tensor, b: torch.Tensor) -> bool:
    return a.dtype == b.dtype and torch.equal(a.view(torch.uint8), b.view(torch.uint8))


@settings(max_examples=40, deadline=None)
@given(
    st.integers(1, 300),
    st.integers(1, 300),
    st.sampled_from([torch.bfloat16, torch.float32]),
    st.sampled_from([128, 16, 5]),
)
def test_every_tile_has_its_own_scale(rows: int, cols: int, dtype: torch.dtype, block: int) -> None:
    weight = torch.randn(rows, cols).mul_(torch.rand(rows, 1) * 9).to(dtype)
    quantised, scales = quantise_blockwise(weight, block)
    expected, expected_scales = tiles_of(weight, block)
    assert same(scales, expected_scales) and same(quantised, expected)
    back = dequantise_blockwise(quantised, scales, torch.float32, block)
    largest = scales.repeat_interleave(block, 0)[:rows].repeat_interleave(block, 1)[:, :cols] * 448
    # e4m3 rounds to 3 bits after the leading one; below 2^-6 of its range in steps of 2^-9
    bound = (weight.float().abs() / 16).maximum(largest / 448 / 2**10)
    assert ((back - weight.float()).abs() <= bound * (1 + 1e-6)).all()
    aligned = rows // block * block // 2 // block * block
    upper = quantise_blockwise(weight[:aligned], block) if aligned else (quantised[:0], scales[:0])
    lower = quantise_blockwise(weight[aligned:], block)
    assert same(torch.cat([upper[0], lower[0]]), quantised) and same(torch.cat([upper[1], lower[1]]), scales)


@pytest.mark.parametrize("bands", [1, 2, 3, 80])
@pytest.mark.parametrize("shape", [(1, 1), (300, 500), (257, 129), (1000, 70)])
@pytest.mark.parametrize("start", [(0, 0), (37, 200), (128, 127)])
def test_bands_worked_on_together_change_no_bit(
    bands: int, shape: tuple[int, int], start: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a GPU; of a shard whose first element is at ``start`` of a tensor that is zero elsewhere."""
    whole = torch.zeros(start[0] + shape[0], start[1] + shape[1], dtype=torch.bfloat16)
    weight = whole[start[0] :, start[1] :].normal_()
    expected, scales = tiles_of(whole, 128)
    monkeypatch.setattr(quantise, "_slab", lambda cols, block, device: bands * block)
    first = [s // 128 for s in start]
    found = quantise.shard_amax(weight, start) / LARGEST
    assert torch.equal(found, scales[first[0] :, first[1] :])
    assert same(quantise._quantise(weight, start, found, 128), expected[start[0] :, start[1] :])


def test_scales_are_quotients_not_products_with_a_reciprocal() -> None:
    amax = torch.rand(10000) * 7
    assert torch.equal(_scale(amax), torch.from_numpy(amax.numpy() / np.float32(LARGEST)))
    assert not torch.equal(_scale(amax), amax * (1 / LARGEST))  # as CUDA divides by a number of Python's


@pytest.mark.parametrize("number", [torch.nan, torch.inf, -torch.inf])
def test_zeros_nan_and_wrong_scales(number: float) -> None:
    weight = torch.zeros(256, 256)
    weight[130, 3] = number
    quantised, scales = quantise_blockwise(weight)
    assert quantised[128:, :128].float().isnan().all() and scales[1, 0].isnan() and scales.isnan().sum() == 1
    back = dequantise_blockwise(quantised, scales, torch.float32)
    assert back[128:, :128].isnan().all() and not back[:128].any() and not back[:, 128:].any()
    with pytest.raises(ValueError, match=r"shape \[2, 1\]; .*\[256, 256\] in blocks of 128 needs \[2, 2\]"):
        dequantise_blockwise(quantised, scales[:, :1], torch.float32)


def test_every_fp8_number_is_read_as_torch_does() -> None:
    numbers = torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn)
    finite = numbers[~numbers.float().isnan()]
    assert len(finite) == 254
    for tensor in (finite, numbers):
        found = dequantise_blockwise(tensor[None], torch.ones(1, -(-len(tensor) // 128)), torch.float32)[0]
        assert torch.equal(found.view(torch.int32), tensor.float().view(torch.int32))


def test_which_tensors_are_quantised() -> None:
    names = quantised_names(DEEPSEEK_V3)
    layer = "model.layers.60."
    assert {n.removeprefix(layer) for n in names if n.startswith(layer) and ".experts." not in n} == {
        "self_attn.q_a_proj.weight",
        "self_attn.q_b_proj.weight",
        "self_attn.kv_a_proj_with_mqa.weight",
        "self_attn.kv_b_proj.weight",
        "self_attn.o_proj.weight",
        "mlp.shared_experts.gate_proj.weight",
        "mlp.shared_experts.up_proj.weight",
        "mlp.shared_experts.down_proj.weight",
    }
    assert sum(n.startswith(layer + "mlp.experts.") for n in names) == 3 * 256
    assert not any("norm" in n or "embed" in n or "head" in n or "gate." in n or "eh_proj" in n for n in names)
    assert not any(n.endswith("bias") for n in quantised_names(GLM4_MOE))


def quantised_model(hf: Tensors, names: set[str], block: int) -> Tensors:
    """A whole model, quantised tensor by tensor."""
    found = dict(hf)
    for name in names:
        found[name], found[name + SCALE] = quantise_blockwise(hf[name], block or max(hf[name].shape))
    return found


def offers(layout: Layout, shards: list[Tensors], names: set[str], block: int) -> list[Tensors]:
    """What every rank offers, the exchange of maxima played in one process: all give, then all take."""
    vectors: list[torch.Tensor] = []
    for rank, shard in enumerate(shards):
        ShardQuantiser(layout, rank, names, block)(shard, lambda vector: vectors.append(vector.clone()))
    assert len(vectors) == (len(shards) if cut_tensors(layout, names, block) else 0)
    largest = torch.stack(vectors).amax(0) if vectors else torch.empty(0)
    return [
        ShardQuantiser(layout, rank, names, block)(shard, lambda vector: vector.copy_(largest))
        for rank, shard in enumerate(shards)
    ]


def moved(source: Layout, held: list[Tensors], destination: Layout) -> list[Tensors]:
    """Execute the plan from one layout to the other; nothing is written into padding, which is 1."""
    plan = make_plan(source, destination)
    prove(plan, source, destination)
    flat = {(r, name): t.flatten() for r, rank in enumerate(held) for name, t in rank.items()}
    dtypes = {
        (s.local): spec.dtype for r in destination.ranks for s in r.segments if (spec := source.tensors[s.tensor])
    }
    landed = []
    for rank, shard in enumerate(destination.ranks):
        kinds = {n: getattr(torch, dtypes.get(n) or "float32") for n in shard.locals}
        tensors = {n: torch.ones(math.prod(shape)).to(kinds[n]) for n, shape in shard.locals.items()}
        pull([plan.copies[i] for i in plan.copies_to(rank)], flat, tensors)
        landed.append({n: tensors[n].view(shape) for n, shape in shard.locals.items()})
    return landed


@settings(max_examples=25, deadline=None)
@given(cases(), st.integers(0, 4))
def test_shards_give_the_bits_of_the_full_tensor(case: Case, block: int) -> None:
    """Boundaries of every kind cut through tiles; a block of 0 is one tile per tensor."""
    hf, names = hf_tensors(case.config, tags=False), quantised_names(case.config)
    layout = megatron_layout(case.config, case.a, **case.names)
    shards = megatron_shards(hf, case.config, case.a, case.fused_norms, case.grouped_experts)
    source = quantised_source(layout, names, block)
    held = offers(layout, shards, names, block)
    for shard, tensors in zip(source.ranks, held, strict=True):
        assert {n: tuple(t.shape) for n, t in tensors.items()} == shard.locals
    (landed,) = moved(source, held, quantised_source(files_layout(case.config), names, block))
    expected = quantised_model(hf, names, block)
    assert landed.keys() == expected.keys()
    for name, tensor in expected.items():
        assert same(landed[name], tensor.float() if tensor.dtype == torch.int64 else tensor), name


@pytest.mark.parametrize("model_type", ["deepseek_v3", "glm4_moe"])
@pytest.mark.parametrize("engine", [EngineSizes(), EngineSizes(tensor=2, data=2), EngineSizes(4, 2, 2)])
def test_an_engine_receives_weights_and_scales(model_type: str, engine: EngineSizes) -> None:
    block = 2
    config = (DEEPSEEK if model_type == "deepseek_v3" else GLM4_MOE) | {"num_hidden_layers": 2, "vocab_size": 9}
    hf, names = hf_tensors(config, tags=False), quantised_names(config)
    sizes = ParallelSizes(tensor=4, expert=2)
    layout = megatron_layout(config, sizes, fused_norms=True)
    held = offers(layout, megatron_shards(hf, config, sizes, fused=True), names, block)
    destination = quantised_engine(sglang_layout(config, engine), names, block)
    landed = moved(quantised_source(layout, names, block), held, destination)
    full = quantised_model(hf, names, block)
    weights = {n: t.view(torch.uint8) if n in names else t for n, t in full.items() if not n.endswith(SCALE)}
    scales = {n: full.get(n + SCALE, t) for n, t in hf.items()}
    for found, weight, scale in zip(
        landed, sglang_shards(weights, config, engine), sglang_shards(scales, config, engine), strict=True
    ):
        quantised = {n for n, t in weight.items() if t.dtype == torch.uint8}
        assert found.keys() == weight.keys() | {n + SCALE for n in quantised} and len(quantised) > 3
        for name in weight:
            real = weight[name]
            if name in quantised:
                assert torch.equal(found[name].view(torch.uint8), real), name
                assert torch.equal(found[name + SCALE], scale[name]), name
            elif "embed" not in name and "lm_head" not in name:  # whose padding is not written
                assert torch.equal(found[name], real), name


def test_an_engine_that_cuts_a_tile_is_refused() -> None:
    config = DEEPSEEK_V3 | {"num_hidden_layers": 1}
    names = quantised_names(config)
    with pytest.raises(InputError, match=r"rows 0 to 576 .*layers\.0\.mlp\.gate_proj\.weight.*128 x 128 FP8 tiles"):
        quantised_engine(sglang_layout(config, EngineSizes(tensor=32)), names)
    odd = config | {"intermediate_size": 18432 + 64}  # the second of the two matrices that lie on each other
    with pytest.raises(InputError, match=r"FP8 tiles: no parallel size changes that: keep the model's dtype"):
        quantised_engine(sglang_layout(odd, EngineSizes()), quantised_names(odd))
    held = quantised_engine(sglang_layout(config, EngineSizes(tensor=16)), names).ranks[15].locals
    assert held["model.layers.0.mlp.gate_up_proj.weight_scale_inv"] == (18, 56)
    assert held["model.layers.0.self_attn.fused_qkv_a_proj_with_mqa.weight_scale_inv"] == (17, 56)


def test_nothing_is_exchanged_where_tiles_are_whole() -> None:
    names = quantised_names(DEEPSEEK_V3)
    sizes = ParallelSizes(tensor=8, expert=8)
    assert cut_tensors(megatron_layout(DEEPSEEK_V3, sizes, fused_norms=True), names) == []
    cut = cut_tensors(megatron_layout(MODEL, ParallelSizes(tensor=2)), quantised_names(MODEL))
    assert [name.removeprefix("model.layers.0.") for name in cut] == [
        "self_attn.q_proj.weight",
        "self_attn.k_proj.weight",
        "self_attn.v_proj.weight",
        "self_attn.o_proj.weight",
        "mlp.gate_proj.weight",
        "mlp.up_proj.weight",
        "mlp.down_proj.weight",
    ]


def test_a_rank_without_quantised_parts_exchanges_where_its_parameters_are() -> None:
    names = quantised_names(MODEL)
    quantiser = ShardQuantiser(megatron_layout(MODEL, ParallelSizes(tensor=2)), 0, names)
    quantiser.segments, quantiser.boxes, quantiser.sizes = [], [], []
    seen: list[torch.device] = []
    quantiser({"0/norm": torch.empty(2, device="meta")}, lambda vector: seen.append(vector.device))
    assert [device.type for device in seen] == ["meta"]


def test_two_processes_agree_on_the_scales_of_cut_tiles(tmp_path: Path) -> None:
    hf, names, sizes = hf_tensors(MODEL, tags=False), quantised_names(MODEL), ParallelSizes(tensor=2)
    (tmp_path / "config.json").write_text(json.dumps(MODEL))
    for rank, shard in enumerate(megatron_shards(hf, MODEL, sizes)):
        torch.save(shard, tmp_path / f"{rank}.pt")
    script = Path(__file__).parent / "fp8_ranks.py"
    env = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    ranks = [
        subprocess.Popen([sys.executable, "-W", "ignore", str(script), str(rank), "2", str(tmp_path)], env=env)
        for rank in range(2)
    ]
    assert [rank.wait(PATIENCE) for rank in ranks] == [0, 0]
    held = [torch.load(tmp_path / f"{rank}.offered.pt") for rank in range(2)]
    source = quantised_source(megatron_layout(MODEL, sizes), names)
    (landed,) = moved(source, held, quantised_source(files_layout(MODEL), names))
    expected = quantised_model(hf, names, 128)
    assert landed.keys() == expected.keys() and scale_shape((160, 200)) == (2, 2)
    assert all(same(landed[name], expected[name]) for name in expected)


def test_kernels_quantise_as_torch_does() -> None:
    pytest.importorskip("triton")
    done = subprocess.run(
        [sys.executable, "-W", "ignore", str(Path(__file__).with_name("quantise_checks.py"))],
        env=os.environ | {"TRITON_INTERPRET": "1", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
