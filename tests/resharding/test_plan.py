"""Plans between random layouts, executed on tensors whose elements are numbered, against an independent reference."""

import dataclasses
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_rl.errors import InputError
from megatron_rl.resharding.execute import pull, source_hashes
from megatron_rl.resharding.layout import Layout, Padding, ParallelSizes, Segment, Shard, TensorSpec
from megatron_rl.resharding.layouts.megatron import layout_violations, megatron_layout
from megatron_rl.resharding.layouts.sglang import engine_violations, sglang_layout
from megatron_rl.resharding.layouts.transformers import files_layout, transformers_layout
from megatron_rl.resharding.plan import Copy, Plan, check_same_tensors, make_plan
from megatron_rl.resharding.proof import ProofError, check_layout, prove, tiles
from tests.resharding.families.test_families import GLM4_MOE
from tests.resharding.reference import Case, Tensors, cases, hf_tensors, megatron_shards, transformers_parameters
from tests.resharding.sglang_reference import sglang_shards

QWEN3: dict[str, Any] = {
    "model_type": "qwen3",
    "hidden_size": 4,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 2,
    "intermediate_size": 8,
    "vocab_size": 11,
    "num_hidden_layers": 4,
    "tie_word_embeddings": True,
}
LARGE = QWEN3 | {"hidden_size": 1024, "num_attention_heads": 16, "num_key_value_heads": 8, "head_dim": 128} | {
    "intermediate_size": 3072, "vocab_size": 151936, "num_hidden_layers": 28}  # fmt: skip


def run(plan: Plan, source: Layout, destination: Layout, held: list[Tensors]) -> list[Tensors]:
    """Execute a plan on every destination rank; padding keeps -1."""
    flat = {(r, name): t.flatten() for r, rank in enumerate(held) for name, t in rank.items()}
    landed = []
    for rank, shard in enumerate(destination.ranks):
        tensors = {n: torch.full((torch.Size(shape).numel(),), -1) for n, shape in shard.locals.items()}
        copies = [plan.copies[i] for i in plan.copies_to(rank)]
        hashes = pull(copies, flat, tensors)
        for r in range(len(source.ranks)):
            mine = [i for i, c in enumerate(copies) if c.source_rank == r]
            own = {name: t for (owner, name), t in flat.items() if owner == r}
            assert (source_hashes([copies[i] for i in mine], own, None) == hashes[mine]).all()
        landed.append({n: tensors[n].view(shape) for n, shape in shard.locals.items()})
    return landed


def assert_equal(found: list[Tensors], expected: list[Tensors]) -> None:
    assert [set(rank) for rank in found] == [set(rank) for rank in expected]
    for rank, tensors in enumerate(expected):
        for name, tensor in tensors.items():
            assert torch.equal(found[rank][name], tensor), (rank, name)


@settings(max_examples=60, deadline=None)
@given(cases())
def test_megatron_to_megatron_to_transformers_and_to_sglang(case: Case) -> None:
    hf = hf_tensors(case.config)
    assert layout_violations(case.config, case.a) == layout_violations(case.config, case.b) == []
    assert engine_violations(case.config, case.engine) == []
    files, module = files_layout(case.config), transformers_layout(case.config)
    engine = sglang_layout(case.config, case.engine)
    a, b = (megatron_layout(case.config, sizes, **case.names) for sizes in (case.a, case.b))
    shards_a, shards_b = (
        megatron_shards(hf, case.config, sizes, case.fused_norms, case.grouped_experts) for sizes in (case.a, case.b)
    )
    for source, held, destination, expected in (
        (files, [hf], a, shards_a),
        (a, shards_a, b, shards_b),
        (b, shards_b, module, [transformers_parameters(hf, case.config)]),
        (b, shards_b, engine, sglang_shards(hf, case.config, case.engine)),
        (a, shards_a, files, [hf]),
    ):
        plan = make_plan(source, destination)
        prove(plan, source, destination)
        assert_equal(run(plan, source, destination, held), expected)


