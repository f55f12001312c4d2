"""An independent reference for layouts: shards cut out of whole tensors by torch, numbered by Megatron's ranks."""

import itertools
from dataclasses import dataclass
from typing import Any

import torch
from hypothesis import strategies as st
from megatron.core.parallel_state import RankGenerator

from megatron_rl.resharding.layout import ParallelSizes

TYPES = ("llama", "qwen2", "qwen3", "qwen3_moe")
Tensors = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Case:
    """A small model and two ways to shard it."""

    config: dict[str, Any]
    a: ParallelSizes
    b: ParallelSizes
    fused_norms: bool
    grouped_experts: bool

    @property
    def names(self) -> dict[str, bool]:
        return {"fused_norms": self.fused_norms, "grouped_experts": self.grouped_experts}


@st.composite
def parallel_sizes(draw: st.DrawFn, moe: bool) -> ParallelSizes:
    pipeline = draw(st.integers(1, 3))
    tensor, context, data = draw(st.integers(1, 4)), draw(st.integers(1, 2)), draw(st.integers(1, 2))
    expert = expert_tensor = 1
    if moe:
        stage = tensor * context * data
        expert_tensor = draw(st.sampled_from([n for n in (1, 2) if stage % n == 0]))
        expert = draw(st.sampled_from([n for n in (1, 2, 3, 4) if stage // expert_tensor % n == 0]))
    virtual = draw(st.integers(1, 2)) if pipeline > 1 else 1
    return ParallelSizes(tensor, pipeline, virtual, context, expert, data, expert_tensor)


@st.composite
def cases(draw: st.DrawFn) -> Case:
    """Random models of every family with two random shardings that fit them."""
    model_type = draw(st.sampled_from(TYPES))
    moe = model_type == "qwen3_moe"
    a, b = draw(parallel_sizes(moe)), draw(parallel_sizes(moe))

    def multiple(*sizes: int, most: int = 2) -> int:
        return draw(st.integers(1, most)) * torch.tensor(sizes).unique().prod().item()

    # Groups are split over ranks, or (few groups, many ranks) one group is split over several ranks.
    few = a.tensor == b.tensor or 1 in (a.tensor, b.tensor)
    tensor = max(a.tensor, b.tensor)
    groups = (
        draw(st.sampled_from([n for n in range(1, tensor) if tensor % n == 0] or [1]))
        if few and draw(st.booleans())
        else multiple(a.tensor, b.tensor)
    )
    heads = multiple(groups, tensor) if groups < tensor else groups * draw(st.integers(1, 3))
    layers = multiple(a.pipeline * a.virtual, b.pipeline * b.virtual, most=1)
    config: dict[str, Any] = {
        "model_type": model_type,
        "hidden_size": draw(st.integers(1, 4)),
        "num_attention_heads": heads,
        "num_key_value_heads": groups,
        "head_dim": 2 * tensor if groups < tensor else draw(st.integers(1, 3)),
        "intermediate_size": multiple(a.tensor, b.tensor),
        "vocab_size": draw(st.integers(1, 9)),
        "num_hidden_layers": layers,
        "tie_word_embeddings": draw(st.booleans()),
    }
    if moe:
        config |= {
            draw(st.sampled_from(["num_experts", "num_local_experts"])): multiple(a.expert, b.expert),
            "moe_intermediate_size": multiple(a.expert_tensor, b.expert_tensor),
            "mlp_only_layers": draw(st.lists(st.integers(0, layers - 1), max_size=2)),
            "decoder_sparse_step": draw(st.integers(1, 2)),
        }
    return Case(config, a, b, draw(st.booleans()), draw(st.booleans()))


def dense_layers(config: dict[str, Any]) -> set[int]:
    layers = range(config["num_hidden_layers"])
    if config["model_type"] != "qwen3_moe":
        return set(layers)
    only, step = config.get("mlp_only_layers", []), config.get("decoder_sparse_step", 1)
    return {i for i in layers if i in only or (i + 1) % step}


def expert_count(config: dict[str, Any]) -> int:
    return int(config.get("num_experts") or config.get("num_local_experts") or 0)


def hf_tensors(config: dict[str, Any], tags: bool = True) -> Tensors:
    """Every tensor of a checkpoint, each element with a number of its own (int64), or random (float32)."""
    hidden, dim = config["hidden_size"], config["head_dim"]
    q, kv = config["num_attention_heads"] * dim, config["num_key_value_heads"] * dim
    experts = expert_count(config)
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (config["vocab_size"], hidden)}
    dense = dense_layers(config)
    for i in range(config["num_hidden_layers"]):
        layer = f"model.layers.{i}."
        shapes[layer + "input_layernorm.weight"] = shapes[layer + "post_attention_layernorm.weight"] = (hidden,)
        for name, rows in (("q", q), ("k", kv), ("v", kv)):
            shapes[layer + f"self_attn.{name}_proj.weight"] = (rows, hidden)
            if config["model_type"] == "qwen2":
                shapes[layer + f"self_attn.{name}_proj.bias"] = (rows,)
        shapes[layer + "self_attn.o_proj.weight"] = (hidden, q)
        if config["model_type"].startswith("qwen3"):
            shapes[layer + "self_attn.q_norm.weight"] = shapes[layer + "self_attn.k_norm.weight"] = (dim,)
        places = [("mlp.", config["intermediate_size"])]
        if i not in dense:
            shapes[layer + "mlp.gate.weight"] = (experts, hidden)
            places = [(f"mlp.experts.{e}.", config["moe_intermediate_size"]) for e in range(experts)]
        for mlp, width in places:
            shapes[layer + mlp + "gate_proj.weight"] = shapes[layer + mlp + "up_proj.weight"] = (width, hidden)
            shapes[layer + mlp + "down_proj.weight"] = (hidden, width)
    shapes["model.norm.weight"] = (hidden,)
    if not config["tie_word_embeddings"]:
        shapes["lm_head.weight"] = (config["vocab_size"], hidden)
    count = itertools.count()
    return {
        name: torch.arange(torch.Size(shape).numel()).view(shape) + next(count) * 10**6 if tags else torch.randn(shape)
        for name, shape in shapes.items()
    }


def _coordinates(generator: RankGenerator, world: int, token: str) -> list[int]:
    """Each rank's index inside its group."""
    found = [0] * world
    for group in generator.get_ranks(token):
        for i, rank in enumerate(group):
            found[rank] = i
    return found


def megatron_shards(
    hf: Tensors, config: dict[str, Any], sizes: ParallelSizes, fused: bool = False, grouped: bool = False
) -> list[Tensors]:
    """Every rank's parameters, cut out of whole tensors; vocabulary padding is -1."""
    order, s = "tp-cp-ep-dp-pp", sizes
    attention = RankGenerator(tp=s.tensor, ep=1, dp=s.data, pp=s.pipeline, cp=s.context, order=order)
    replicas = s.stage // (s.expert_tensor * s.expert)
    expert = RankGenerator(tp=s.expert_tensor, ep=s.expert, dp=replicas, pp=s.pipeline, cp=1, order=order)
    tp, pp = (_coordinates(attention, s.world, token) for token in ("tp", "pp"))
    etp, ep = (_coordinates(expert, s.world, token) for token in ("tp", "ep"))
    return [_rank(hf, config, s, (tp[r], pp[r], etp[r], ep[r]), fused, grouped) for r in range(s.world)]


def _vocabulary(weight: torch.Tensor, ways: int, index: int) -> torch.Tensor:
    rows = -(-len(weight) // ways) * ways
    pad = torch.full((rows - len(weight), weight.shape[1]), -1, dtype=weight.dtype)
    return torch.cat([weight, pad]).chunk(ways)[index]


def _mlp(hf: Tensors, prefix: str, ways: int, index: int) -> tuple[torch.Tensor, torch.Tensor]:
    gate, up, down = (hf[f"{prefix}{name}_proj.weight"] for name in ("gate", "up", "down"))
    return torch.cat([gate.chunk(ways)[index], up.chunk(ways)[index]]), down.chunk(ways, dim=1)[index]


def _rank(
    hf: Tensors, config: dict[str, Any], s: ParallelSizes, place: tuple[int, int, int, int], fused: bool, grouped: bool
) -> Tensors:
    tp, pp, etp, ep = place
    groups, layers = config["num_key_value_heads"], config["num_hidden_layers"]
    per_chunk = layers // (s.pipeline * s.virtual)
    dense = dense_layers(config)
    found: Tensors = {}
    if pp == 0:
        found["0/embedding.word_embeddings.weight"] = _vocabulary(hf["model.embed_tokens.weight"], s.tensor, tp)
    for chunk, n in itertools.product(range(s.virtual), range(per_chunk)):
        number = (chunk * s.pipeline + pp) * per_chunk + n
        there, here = f"model.layers.{number}.", f"{chunk}/decoder.layers.{n}."
        attention = here + "self_attention."
        for what in ("weight", "bias"):
            parts = [hf[name] for x in "qkv" if (name := f"{there}self_attn.{x}_proj.{what}") in hf]
            if parts:
                blocks = torch.cat([p.reshape(groups, -1, *p.shape[1:]) for p in parts], dim=1)
                found[attention + f"linear_qkv.{what}"] = blocks.flatten(0, 1).chunk(s.tensor)[tp]
        found[attention + "linear_proj.weight"] = hf[there + "self_attn.o_proj.weight"].chunk(s.tensor, dim=1)[tp]
        for x in "qk":
            if (norm := hf.get(f"{there}self_attn.{x}_norm.weight")) is not None:
                found[attention + f"{x}_layernorm.weight"] = norm
        first = attention + "linear_qkv.layer_norm_weight" if fused else here + "input_layernorm.weight"
        found[first] = hf[there + "input_layernorm.weight"]
        second = here + (
            "mlp.linear_fc1.layer_norm_weight" if fused and number in dense else "pre_mlp_layernorm.weight"
        )
        found[second] = hf[there + "post_attention_layernorm.weight"]
        if number in dense:
            fc1, fc2 = _mlp(hf, there + "mlp.", s.tensor, tp)
            found |= {here + "mlp.linear_fc1.weight": fc1, here + "mlp.linear_fc2.weight": fc2}
            continue
        found[here + "mlp.router.weight"] = router = hf[there + "mlp.gate.weight"]
        local = len(router) // s.expert
        for e in range(local):
            fc1, fc2 = _mlp(hf, f"{there}mlp.experts.{ep * local + e}.", s.expert_tensor, etp)
            for name, weight in (("linear_fc1", fc1), ("linear_fc2", fc2)):
                one = f"mlp.experts.{name}.weight{e}" if grouped else f"mlp.experts.local_experts.{e}.{name}.weight"
                found[here + one] = weight
    if pp == s.pipeline - 1:
        last = s.virtual - 1
        found[f"{last}/decoder.final_layernorm.weight"] = hf["model.norm.weight"]
        if not config["tie_word_embeddings"]:
            found[f"{last}/output_layer.weight"] = _vocabulary(hf["lm_head.weight"], s.tensor, tp)
        elif s.pipeline > 1:
            found[f"{last}/output_layer.weight"] = _vocabulary(hf["model.embed_tokens.weight"], s.tensor, tp)
    return {name: tensor.contiguous() for name, tensor in found.items()}


def transformers_parameters(hf: Tensors, config: dict[str, Any]) -> Tensors:
    """transformers 5's parameters: experts stacked."""
    found = {name: t for name, t in hf.items() if ".experts." not in name}
    count = expert_count(config)
    for i in set(range(config["num_hidden_layers"])) - dense_layers(config):
        layer = f"model.layers.{i}.mlp.experts."
        gates, ups, downs = (
            torch.stack([hf[f"{layer}{e}.{x}_proj.weight"] for e in range(count)]) for x in ("gate", "up", "down")
        )
        found |= {f"{layer}gate_up_proj": torch.cat([gates, ups], dim=1), f"{layer}down_proj": downs}
    return found
