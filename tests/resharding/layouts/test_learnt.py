"""Layouts learnt from loaders: whatever the trace says must be what really loading puts there."""

from collections.abc import Callable, Iterable
from typing import Any

import pytest
import torch
from torch import nn

from megatron_rl.errors import InputError
from megatron_rl.resharding.layout import Segment, TensorSpec
from megatron_rl.resharding.layouts.learnt.learn import Learnt, fingerprint, learn

Tensors = dict[str, torch.Tensor]
Load = Callable[[Iterable[tuple[str, torch.Tensor]]], Any]
HIDDEN, HEADS, GROUPS, DIM, MLP, VOCABULARY, EXPERTS = 6, 4, 2, 3, 8, 5, 3


class Model(nn.Module):
    """Parameters by name; ``load`` takes each tensor to the function of its name, or to the parameter of its name."""

    def __init__(self, **shapes: tuple[int, ...]) -> None:
        super().__init__()
        for name, shape in shapes.items():
            self.register_parameter(name, nn.Parameter(torch.zeros(shape)))
        self.rules: dict[str, Callable[[torch.Tensor], Any]] = {}

    def load(self, weights: Iterable[tuple[str, torch.Tensor]]) -> None:
        mine = dict(self.named_parameters())
        for name, tensor in weights:
            if name in self.rules:
                self.rules[name](tensor)
            elif name in mine:
                mine[name].data.copy_(tensor)


def numbered(tensors: dict[str, TensorSpec], dtype: torch.dtype = torch.float32) -> Tensors:
    return {
        name: (torch.arange(spec.elements) + 100 * (i + 1)).view(spec.shape).to(dtype)
        for i, (name, spec) in enumerate(tensors.items())
    }


def specs(**shapes: tuple[int, ...]) -> dict[str, TensorSpec]:
    return {name: TensorSpec(shape) for name, shape in shapes.items()}


def place(found: Learnt, tensors: dict[str, TensorSpec], values: Tensors) -> None:
    """Put the tensors where the layout says, and zeros into the padding, and nan everywhere else."""
    for parameter in found.parameters.values():
        parameter.fill_(torch.nan)
    for pad in found.shard.padding:
        found.parameters[pad.local].view(-1)[pad.offset : pad.offset + pad.size] = 0
    for s in found.shard.segments:
        box = values[s.tensor].view(tensors[s.tensor].index)[
            tuple(slice(i, i + n) for i, n in zip(s.start, s.shape, strict=True))
        ]
        whole = found.parameters[s.local]
        whole.as_strided(s.shape, s.strides, int(whole.storage_offset()) + s.offset).copy_(box)


def check(model: Model, tensors: dict[str, TensorSpec], load: Load | None = None) -> Learnt:
    """Learn; the model must be as before. Then the layout must put every number where really loading puts it."""
    load, values = load or model.load, numbered(tensors)
    load(values.items())  # an engine learns from a model that is loaded
    state = {name: t.clone() for name, t in model.state_dict().items()}
    address = fingerprint(model)
    found = learn(model, load, tensors, torch.float32)
    assert fingerprint(model) == address
    assert all(torch.equal(t, state[name]) for name, t in model.state_dict().items())
    expected = {name: t.clone() for name, t in found.parameters.items()}
    place(found, tensors, values)
    assert all(torch.equal(t, expected[name]) for name, t in found.parameters.items())
    assert all(torch.equal(t, state[name]) for name, t in model.state_dict().items())
    return found


