"""The sharded actor against transformers: log-probs, entropies, loss and gradients at every kind of sharding.

"replay" is the mixture of experts with its tokens sent to given experts, which its routers would not have chosen.
With ``true_on_policy`` log-probs are those of the engine's layers, to the bit of a float32, in bfloat16 too.
"""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from megatron_rl.actor.config import ActorConfig
from megatron_rl.resharding.layouts.megatron import megatron_layout
from megatron_rl.resharding.layouts.transformers import transformers_layout
from megatron_rl.rollout.embedded.attention import ATTENTION
from megatron_rl.rollout.embedded.true_on_policy import replace_layers
from tests.actor.models import CONFIGS, write_model

TEMPERATURE = 0.7
DTYPES = ("float32", "bfloat16")
REPLAY = "replay"
MODELS = {name: name for name in CONFIGS} | {REPLAY: "qwen3_moe"}
RANKS = Path(__file__).parent / "parity_ranks.py"
# Four ranks run every case of the list, data parallelism filling up; (model, options of the actor).
FOUR = [
    ("qwen3", dict(tensor_parallel=2, data_parallel=2)),
    ("qwen3", dict(tensor_parallel=2, pipeline_parallel=2)),
    ("qwen3", dict(pipeline_parallel=2, virtual_pipeline=2, data_parallel=2, micro_batch_tokens=40)),
    ("qwen3", dict(context_parallel=2, data_parallel=2)),
    ("qwen3", dict(tensor_parallel=2, context_parallel=2, sequence_parallel=True)),
    ("qwen3", dict(data_parallel=4, packing=False)),
    ("qwen3_untied", dict(tensor_parallel=2, pipeline_parallel=2, sequence_parallel=True)),
    ("qwen2", dict(tensor_parallel=2, pipeline_parallel=2, recompute="full")),
    ("llama", dict(tensor_parallel=2, data_parallel=2, sequence_parallel=True)),
    ("llama", dict(context_parallel=2, pipeline_parallel=2, micro_batch_tokens=40)),
    ("qwen3_moe", dict(expert_parallel=2, data_parallel=4)),
    ("qwen3_moe", dict(tensor_parallel=2, data_parallel=2, sequence_parallel=True)),
    ("qwen3_moe", dict(expert_parallel=2, tensor_parallel=2, data_parallel=2, sequence_parallel=True)),
    ("qwen3", dict(tensor_parallel=2, data_parallel=2, true_on_policy=True)),
    ("qwen3", dict(tensor_parallel=2, pipeline_parallel=2, true_on_policy=True, dtype="bfloat16")),
    ("qwen2", dict(tensor_parallel=2, pipeline_parallel=2, recompute="full", true_on_policy=True)),
    ("llama", dict(tensor_parallel=2, context_parallel=2, sequence_parallel=True, true_on_policy=True)),
    ("qwen3_six_layers", dict(pipeline_parallel=2, first_stage=5, tensor_parallel=2)),
    ("qwen3_six_layers", dict(pipeline_parallel=4, first_stage=1, last_stage=1)),
    (
        "qwen3_six_layers",
        dict(pipeline_parallel=2, last_stage=2, virtual_pipeline=2, data_parallel=2, micro_batch_tokens=40),
    ),
    ("qwen3_moe", dict(tensor_parallel=2, expert_tensor_parallel=2, data_parallel=2, sequence_parallel=True)),
    ("qwen3_moe", dict(data_parallel=4, expert_tensor_parallel=2, expert_parallel=2)),
    (
        "qwen3_moe",
        dict(tensor_parallel=2, expert_tensor_parallel=2, expert_parallel=2, data_parallel=2, sequence_parallel=True),
    ),
    (REPLAY, dict(pipeline_parallel=2, first_stage=3, context_parallel=2, expert_tensor_parallel=2)),
    (REPLAY, dict(expert_parallel=2, tensor_parallel=2, data_parallel=2, sequence_parallel=True, recompute="full")),
    (REPLAY, dict(pipeline_parallel=2, context_parallel=2, expert_parallel=2)),
    (
        REPLAY,
        dict(pipeline_parallel=2, virtual_pipeline=2, data_parallel=2, micro_batch_tokens=40, recompute="full"),
    ),
]
ONE = [
    ("qwen3", dict()),
    ("qwen3", dict(micro_batch_tokens=40, logprob_chunk=7)),
    ("qwen3", dict(packing=False)),
    ("qwen3", dict(micro_batch_tokens=40, logprob_chunk=7, true_on_policy=True)),
    ("qwen2", dict()),
    ("llama", dict()),
    ("llama", dict(packing=False, true_on_policy=True)),
    ("qwen3_moe", dict()),
    (REPLAY, dict()),
]


