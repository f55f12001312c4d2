"""The parameters of an SGLang engine's workers, cut out of whole tensors by torch as its weight loaders do."""

from typing import Any

import torch

from megatron_rl.resharding.layouts.sglang import EngineSizes
from tests.resharding.reference import DEEPSEEK, Tensors, dense_layers, expert_count


def _padded(weight: torch.Tensor, ways: int, index: int) -> torch.Tensor:
    """VocabParallelEmbedding: 64 rows at a time, or 64 on every worker; padding is -1."""
    rows = -(-len(weight) // 64) * 64
    if rows % ways:
        rows = -(-len(weight) // (64 * ways)) * 64 * ways
    full = torch.full((rows, weight.shape[1]), -1, dtype=weight.dtype)
    full[: len(weight)] = weight
    return full.chunk(ways)[index]


def _qkv(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, groups: int, ways: int, index: int) -> torch.Tensor:
    """QKVParallelLinear: key and value heads are replicated where there are fewer than workers."""
    heads = (index // (ways // groups), groups) if ways > groups else (index, ways)
    return torch.cat([q.chunk(ways)[index], *(x.chunk(heads[1])[heads[0]] for x in (k, v))])


def _attention(hf: Tensors, config: dict[str, Any], there: str, ways: int, index: int) -> Tensors:
    weights = {n.removeprefix(there): t for n, t in hf.items() if n.startswith(there)}
    found = {n: t for n, t in weights.items() if "norm" in n}
    found["o_proj.weight"] = weights["o_proj.weight"].chunk(ways, dim=1)[index]
    if config["model_type"] != DEEPSEEK:
        for what in ("weight", "bias"):
            if f"q_proj.{what}" in weights:
                parts = [weights[f"{x}_proj.{what}"] for x in "qkv"]
                found[f"qkv_proj.{what}"] = _qkv(*parts, config["num_key_value_heads"], ways, index)
        return found
    found["kv_b_proj.weight"] = weights["kv_b_proj.weight"].chunk(ways)[index]
    down = weights["kv_a_proj_with_mqa.weight"]
    if config["q_lora_rank"]:
        found["fused_qkv_a_proj_with_mqa.weight"] = torch.cat([weights["q_a_proj.weight"], down])
        return found | {"q_b_proj.weight": weights["q_b_proj.weight"].chunk(ways)[index]}
    return found | {"kv_a_proj_with_mqa.weight": down, "q_proj.weight": weights["q_proj.weight"].chunk(ways)[index]}


def _mlp(hf: Tensors, there: str, ways: int, index: int) -> tuple[torch.Tensor, torch.Tensor]:
    gate, up = (hf[f"{there}{x}_proj.weight"].chunk(ways)[index] for x in ("gate", "up"))
    return torch.cat([gate, up]), hf[there + "down_proj.weight"].chunk(ways, dim=1)[index]


def _layer(hf: Tensors, config: dict[str, Any], sizes: EngineSizes, number: int, index: int) -> Tensors:
    there = f"model.layers.{number}."
    found = {
        f"{there}{norm}.weight": hf[f"{there}{norm}.weight"] for norm in ("input_layernorm", "post_attention_layernorm")
    }
    attention = there + "self_attn."
    found |= {attention + n: t for n, t in _attention(hf, config, attention, sizes.tensor, index).items()}
    dense = there + "mlp."
    if number not in dense_layers(config):
        found |= {n: t for n, t in hf.items() if n.startswith(there + "mlp.gate.")}
        share = sizes.tensor // sizes.expert
        local = expert_count(config) // sizes.expert
        first = index // share * local
        pairs = [_mlp(hf, f"{there}mlp.experts.{e}.", share, index % share) for e in range(first, first + local)]
        found[there + "mlp.experts.w13_weight"] = torch.stack([pair[0] for pair in pairs])
        found[there + "mlp.experts.w2_weight"] = torch.stack([pair[1] for pair in pairs])
        if f"{there}mlp.shared_experts.gate_proj.weight" not in hf:
            return found
        dense = there + "mlp.shared_experts."
    found[dense + "gate_up_proj.weight"], found[dense + "down_proj.weight"] = _mlp(hf, dense, sizes.tensor, index)
    return found


def sglang_shards(hf: Tensors, config: dict[str, Any], sizes: EngineSizes) -> list[Tensors]:
    """Every worker's parameters."""
    layers, workers = config["num_hidden_layers"], []
    base, more = divmod(layers, sizes.pipeline)
    for stage in range(sizes.pipeline):
        begin = stage * base + max(0, stage - (sizes.pipeline - more))
        numbers = range(begin, begin + base + (stage >= sizes.pipeline - more))
        for index in range(sizes.tensor):
            found: Tensors = {}
            embedding = _padded(hf["model.embed_tokens.weight"], sizes.tensor, index)
            if stage == 0:
                found["model.embed_tokens.weight"] = embedding
            for number in numbers:
                found |= _layer(hf, config, sizes, number, index)
            last, own = stage == sizes.pipeline - 1, not config["tie_word_embeddings"]
            # the modules of the other families put a placeholder there before the last stage
            if own and (last or config["model_type"] in ("llama", "mistral", "qwen3_moe", "glm4_moe")):
                found["lm_head.weight"] = _padded(hf["lm_head.weight"], sizes.tensor, index)
            if last:
                found["model.norm.weight"] = hf["model.norm.weight"]
                if not own and sizes.pipeline > 1:
                    found["lm_head.weight"] = embedding
            workers.append({name: tensor.contiguous() for name, tensor in found.items()})
    return workers * sizes.data