@pytest.mark.parametrize("worker", [0, 1])
def test_fused_matrices_of_two_workers(worker: int) -> None:
    q, kv, mlp = HEADS * DIM // 2, GROUPS * DIM // 2, MLP // 2
    model = Model(qkv=(q + 2 * kv, HIDDEN), qkv_bias=(q + 2 * kv,), gate_up=(2 * mlp, HIDDEN), down=(HIDDEN, mlp))

    def rows(local: str, begin: int, size: int) -> Callable[[torch.Tensor], Any]:
        target = model.get_parameter(local).data
        return lambda w: target.narrow(0, begin, size).copy_(w.narrow(0, worker * size, size))

    for suffix, local in (("", "qkv"), ("_bias", "qkv_bias")):
        for name, begin, size in (("q", 0, q), ("k", q, kv), ("v", q + kv, kv)):
            model.rules[name + suffix] = rows(local, begin, size)
    model.rules |= {"gate": rows("gate_up", 0, mlp), "up": rows("gate_up", mlp, mlp)}
    model.rules["down"] = lambda w: model.down.data.copy_(w.chunk(2, dim=1)[worker])
    grouped = {"q": HEADS * DIM, "k": GROUPS * DIM, "v": GROUPS * DIM}
    tensors = {n: TensorSpec((r, HIDDEN), (GROUPS, r // GROUPS, HIDDEN)) for n, r in grouped.items()}
    tensors |= {f"{n}_bias": TensorSpec((r,), (GROUPS, r // GROUPS)) for n, r in grouped.items()}
    tensors |= specs(gate=(MLP, HIDDEN), up=(MLP, HIDDEN), down=(HIDDEN, MLP))
    found = check(model, tensors)
    assert not found.unread and not found.shard.padding
    assert found.shard.segments[:2] == (  # a group of rows is one box
        Segment("q", (worker, 0, 0), (1, q, HIDDEN), "qkv", 0, (q * HIDDEN, HIDDEN, 1)),
        Segment("k", (worker, 0, 0), (1, kv, HIDDEN), "qkv", q * HIDDEN, (kv * HIDDEN, HIDDEN, 1)),
    )
    assert found.shard.segments[-1] == Segment("down", (0, worker * 4), (HIDDEN, 4), "down", 0, (4, 1))


def test_rows_across_groups() -> None:
    model = Model(q=(4, HIDDEN))
    model.rules["q"] = lambda w: model.q.data.copy_(w[2:6])
    found = check(model, {"q": TensorSpec((9, HIDDEN), (3, 3, HIDDEN))})
    assert [(s.start[:2], s.shape[:2]) for s in found.shard.segments] == [((0, 2), (1, 1)), ((1, 0), (1, 3))]


def test_vocabulary_padding() -> None:
    model = Model(embedding=(4, HIDDEN))

    def load(w: torch.Tensor) -> None:
        mine = w.narrow(0, 4, VOCABULARY - 4)
        model.embedding[: len(mine)].data.copy_(mine)
        model.embedding[len(mine) :].data.fill_(0)

    model.rules["embedding"] = load
    found = check(model, specs(embedding=(VOCABULARY, HIDDEN)))
    assert [(p.local, p.offset, p.size) for p in found.shard.padding] == [("embedding", HIDDEN, 3 * HIDDEN)]


def test_a_buffer_that_is_zeroed_and_then_filled_in_part() -> None:
    model = Model(wide=(2, 4))

    def load(w: torch.Tensor) -> None:
        model.wide.data.zero_()
        model.wide.data[:, 1:3].copy_(w)

    model.rules["wide"] = load
    found = check(model, specs(wide=(2, 2)))
    assert [(p.offset, p.size) for p in found.shard.padding] == [(0, 1), (4, 1), (3, 1), (7, 1)]


def test_transposed_and_stacked_experts() -> None:
    model = Model(w13=(EXPERTS, 2 * MLP, HIDDEN), w2=(EXPERTS, MLP, HIDDEN))  # w2 is kept [in, out]
    for e in range(EXPERTS):
        model.rules[f"{e}.gate"] = lambda w, e=e: model.w13.data[e].narrow(0, 0, MLP).copy_(w)
        model.rules[f"{e}.up"] = lambda w, e=e: model.w13.data[e, MLP:].copy_(w)
        model.rules[f"{e}.down"] = lambda w, e=e: model.w2.data[e].copy_(w.t())
    shapes = {"gate": (MLP, HIDDEN), "up": (MLP, HIDDEN), "down": (HIDDEN, MLP)}
    # one expert more than this worker has
    found = check(model, {f"{e}.{n}": TensorSpec(s) for e in range(EXPERTS + 1) for n, s in shapes.items()})
    assert found.unread == {f"{EXPERTS}.gate", f"{EXPERTS}.up", f"{EXPERTS}.down"}
    down = Segment("1.down", (0, 0), (HIDDEN, MLP), "w2", MLP * HIDDEN, (1, HIDDEN))
    assert down in found.shard.segments


def test_tied_parameters_have_one_name() -> None:
    model = Model(embedding=(VOCABULARY, HIDDEN), norm=(HIDDEN,))
    model.head = model.embedding
    model.register_parameter("part", nn.Parameter(model.embedding.data[1:3]))
    model.rules["embedding"] = lambda w: [p.data.copy_(w) for p in (model.embedding, model.head)]
    found = check(model, specs(embedding=(VOCABULARY, HIDDEN), norm=(HIDDEN,)))
    assert found.shard.locals == {"embedding": (VOCABULARY, HIDDEN), "norm": (HIDDEN,)}
    assert len(found.shard.segments) == 2


def test_a_parameter_in_another_order_of_memory_and_inside_a_shared_one() -> None:
    model, shared = Model(), torch.zeros(100)
    model.register_parameter("a", nn.Parameter(shared[10:34].view(4, 6).t()))
    model.register_parameter("b", nn.Parameter(shared[34:40]))
    found = check(model, specs(a=(6, 4), b=(6,)))
    assert found.shard.locals == {"a": (4, 6), "b": (6,)}
    assert found.parameters["a"].data_ptr() == shared[10:].data_ptr()
    assert found.shard.segments[0] == Segment("a", (0, 0), (6, 4), "a", 0, (1, 6))


def test_what_is_put_together_or_cast_on_the_way() -> None:
    model = Model(fused=(5, HIDDEN), stacked=(2, HIDDEN), padded=(4, HIDDEN), scale=(1,), bias=(4,))
    kept: Tensors = {}

    def both(target: str, name: str, other: str, join: Callable[..., torch.Tensor]) -> None:
        def load(w: torch.Tensor) -> None:
            kept[name] = w
            if other in kept:
                parts = [kept.pop(n) for n in sorted((name, other))]
                model.get_parameter(target).data.copy_(join(parts))

        model.rules[name] = load

    for pair, join in ((("q_a", "kv_a"), torch.cat), (("one", "two"), torch.stack)):
        for name, other in (pair, pair[::-1]):
            both("fused" if join is torch.cat else "stacked", name, other, join)
    model.rules["padded"] = lambda w: model.padded.data.copy_(torch.cat([w.double(), torch.zeros(1, HIDDEN)]).clone())
    model.rules["scale"] = lambda w: model.scale.data.fill_(w.item())
    model.rules["bias"] = lambda w: model.bias.data.copy_(w.to(torch.float32).contiguous().clone())
    tensors = specs(q_a=(3, HIDDEN), kv_a=(2, HIDDEN), one=(HIDDEN,), two=(HIDDEN,), padded=(3, HIDDEN), scale=())
    tensors["bias"] = TensorSpec((4,), dtype="bfloat16")
    found = check(model, tensors)
    assert [(s.tensor, s.offset) for s in found.shard.segments[:2]] == [("kv_a", 0), ("q_a", 2 * HIDDEN)]
    assert [(p.local, p.offset, p.size) for p in found.shard.padding] == [("padded", 3 * HIDDEN, HIDDEN)]


def test_what_a_loader_derives_by_copying_and_a_buffer_are_kept_up_too() -> None:
    heads, nope, v, rank = 2, 3, 2, 4
    model = Model(kv_b=(heads * (nope + v), rank))
    model.register_buffer("correction", torch.zeros(3))
    model.register_buffer("cos_sin_cache", torch.ones(7))
    model.w_kc = torch.zeros(heads, rank, nope).transpose(1, 2)
    model.rules["correction"] = lambda w: model.correction.copy_(w)

    def load(weights: Iterable[tuple[str, torch.Tensor]]) -> None:
        model.load(weights)
        w_kc, _ = model.kv_b.unflatten(0, (-1, nope + v)).split([nope, v], dim=1)
        model.w_kc.copy_(w_kc.transpose(1, 2).contiguous().transpose(1, 2))

    found = check(model, specs(kv_b=(heads * (nope + v), rank), correction=(3,)), load)
    assert found.shard.locals == {"kv_b": (10, 4), "correction": (3,), "w_kc": (heads, rank, nope)}
    address = fingerprint(model, found.parameters)
    model.cos_sin_cache = torch.ones(9)
    assert fingerprint(model, found.parameters) == address
    model.w_kc = model.w_kc.clone()
    assert fingerprint(model, found.parameters) != address


REFUSED: dict[str, tuple[Callable[[Model, torch.Tensor], Any], str]] = {
    "arithmetic": (lambda m, w: m.a.data.copy_(w * 2), "aten.mul.Tensor to a while it loads a"),
    "in place": (lambda m, w: m.a.data.add_(w), "aten.add_.Tensor to a while it loads a"),
    "in place on the tensor": (lambda m, w: m.a.data.copy_(w.clamp_(0)), "aten.clamp_.default to a"),
    "drawn": (lambda m, w: m.a.data.normal_(), "aten.normal_.default to a"),
    "read": (lambda m, w: m.a.abs().max(), "aten.abs.default to a"),
    "computed from a number": (lambda m, w: m.a.data.fill_(w[0, 0].item() * 2), "aten.fill_.Scalar"),
    "rounded": (lambda m, w: m.a.data.copy_(w.bfloat16().float()), "rounds a to torch.bfloat16 on its way into a"),
    "another dtype": (lambda m, w: m.a.data.view(torch.int32).copy_(w), "aten.copy_.default to a"),
    "other bytes": (lambda m, w: m.a.data.copy_(w.view(torch.int32)), "aten.copy_.default to a while it loads a"),
    "beyond": (lambda m, w: m.a.data.as_strided((3, 6), (6, 1)).copy_(w[:1]), "aten.copy_.default to a"),
    "replaced": (lambda m, w: setattr(m.a, "data", torch.ones(2, 6)), "assigns another tensor to a"),
    "assigned": (lambda m, w: setattr(m, "derived", w.t()), "assigns another tensor to derived"),
    "unfinished": (lambda m, w: m.a.data[:1].copy_(w[:1]), "leaves 6 of 12 elements of a [2, 6]"),
    "read too early": (lambda m, w: m.a.data[:1].copy_(m.a.data[1:]), "reads a while it loads a, before all of it"),
    "elsewhere": (lambda m, w: OUTSIDE.copy_(w), "a tensor that is no parameter, buffer or attribute"),
}
OUTSIDE = torch.zeros(2, 6)


@pytest.mark.parametrize("what", REFUSED)
def test_what_is_no_copy_is_refused(what: str) -> None:
    rule, message = REFUSED[what]
    model = Model(a=(2, 6))
    model.a.data = torch.arange(20.0)[:12].view(2, 6)
    model.rules["a"] = lambda w: rule(model, w)
    before, address = model.a.detach().clone(), fingerprint(model)
    with pytest.raises(InputError) as error:
        learn(model, model.load, specs(a=(2, 6)), torch.float32)
    assert message in str(error.value)
    assert fingerprint(model) == address and torch.equal(model.a, before) and not OUTSIDE.any()
    assert not hasattr(model, "derived")


def test_a_parameter_that_nothing_reaches() -> None:
    with pytest.raises(InputError, match="leaves 3 of 3 elements of lost"):
        learn(model := Model(a=(2,), lost=(3,)), model.load, specs(a=(2,)), torch.float32)


def test_a_model_without_memory_or_with_gaps() -> None:
    with pytest.raises(InputError, match="Parameter a has no memory"):
        learn(Model(a=(2,)).to("meta"), lambda weights: None, specs(a=(2,)), torch.float32)
    model = Model()
    model.register_parameter("a", nn.Parameter(torch.zeros(4, 4)[:, :3]))
    with pytest.raises(InputError, match=r"Parameter a of shape \[4, 3\] and strides \[4, 1\] has gaps in memory"):
        learn(model, model.load, specs(a=(4, 3)), torch.float32)


def test_a_new_storage_changes_the_fingerprint() -> None:
    model = Model(a=(2, 3))
    address = fingerprint(model)
    model.a.data.fill_(1)
    assert fingerprint(model) == address
    model.a.data = model.a.data.clone()
    assert fingerprint(model) != address