def sequences() -> list[dict]:
    """Prompts without weight, completions with weights of different sizes that add up to about 1.

    Three share a prompt of 8 tokens (one has a single token more), two one of 7; the others have their own. Shared
    prompts have shared experts, but for the one of 17 tokens.
    """
    rng = np.random.default_rng(3)
    config = CONFIGS[MODELS[REPLAY]]
    layers, experts, top_k = config.num_hidden_layers, config.num_experts, config.num_experts_per_tok
    prompts = {n: rng.integers(0, 99, n) for n in (7, 8)}
    result, count = [], 0
    for length, prompt in ((9, 8), (17, 8), (23, 8), (23, 3), (30, 7), (12, 7), (5, 3), (39, 3)):
        tokens = rng.integers(0, 99, length)
        if prompt in prompts:
            tokens[:prompt] = prompts[prompt]
        weight = np.where(np.arange(length) < prompt, 0.0, rng.uniform(0.2, 1.0, length) / 100)
        ids = list(range(count, count + length))
        order = np.random.default_rng(length).random((length - 1, layers, experts)).argsort(-1)
        if prompt in prompts and length != 17:
            order[:prompt] = np.random.default_rng(prompt).random((prompt, layers, experts)).argsort(-1)
        chosen = order[:, :, :top_k].reshape(length - 1, layers * top_k)
        result.append(
            {
                "tokens": tokens.tolist(),
                "weight": weight.tolist(),
                "id": ids,
                "prompt": prompt,
                "experts": chosen.tolist(),
            }
        )
        count += length
    return result


def force_experts(model: torch.nn.Module, experts: list[list[int]]) -> None:
    """Have transformers' routers weigh the given experts: softmax over all, renormalised over the chosen."""
    for layer, part in zip(model.model.layers, torch.tensor(experts).chunk(len(model.model.layers), 1), strict=True):

        def route(hidden: torch.Tensor, gate=layer.mlp.gate, chosen=part) -> tuple[torch.Tensor, ...]:
            logits = hidden @ gate.weight.t()
            weights = logits.softmax(-1).gather(1, chosen)
            return logits, weights / weights.sum(-1, keepdim=True), chosen

        layer.mlp.gate.forward = route


def exact_logprobs(folder: Path, dtype: str) -> dict[int, float]:
    """As the engine computes them under ``true_on_policy``, every sequence alone; float32."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)
    replace_layers(model)
    model.config._attn_implementation = ATTENTION
    found = {}
    for s in sequences():
        tokens = torch.tensor([s["tokens"]])
        log_p = (model(tokens[:, :-1]).logits[0] / TEMPERATURE).log_softmax(-1)
        assert log_p.dtype == torch.float64
        chosen = log_p.gather(1, tokens[0, 1:, None]).squeeze(1).float()
        found |= {i: v for i, v, w in zip(s["id"][1:], chosen.tolist(), s["weight"][1:], strict=True) if w}
    return found


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict]:
    """transformers' answer for every model: folder, log-probs by token id, loss and gradients."""
    answers = {}
    for name in MODELS:
        folder = tmp_path_factory.mktemp(name)
        model = write_model(MODELS[name], folder)
        logprobs, loss, mean_entropy = {}, torch.zeros(()), torch.zeros(())
        for s in sequences():
            tokens, weight = torch.tensor([s["tokens"]]), torch.tensor(s["weight"])[1:]
            if name == REPLAY:
                force_experts(model, s["experts"])
            log_p = (model(tokens[:, :-1]).logits[0] / TEMPERATURE).log_softmax(-1)
            chosen = log_p.gather(1, tokens[0, 1:, None]).squeeze(1)
            entropy = -(log_p.exp() * log_p).sum(-1)
            loss = loss - (weight * (chosen + 0.3 * entropy)).sum()
            mean_entropy = mean_entropy + (weight * entropy).sum()
            logprobs |= {i: v for i, v, w in zip(s["id"][1:], chosen.tolist(), weight.tolist(), strict=True) if w}
        loss.backward()
        answers[name] = {
            "folder": folder,
            "logprobs": logprobs,
            "loss": loss.item(),
            "entropy": mean_entropy.item(),
            "gradients": {n: p.grad for n, p in model.named_parameters()},
            "grad_norm": torch.nn.utils.get_total_norm(p.grad for p in model.parameters()).item(),
        }
        if "moe" not in MODELS[name]:
            answers[name]["exact"] = {dtype: exact_logprobs(folder, dtype) for dtype in DTYPES}
    return answers


