"""An independent reference for layouts: shards cut out of whole tensors by torch, numbered by Megatron's ranks."""

import itertools
import math
from dataclasses import dataclass, replace
from typing import Any

import torch
from hypothesis import strategies as st
from megatron.core.parallel_state import RankGenerator

from megatron_rl.resharding.layout import ParallelSizes
from megatron_rl.resharding.layouts.sglang import EngineSizes

QWEN_MOE, MISTRAL, DEEPSEEK, GLM = "qwen3_moe", "mistral", "deepseek_v3", "glm4_moe"
TYPES = ("llama", "qwen2", "qwen3", QWEN_MOE, MISTRAL, DEEPSEEK, GLM)
CUT = {  # at TP2, boundaries cut through the tiles of every matrix
    "model_type": "qwen3",
    "hidden_size": 200,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 40,
    "intermediate_size": 180,
    "vocab_size": 7,
    "num_hidden_layers": 1,
    "tie_word_embeddings": True,
}
EXPERTS = (QWEN_MOE, DEEPSEEK, GLM)
PREDICTORS = (DEEPSEEK, GLM)
Tensors = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Case:
    """A small model, two ways to shard it, and an engine."""

    config: dict[str, Any]
    a: ParallelSizes
    b: ParallelSizes
    engine: EngineSizes
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