@settings(max_examples=60, deadline=None)
@given(cases(), st.data())
def test_the_proof_sees_every_fault(case: Case, data: st.DataObject) -> None:
    source = megatron_layout(case.config, case.a, **case.names)
    destination = megatron_layout(case.config, case.b, **case.names)
    plan = make_plan(source, destination)
    i = data.draw(st.integers(0, len(plan.copies) - 1))
    copy = plan.copies[i]
    step = data.draw(st.sampled_from([-1, 1]))
    other = next(c for c in plan.copies if c.source != copy.source and c.destination != copy.destination)
    faults: dict[str, tuple[Copy, ...]] = {
        "deleted": (),
        "duplicated": (copy, copy),
        "read elsewhere": (copy._replace(source_offset=copy.source_offset + step),),
        "written elsewhere": (copy._replace(destination_offset=copy.destination_offset + step),),
        "read from another tensor": (copy._replace(source=other.source),),
        "written to another tensor": (copy._replace(destination=other.destination),),
        "cut": (copy._replace(shape=(copy.shape[0] + step, *copy.shape[1:])),),
        "read with other strides": (copy._replace(source_strides=(*copy.source_strides[:-1], 2)),),
        "written with other strides": (copy._replace(destination_strides=(*copy.destination_strides[:-1], 2)),),
        "from nowhere": (copy._replace(source_rank=len(source.ranks)),),
    }
    fault = data.draw(st.sampled_from(sorted(faults)))
    copies = (*plan.copies[:i], *faults[fault], *plan.copies[i + 1 :])
    with pytest.raises(ProofError) as error:
        prove(dataclasses.replace(plan, copies=copies), source, destination)
    assert copy.tensor in str(error.value)


def test_a_swap_of_two_copies_of_equal_shape_is_seen() -> None:
    """Gate in up's place: every byte is written once, and wrongly."""
    layout = files_layout(QWEN3)
    plan = make_plan(layout, layout)
    gate, up = (next(c for c in plan.copies if f"layers.0.mlp.{x}_proj" in c.tensor) for x in ("gate", "up"))
    exchanged = {gate: gate._replace(source=up.source), up: up._replace(source=gate.source)}
    with pytest.raises(ProofError, match=r"layers\.0\.mlp\.gate_proj"):
        prove(dataclasses.replace(plan, copies=tuple(exchanged.get(c, c) for c in plan.copies)), layout, layout)


def test_one_copy_per_box() -> None:
    """28 layers at TP2: two copies for each of 7 matrices, one for each of 4 norms; 2 embedding parts, 1 norm."""
    source, destination = megatron_layout(LARGE, ParallelSizes(tensor=2, pipeline=2)), transformers_layout(LARGE)
    plan = make_plan(source, destination)
    assert len(plan.copies) == 28 * (2 * 7 + 4) + 2 + 1
    assert sum(plan.bytes(2).values()) == 2 * 596_049_920  # parameters of Qwen3-0.6B
    assert sorted(i for r in range(4) for i in plan.copies_from(r)) == list(range(len(plan.copies)))
    assert plan.copies_to(0) == list(range(len(plan.copies)))
    assert plan.hash in plan.summary()