@pytest.fixture(scope="module")
def results(reference, run_ranks, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("parity")
    for world, cases in ((4, FOUR), (1, ONE)):
        listing = [
            {
                "name": f"{world}-{i}",
                "actor": actor,
                "model": str(reference[model]["folder"]),
                "sequences": sequences(),
                "temperature": TEMPERATURE,
                "replay": model == REPLAY,
            }
            for i, (model, actor) in enumerate(cases)
        ]
        (out / f"{world}.json").write_text(json.dumps(listing))
        run_ranks(RANKS, world, out / f"{world}.json", out)
    return out


@pytest.mark.parametrize(
    ("world", "index"),
    [(4, i) for i in range(len(FOUR))] + [(1, i) for i in range(len(ONE))],
    ids=[f"{m}-" + "-".join(f"{k}={v}" for k, v in a.items()) for m, a in FOUR + ONE],
)
def test_equals_transformers(world: int, index: int, reference, results: Path) -> None:
    model, actor = (FOUR if world == 4 else ONE)[index]
    expected = reference[model]
    ranks = [torch.load(results / f"{world}-{index}-{r}.pt", weights_only=False) for r in range(world)]

    scored: dict[int, float] = {}
    for rank in ranks:
        scored |= rank["scored"]
    assert scored.keys() == expected["logprobs"].keys()
    if actor.get("true_on_policy"):
        # a sum in float64 that lies on the border between two float32 may be rounded to either
        exact = expected["exact"][dtype := actor.get("dtype", "float32")]
        others = [abs(scored[i] - v) for i, v in exact.items() if scored[i] != v]
        assert len(others) <= 2 and max(others, default=0) < 1e-6
        if dtype == "bfloat16":
            assert 1e-3 < max(abs(scored[i] - v) for i, v in expected["logprobs"].items()) < 0.1
            return
    assert max(abs(scored[i] - v) for i, v in expected["logprobs"].items()) < 5e-6
    for rank in ranks:
        assert rank["metrics"]["loss"] == pytest.approx(expected["loss"], abs=1e-6)
        assert rank["metrics"]["entropy"] == pytest.approx(expected["entropy"], abs=1e-6)
        assert rank["metrics"]["grad_norm"] == pytest.approx(expected["grad_norm"], rel=1e-5)
        assert rank["metrics"]["max_logprob"] == pytest.approx(max(expected["logprobs"].values()), abs=5e-6)

    hf_config = json.loads((expected["folder"] / "config.json").read_text())
    sharding = {key: value for key, value in actor.items() if key not in ("true_on_policy", "dtype")}
    sizes = ActorConfig(**sharding).sizes()
    engine = {s.tensor: s for s in transformers_layout(hf_config).ranks[0].segments}
    checked = 0
    for rank, shard in enumerate(megatron_layout(hf_config, sizes).ranks):
        gradients = ranks[rank]["gradients"]
        assert {n: tuple(g.shape) for n, g in gradients.items()} == shard.locals
        for segment in shard.segments:
            local = gradients[segment.local].flatten().as_strided(segment.shape, segment.strides, segment.offset)
            full = expected["gradients"][engine[segment.tensor].local].flatten()
            there = engine[segment.tensor]
            offset = there.offset + sum(a * b for a, b in zip(segment.start, there.strides, strict=True))
            wanted = full.as_strided(segment.shape, there.strides, offset)
            assert (local - wanted).abs().max() < 1e-6, segment
            checked += 1
    assert checked >= len(expected["gradients"])