def stage_layers(layers: int, sizes: ParallelSizes) -> list[int] | None:
    """Layers of every pipeline stage; None where they cannot be divided so."""
    counts = [0] * sizes.pipeline
    counts[0], counts[-1] = sizes.first_stage, sizes.last_stage or counts[-1]
    even = [i for i, count in enumerate(counts) if not count]
    rest = layers - sum(counts)
    if rest < 0 or (even and (rest % len(even) or not rest)) or (rest and not even):
        return None
    counts = [count or rest // len(even) for count in counts]
    return None if any(count % sizes.virtual for count in counts) else counts


@st.composite
def uneven(draw: st.DrawFn, sizes: ParallelSizes, layers: int) -> ParallelSizes:
    """The same sizes with a first and a last stage of their own, where there is such a pipeline."""
    if sizes.pipeline == 1:
        return sizes
    ends = [replace(sizes, first_stage=f, last_stage=n) for f in range(layers) for n in range(layers)]
    return draw(st.sampled_from([s for s in ends if stage_layers(layers, s)]))


@st.composite
def cases(draw: st.DrawFn) -> Case:
    """Random models of every family, with two random shardings and an engine that fit them."""
    model_type = draw(st.sampled_from(TYPES))
    moe = model_type in EXPERTS
    a, b = draw(parallel_sizes(moe)), draw(parallel_sizes(moe))
    workers = draw(st.integers(1, 4))
    share = draw(st.sampled_from([n for n in range(1, workers + 1) if workers % n == 0])) if moe else 1
    tensors = (a.tensor, b.tensor, workers)

    def multiple(*sizes: int, most: int = 2) -> int:
        return draw(st.integers(1, most)) * math.lcm(*sizes)

    layers = multiple(a.pipeline * a.virtual, b.pipeline * b.virtual, most=1)
    engine = EngineSizes(workers, draw(st.integers(1, min(layers, 4))), share, draw(st.integers(1, 2)))
    a, b = draw(uneven(a, layers)), draw(uneven(b, layers))
    config: dict[str, Any] = {
        "model_type": model_type,
        "hidden_size": multiple(a.tensor, b.tensor) if model_type in PREDICTORS else draw(st.integers(1, 4)),
        "intermediate_size": multiple(*tensors),
        "vocab_size": draw(st.integers(1, 9)),
        "num_hidden_layers": layers,
        "tie_word_embeddings": draw(st.booleans()),
    }
    if model_type == DEEPSEEK:
        rope = draw(st.integers(1, 2))
        config |= {
            "num_attention_heads": multiple(*tensors, most=1),
            "q_lora_rank": draw(st.sampled_from([None, multiple(*tensors, most=1)])),
            "kv_lora_rank": multiple(*tensors, most=1) * 2 - rope if math.lcm(*tensors) > 1 else rope,
            "qk_rope_head_dim": rope,
            "qk_nope_head_dim": draw(st.integers(1, 2)),
            "v_head_dim": draw(st.integers(1, 3)),
        }
    else:
        # Groups are split over ranks, or (few groups, many ranks) one group is split over several ranks.
        fitting = [n for n in range(1, 13) if all(n % t == 0 or t % n == 0 for t in tensors)]
        groups = draw(st.sampled_from(fitting))
        cuts = [t // groups for t in tensors if t > groups]
        config |= {
            "num_key_value_heads": groups,
            "num_attention_heads": multiple(groups, *tensors),
            "head_dim": multiple(*cuts, most=1 if cuts else 3),
        }
    if model_type == QWEN_MOE:
        config |= {
            draw(st.sampled_from(["num_experts", "num_local_experts"])): multiple(a.expert, b.expert, share),
            "mlp_only_layers": draw(st.lists(st.integers(0, layers - 1), max_size=2)),
            "decoder_sparse_step": draw(st.integers(1, 2)),
        }
    elif moe:
        config |= {
            "n_routed_experts": multiple(a.expert, b.expert, share, most=1),
            "n_shared_experts": math.lcm(*tensors),
            "first_k_dense_replace": draw(st.integers(0, layers)),
            "num_nextn_predict_layers": draw(st.integers(0, 1)),
        }
    if moe:
        config["moe_intermediate_size"] = multiple(a.expert_tensor, b.expert_tensor, workers // share, most=1)
    if model_type == GLM:
        config |= {"attention_bias": draw(st.booleans()), "use_qk_norm": draw(st.booleans())}
    return Case(config, a, b, engine, draw(st.booleans()), draw(st.booleans()))


def dense_layers(config: dict[str, Any]) -> set[int]:
    layers = range(config["num_hidden_layers"])
    if config["model_type"] in PREDICTORS:
        return set(layers[: config["first_k_dense_replace"]])
    if config["model_type"] != QWEN_MOE:
        return set(layers)
    only, step = config.get("mlp_only_layers", []), config.get("decoder_sparse_step", 1)
    return {i for i in layers if i in only or (i + 1) % step}


def expert_count(config: dict[str, Any]) -> int:
    return int(
        next((config[key] for key in ("num_experts", "num_local_experts", "n_routed_experts") if key in config), 0)
    )


def predictor_count(config: dict[str, Any]) -> int:
    return int(config.get("num_nextn_predict_layers") or 0)


def _attention_shapes(config: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """Names inside ``self_attn`` of one layer -> shapes."""
    hidden, heads = config["hidden_size"], config["num_attention_heads"]
    if config["model_type"] == DEEPSEEK:
        rope, nope, v = config["qk_rope_head_dim"], config["qk_nope_head_dim"], config["v_head_dim"]
        rank, lora = config["kv_lora_rank"], config["q_lora_rank"]
        shapes: dict[str, tuple[int, ...]] = {
            "kv_a_proj_with_mqa.weight": (rank + rope, hidden),
            "kv_a_layernorm.weight": (rank,),
            "kv_b_proj.weight": (heads * (nope + v), rank),
            "o_proj.weight": (hidden, heads * v),
        }
        if not lora:
            return shapes | {"q_proj.weight": (heads * (nope + rope), hidden)}
        up = (heads * (nope + rope), lora)
        return shapes | {"q_a_proj.weight": (lora, hidden), "q_a_layernorm.weight": (lora,), "q_b_proj.weight": up}
    dim = config["head_dim"]
    rows = {"q": heads * dim, "k": config["num_key_value_heads"] * dim, "v": config["num_key_value_heads"] * dim}
    shapes = {f"{x}_proj.weight": (n, hidden) for x, n in rows.items()} | {"o_proj.weight": (hidden, heads * dim)}
    if config["model_type"] == "qwen2" or config.get("attention_bias"):
        shapes |= {f"{x}_proj.bias": (n,) for x, n in rows.items()}
    if config["model_type"] in ("qwen3", QWEN_MOE) or config.get("use_qk_norm"):
        shapes |= {"q_norm.weight": (dim,), "k_norm.weight": (dim,)}
    return shapes


def hf_tensors(config: dict[str, Any], tags: bool = True) -> Tensors:
    """Every tensor of a checkpoint, each element with a number of its own (int64), or random (float32)."""
    hidden, experts, count = config["hidden_size"], expert_count(config), config["num_hidden_layers"]
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (config["vocab_size"], hidden)}
    dense = dense_layers(config)
    for i in range(count + predictor_count(config)):
        layer = f"model.layers.{i}."
        norms = ["input_layernorm", "post_attention_layernorm"]
        if i >= count:
            norms += ["enorm", "hnorm", "shared_head.norm"]
            shapes[layer + "eh_proj.weight"] = (hidden, 2 * hidden)
        shapes |= {f"{layer}{norm}.weight": (hidden,) for norm in norms}
        shapes |= {f"{layer}self_attn.{name}": shape for name, shape in _attention_shapes(config).items()}
        places = [("mlp.", config["intermediate_size"])]
        if i not in dense:
            width = config["moe_intermediate_size"]
            shapes[layer + "mlp.gate.weight"] = (experts, hidden)
            places = [(f"mlp.experts.{e}.", width) for e in range(experts)]
            if config["model_type"] in PREDICTORS:
                shapes[layer + "mlp.gate.e_score_correction_bias"] = (experts,)
                places.append(("mlp.shared_experts.", width * config["n_shared_experts"]))
        for mlp, width in places:
            shapes[layer + mlp + "gate_proj.weight"] = shapes[layer + mlp + "up_proj.weight"] = (width, hidden)
            shapes[layer + mlp + "down_proj.weight"] = (hidden, width)
    shapes["model.norm.weight"] = (hidden,)
    if not config["tie_word_embeddings"]:
        shapes["lm_head.weight"] = (config["vocab_size"], hidden)
    number = itertools.count()
    return {
        name: torch.arange(torch.Size(shape).numel()).view(shape) + next(number) * 10**6 if tags else torch.randn(shape)
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


def _vocabulary(weight: torch.Tensor, ways: int, index: int, multiple: int = 0) -> torch.Tensor:
    multiple = multiple or ways
    rows = -(-len(weight) // multiple) * multiple
    pad = torch.full((rows - len(weight), weight.shape[1]), -1, dtype=weight.dtype)
    return torch.cat([weight, pad]).chunk(ways)[index]


def _mlp(hf: Tensors, prefix: str, ways: int, index: int) -> tuple[torch.Tensor, torch.Tensor]:
    gate, up, down = (hf[f"{prefix}{name}_proj.weight"] for name in ("gate", "up", "down"))
    return torch.cat([gate.chunk(ways)[index], up.chunk(ways)[index]]), down.chunk(ways, dim=1)[index]


def _latent_attention(hf: Tensors, there: str, ways: int, index: int, te: bool) -> Tensors:
    """One rank's latent attention: Transformer Engine's layers keep the down-projections whole."""

    def cut(name: str, dim: int = 0) -> torch.Tensor:
        return hf[f"{there}self_attn.{name}.weight"].chunk(ways, dim)[index]

    def down(name: str) -> torch.Tensor:
        return hf[f"{there}self_attn.{name}.weight"] if te else cut(name)

    norm = "linear_{}_up_proj.layer_norm_weight" if te else "{}_layernorm.weight"
    found = {
        "linear_kv_down_proj.weight": down("kv_a_proj_with_mqa"),
        norm.format("kv"): hf[there + "self_attn.kv_a_layernorm.weight"],
        "linear_kv_up_proj.weight": cut("kv_b_proj"),
        "linear_proj.weight": cut("o_proj", 1),
    }
    if there + "self_attn.q_proj.weight" in hf:
        return found | {"linear_q_proj.weight": cut("q_proj")}
    return found | {
        "linear_q_down_proj.weight": down("q_a_proj"),
        norm.format("q"): hf[there + "self_attn.q_a_layernorm.weight"],
        "linear_q_up_proj.weight": cut("q_b_proj"),
    }


def _grouped_attention(hf: Tensors, there: str, groups: int, ways: int, index: int) -> Tensors:
    """One rank's share of [q, k, v] per query group."""
    found = {}
    for what in ("weight", "bias"):
        parts = [hf[name] for x in "qkv" if (name := f"{there}self_attn.{x}_proj.{what}") in hf]
        if parts:
            blocks = torch.cat([p.reshape(groups, -1, *p.shape[1:]) for p in parts], dim=1)
            found[f"linear_qkv.{what}"] = blocks.flatten(0, 1).chunk(ways)[index]
    found["linear_proj.weight"] = hf[there + "self_attn.o_proj.weight"].chunk(ways, dim=1)[index]
    for x in "qk":
        if (norm := hf.get(f"{there}self_attn.{x}_norm.weight")) is not None:
            found[f"{x}_layernorm.weight"] = norm
    return found


def _layer(
    hf: Tensors,
    config: dict[str, Any],
    s: ParallelSizes,
    number: int,
    place: tuple[int, int, int, int],
    fused: bool,
    grouped: bool,
) -> Tensors:
    """One rank's share of one layer, names as inside a TransformerLayer."""
    tp, _, etp, ep = place
    there, dense = f"model.layers.{number}.", number in dense_layers(config)
    latent = config["model_type"] == DEEPSEEK
    if latent:
        attention = _latent_attention(hf, there, s.tensor, tp, fused)
    else:
        attention = _grouped_attention(hf, there, config["num_key_value_heads"], s.tensor, tp)
    found = {f"self_attention.{name}": tensor for name, tensor in attention.items()}
    first = "self_attention.linear_qkv.layer_norm_weight" if fused and not latent else "input_layernorm.weight"
    second = "mlp.linear_fc1.layer_norm_weight" if fused and dense else "pre_mlp_layernorm.weight"
    found |= {first: hf[there + "input_layernorm.weight"], second: hf[there + "post_attention_layernorm.weight"]}
    if dense:
        fc1, fc2 = _mlp(hf, there + "mlp.", s.tensor, tp)
        return found | {"mlp.linear_fc1.weight": fc1, "mlp.linear_fc2.weight": fc2}
    found["mlp.router.weight"] = router = hf[there + "mlp.gate.weight"]
    if config["model_type"] in PREDICTORS:
        found["mlp.router.expert_bias"] = hf[there + "mlp.gate.e_score_correction_bias"]
        fc1, fc2 = _mlp(hf, there + "mlp.shared_experts.", s.tensor, tp)
        found |= {"mlp.shared_experts.linear_fc1.weight": fc1, "mlp.shared_experts.linear_fc2.weight": fc2}
    local = len(router) // s.expert
    for e in range(local):
        fc1, fc2 = _mlp(hf, f"{there}mlp.experts.{ep * local + e}.", s.expert_tensor, etp)
        for name, weight in (("linear_fc1", fc1), ("linear_fc2", fc2)):
            one = f"mlp.experts.{name}.weight{e}" if grouped else f"mlp.experts.local_experts.{e}.{name}.weight"
            found[one] = weight
    return found


def _rank(
    hf: Tensors, config: dict[str, Any], s: ParallelSizes, place: tuple[int, int, int, int], fused: bool, grouped: bool
) -> Tensors:
    tp, pp = place[:2]
    layers, last = config["num_hidden_layers"], s.virtual - 1
    counts = stage_layers(layers, s)
    assert counts is not None
    embedding = _vocabulary(hf["model.embed_tokens.weight"], s.tensor, tp)
    found: Tensors = {}
    if pp == 0:
        found["0/embedding.word_embeddings.weight"] = embedding
    for chunk in range(s.virtual):
        # chunks take turns: every stage's share of one chunk comes before the next chunk
        passed = chunk * (layers // s.virtual) + sum(n // s.virtual for n in counts[:pp])
        for n in range(counts[pp] // s.virtual):
            held = _layer(hf, config, s, passed + n, place, fused, grouped)
            found |= {f"{chunk}/decoder.layers.{n}.{name}": tensor for name, tensor in held.items()}
    if pp < s.pipeline - 1:
        return {name: tensor.contiguous() for name, tensor in found.items()}
    for n in range(predictor_count(config)):
        there, here = f"model.layers.{layers + n}.", f"{last}/mtp.layers.{n}."
        held = _layer(hf, config, s, layers + n, place, fused, grouped)
        found |= {f"{here}transformer_layer.{name}": tensor for name, tensor in held.items()}
        found |= {f"{here}{norm}.weight": hf[f"{there}{norm}.weight"] for norm in ("enorm", "hnorm")}
        found[here + "eh_proj.weight"] = hf[there + "eh_proj.weight"].chunk(s.tensor)[tp]
        found[here + "final_layernorm.weight"] = hf[there + "shared_head.norm.weight"]
        found[f"{last}/embedding.word_embeddings.weight"] = embedding
    found[f"{last}/decoder.final_layernorm.weight"] = hf["model.norm.weight"]
    if not config["tie_word_embeddings"]:
        found[f"{last}/output_layer.weight"] = _vocabulary(hf["lm_head.weight"], s.tensor, tp)
    elif s.pipeline > 1:
        found[f"{last}/output_layer.weight"] = embedding
    return {name: tensor.contiguous() for name, tensor in found.items()}


def transformers_parameters(hf: Tensors, config: dict[str, Any]) -> Tensors:
    """transformers 5's parameters: experts stacked, no multi-token prediction."""
    predictors = f"model.layers.{config['num_hidden_layers']}."
    found = {name: t for name, t in hf.items() if ".experts." not in name and not name.startswith(predictors)}
    count = expert_count(config)
    for i in set(range(config["num_hidden_layers"])) - dense_layers(config):
        layer = f"model.layers.{i}.mlp.experts."
        gates, ups, downs = (
            torch.stack([hf[f"{layer}{e}.{x}_proj.weight"] for e in range(count)]) for x in ("gate", "up", "down")
        )
        found |= {f"{layer}gate_up_proj": torch.cat([gates, ups], dim=1), f"{layer}down_proj": downs}
    return found