def test_what_adjoins_on_both_sides_travels_together() -> None:
    """Between equal shardings a layer's q, k, v and its gate, up are one copy each."""
    layout = megatron_layout(LARGE, ParallelSizes(tensor=2))
    plan = make_plan(layout, layout)
    assert len(plan.copies) == 2 * (28 * 8 + 2)
    qkv = next(c for c in plan.copies if "qkv.weight" in c.destination)
    assert qkv.tensors == tuple(f"model.layers.0.self_attn.{x}_proj.weight" for x in "qkv")
    assert (qkv.axis, [p.extent for p in qkv.parts], qkv.shape) == (1, [256, 128, 128], (4, 512, 1024))
    assert [c.shape for c in qkv.boxes()] == [(4, 256, 1024), (4, 128, 1024), (4, 128, 1024)]
    assert [c.source_offset // 1024 for c in qkv.boxes()] == [0, 256, 384]
    with pytest.raises(ProofError, match=r"q_proj\.weight, .*k_proj\.weight to .* is not the sum of its parts"):
        broken = qkv._replace(parts=qkv.parts[:2])
        prove(dataclasses.replace(plan, copies=tuple(broken if c is qkv else c for c in plan.copies)), layout, layout)
    half = make_plan(layout, megatron_layout(LARGE, ParallelSizes(tensor=1)))
    assert not any("fc1" in c.source and c.parts for c in half.copies)  # gate and up come from two ranks, interleaved


def test_replicas_share_the_load() -> None:
    source, destination = megatron_layout(LARGE, ParallelSizes(data=4)), transformers_layout(LARGE)
    sent = make_plan(source, destination).bytes(1)
    assert set(sent) == {(r, 0) for r in range(4)}
    mean = 596_049_920 / 4
    embedding = 151936 * 1024  # one copy, larger than a fair share
    assert sent[0, 0] == embedding
    assert max(sent[r, 0] for r in (1, 2, 3)) - min(sent[r, 0] for r in (1, 2, 3)) < 0.05 * mean


def test_the_nearest_replica_is_read() -> None:
    source = megatron_layout(QWEN3, ParallelSizes(data=4))
    destination = Layout(source.tensors, source.ranks[:2])
    plan = make_plan(source, destination, source_places=[("a",), ("b",)] * 2, destination_places=[("b",), ("a",)])
    assert {(c.destination_rank, c.source_rank % 2) for c in plan.copies} == {(0, 1), (1, 0)}
    assert {c.source_rank for c in plan.copies} == {0, 1, 2, 3}
    devices = [(0, 0), (0, 1), (1, 0), (1, 1)]
    plan = make_plan(source, destination, source_places=devices, destination_places=[(1, 0), (0, 1)])
    assert {(c.destination_rank, c.source_rank) for c in plan.copies} == {(0, 2), (1, 1)}


HASH = """
from megatron_rl.resharding.layout import ParallelSizes
from megatron_rl.resharding.layouts.megatron import megatron_layout
from megatron_rl.resharding.plan import make_plan
from megatron_rl.resharding.layouts.transformers import transformers_layout
import sys
config = {config!r}
print(make_plan(megatron_layout(config, {sizes!r}), transformers_layout(config)).hash, "torch" in sys.modules)
"""


def test_the_hash_is_the_same_in_every_process_and_needs_no_torch() -> None:
    sizes = ParallelSizes(tensor=2, pipeline=2, data=2)
    here = make_plan(megatron_layout(QWEN3, sizes), transformers_layout(QWEN3))
    for seed in "12":
        env = os.environ | {"PYTHONHASHSEED": seed, "PYTHONPATH": str(Path(__file__).parents[2])}
        code = HASH.format(config=QWEN3, sizes=sizes)
        out = subprocess.run([sys.executable, "-c", code], env=env, check=True, capture_output=True, text=True).stdout
        assert out.split() == [here.hash, "False"]


@settings(max_examples=20, deadline=None)
@given(cases(), st.data())
def test_the_hash_depends_on_every_number(case: Case, data: st.DataObject) -> None:
    plan = make_plan(megatron_layout(case.config, case.a), transformers_layout(case.config))
    i = data.draw(st.integers(0, len(plan.copies) - 1))
    copy = plan.copies[i]
    hashes = {plan.hash}
    for field in ("source_rank", "source_offset", "destination_rank", "destination_offset"):
        changed = copy._replace(**{field: getattr(copy, field) + 1})
        hashes.add(dataclasses.replace(plan, copies=(*plan.copies[:i], changed, *plan.copies[i + 1 :])).hash)
    for field in ("start", "shape", "source_strides", "destination_strides"):
        other: Any = (getattr(copy, field)[0] + 1, *getattr(copy, field)[1:])
        changed = copy._replace(**{field: other})
        hashes.add(dataclasses.replace(plan, copies=(*plan.copies[:i], changed, *plan.copies[i + 1 :])).hash)
    assert len(hashes) == 9


def test_what_an_engine_does_without_is_declared() -> None:
    config = GLM4_MOE | {"num_hidden_layers": 2}
    source, destination = megatron_layout(config, ParallelSizes(tensor=2)), transformers_layout(config)
    plan = make_plan(source, destination)
    prove(plan, source, destination)
    assert plan.unused == {name for name in source.tensors if name.startswith("model.layers.2.")}
    assert plan.tensors.keys() == source.tensors.keys() - plan.unused
    silent = dataclasses.replace(destination, unused=frozenset())
    with pytest.raises(ProofError, match="leaves other tensors unused than the destination declares"):
        prove(plan, source, silent)
    with pytest.raises(ProofError, match=r"Tensor model\.layers\.2\..* is not used"):
        prove(dataclasses.replace(plan, unused=frozenset()), source, silent)
    without = megatron_layout(config | {"num_nextn_predict_layers": 0}, ParallelSizes(tensor=2))
    prove(make_plan(without, destination), without, destination)  # a trainer that has none of it either
    with pytest.raises(InputError, match=r"model\.layers\.2\..*: the destination asks for it, and the source does not"):
        make_plan(without, silent)


def test_bytes_are_those_of_each_tensors_dtype() -> None:
    config = GLM4_MOE | {"num_hidden_layers": 2}
    plan = make_plan(files_layout(config), transformers_layout(config))
    elements = {name: spec.elements for name, spec in plan.tensors.items()}
    biases = sum(n for name, n in elements.items() if name.endswith("e_score_correction_bias"))
    assert biases == 4 and plan.bytes(2) == {(0, 0): 2 * sum(elements.values()) + 2 * biases}


def test_a_tensor_that_one_side_lacks_is_named() -> None:
    untied = files_layout(QWEN3 | {"tie_word_embeddings": False})
    tied = files_layout(QWEN3)
    with pytest.raises(InputError, match=r"lm_head\.weight: the source has it, and the destination does not know it"):
        make_plan(untied, tied)
    with pytest.raises(InputError, match=r"lm_head\.weight: models/b asks for it, and models/a does not have it"):
        check_same_tensors(tied, untied, ("models/a", "models/b"))
    wide = files_layout(QWEN3 | {"intermediate_size": 16})
    with pytest.raises(InputError, match=r"layers\.0\.mlp\.gate_proj\.weight has shape \(8, 4\).*\(16, 4\)"):
        make_plan(tied, wide)
    grouped = files_layout(QWEN3 | {"num_key_value_heads": 2})
    said = r"q_proj\.weight has \[num_key_value_heads, rows, columns\] \(4, 4, 4\) in the source and \(2, 8, 4\) in the"
    with pytest.raises(InputError, match=said):
        make_plan(tied, grouped)
    typed = {name: dataclasses.replace(spec, dtype="float32") for name, spec in tied.tensors.items()}
    with pytest.raises(InputError, match=r"has dtype the model's in the source and float32 in the destination"):
        make_plan(tied, dataclasses.replace(tied, tensors=typed))


def test_a_source_that_holds_a_part_or_too_much_is_named() -> None:
    whole = files_layout(QWEN3)
    half = megatron_layout(QWEN3, ParallelSizes(tensor=2))
    with pytest.raises(InputError, match=r"model\.embed_tokens\.weight.*20 elements of 44 are missing"):
        make_plan(Layout(half.tensors, half.ranks[:1]), whole)
    with pytest.raises(
        InputError, match=r"model\.embed_tokens\.weight.*44 elements of 44 are held twice".replace("44 e", "-44 e")
    ):
        make_plan(Layout(half.tensors, (*half.ranks, *whole.ranks)), whole)


def test_tiles() -> None:
    assert tiles((4, 6), ((0, (4, 2), (6, 1)), (2, (2, 4), (6, 1)), (14, (2, 4), (6, 1))))
    assert tiles((6,), ((0, (2, 2), (3, 1)), (2, (2, 1), (3, 1))))
    assert tiles((2, 2, 3), ((0, (2, 3), (6, 1)), (3, (2, 3), (6, 1))))  # interleaved rows
    assert tiles((2, 3), ((0, (3, 2), (1, 3)),))  # a transposed segment
    assert not tiles((4, 6), ((0, (4, 2), (6, 1)), (2, (2, 4), (6, 1))))  # a hole
    assert not tiles((4, 6), ((0, (4, 4), (6, 1)), (2, (4, 4), (6, 1))))  # an overlap
    assert not tiles((4, 6), ((0, (5, 6), (6, 1)),))  # beyond the end
    assert not tiles((4, 6), ((0, (4, 6), (7, 1)),))  # ragged
    assert not tiles((4, 6), ())


@settings(max_examples=200, deadline=None)
@given(st.integers(1, 5), st.integers(1, 5), st.data())
def test_tiles_agrees_with_counting(rows: int, width: int, data: st.DataObject) -> None:
    """Cut a matrix at random, then maybe damage one piece."""
    pieces = [(0, rows, 0, width)]
    for _ in range(data.draw(st.integers(0, 4))):
        top, bottom, left, right = pieces.pop(data.draw(st.integers(0, len(pieces) - 1)))
        if data.draw(st.booleans()):
            cut = data.draw(st.integers(top, bottom))
            pieces += [(top, cut, left, right), (cut, bottom, left, right)]
        else:
            cut = data.draw(st.integers(left, right))
            pieces += [(top, bottom, left, cut), (top, bottom, cut, right)]
        pieces = [p for p in pieces if p[0] < p[1] and p[2] < p[3]]
    boxes = [(t * width + x, (b - t, r - x), (width, 1)) for t, b, x, r in pieces]
    if data.draw(st.booleans()):
        offset, shape, strides = boxes.pop()
        boxes.append((max(0, offset + data.draw(st.integers(-1, 1))), shape, strides))
    count = torch.zeros(3 * rows * width, dtype=torch.int64)
    for offset, (height, breadth), (step, _) in boxes:
        count.as_strided((height, breadth), (step, 1), offset).add_(1)
    inside = all(offset % width + breadth <= width for offset, (_, breadth), _ in boxes)
    exact = bool((count[: rows * width] == 1).all() and (count[rows * width :] == 0).all())
    assert tiles((rows, width), tuple(boxes)) == (exact and inside)


def test_a_layout_with_a_hole_is_refused() -> None:
    spec = TensorSpec((4, 3))
    segment = Segment("w", (0, 0), (4, 3), "0/w", 0, (3, 1))
    check_layout(Layout({"w": spec}, (Shard({"0/w": (5, 3)}, (segment,), (Padding("0/w", 12, 3),)),)))
    with pytest.raises(ProofError, match=r"0/w \[5, 3\] on rank 0 do not tile"):
        check_layout(Layout({"w": spec}, (Shard({"0/w": (5, 3)}, (segment,)),)))
    with pytest.raises(ProofError, match=r"beyond the tensor"):
        check_layout(Layout({"w": TensorSpec((3, 3))}, (Shard({"0/w": (4, 3)}, (segment,)),)))
    with pytest.raises(ProofError, match=r"tensor w in 0/w, and one of them is unknown"):
        check_layout(Layout({}, (Shard({"0/w": (4, 3)}, (segment,)),)))
