"""Preferences on the sharded actor against transformers and the formulas, written out anew, on one process."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from megatron_rl.actor.config import ActorConfig
from megatron_rl.resharding.layouts.megatron import megatron_layout
from megatron_rl.resharding.layouts.transformers import transformers_layout
from tests.actor.models import write_model

RANKS = Path(__file__).parent / "pairs_ranks.py"
ROLES = ("policy", "reference", "positive", "negative")
DPO = dict(beta=0.3, label_smoothing=0.1)
CDPO = dict(loss="cdpo", beta=0.5)
FOUR = [
    ("qwen3_untied", dict(tensor_parallel=2, data_parallel=2), DPO),
    ("qwen3_untied", dict(tensor_parallel=2, pipeline_parallel=2, sequence_parallel=True), CDPO),
    ("qwen3_untied", dict(context_parallel=2, data_parallel=2, micro_batch_tokens=48), DPO),
    ("qwen3_untied", dict(context_parallel=2, pipeline_parallel=2, micro_batch_tokens=48), CDPO),
    ("qwen3_untied", dict(data_parallel=4, packing=False), CDPO),
    ("qwen3", dict(pipeline_parallel=2, virtual_pipeline=2, data_parallel=2), DPO),
    ("qwen3", dict(tensor_parallel=2, context_parallel=2, logprob_chunk=7), CDPO),
]


def pairs() -> list[list[list[int]]]:
    """Prompt, prefix, chosen and rejected; some replies are longer than the others, one has a single token."""
    rng = np.random.default_rng(5)
    sizes = ((5, 0, 9, 4), (7, 3, 2, 12), (3, 0, 6, 6), (9, 0, 1, 8), (4, 2, 17, 11), (6, 0, 5, 3))
    return [[rng.integers(0, 99, n).tolist() for n in part] for part in sizes]


def logits(model: torch.nn.Module, given: list[int], reply: list[int]) -> torch.Tensor:
    """Of the reply's tokens, float64 [reply, vocabulary]."""
    return model(torch.tensor([given + reply])).logits[0, len(given) - 1 : -1].double()


def chosen(logits: torch.Tensor, tokens: list[int]) -> torch.Tensor:
    return logits.log_softmax(-1).gather(1, torch.tensor(tokens)[:, None]).squeeze(1)


def expected(models: dict[str, torch.nn.Module], options: dict) -> dict:
    """Loss, metrics and gradients of the policy; TRL's sigmoid loss with label smoothing, the authors' of cDPO."""
    beta, smoothing = options["beta"], options.get("label_smoothing", 0.0)
    losses, margins, rewards, critical = [], [], [], []
    for prompt, prefix, *replies in pairs():
        ratios = [
            chosen(logits(models["policy"], prompt + prefix, reply), reply)
            - chosen(logits(models["reference"], prompt + prefix, reply), reply).detach()
            for reply in replies
        ]
        rewards.append([beta * r.sum().item() for r in ratios])
        if options.get("loss") != "cdpo":
            margin = beta * (ratios[0].sum() - ratios[1].sum())
        else:
            z = [logits(models[role], prompt + prefix, replies[1]).detach() for role in ("positive", "negative")]
            s = (2 * z[0] - z[1]).softmax(-1).gather(1, torch.tensor(replies[1])[:, None]).squeeze(1)
            critical.append((1 - s).mean().item())
            longest = max(map(len, replies))
            first, second = (torch.cat([r, r.new_zeros(longest - len(r))]) for r in (ratios[0], (1 - s) * ratios[1]))
            margin = beta * (first - second)
        margins.append(rewards[-1][0] - rewards[-1][1])
        one, other = 1 / (1 + torch.exp(-margin)), 1 / (1 + torch.exp(margin))
        losses.append((-(1 - smoothing) * one.log() - smoothing * other.log()).reshape(-1))
    loss = torch.cat(losses).mean()
    models["policy"].zero_grad()
    loss.backward()
    found = {
        "loss": loss.item(),
        "pair_accuracy": np.mean([m > 0 for m in margins]),
        "pair_margin": np.mean(margins),
        "reward_chosen": np.mean([r[0] for r in rewards]),
        "reward_rejected": np.mean([r[1] for r in rewards]),
        "grad_norm": torch.nn.utils.get_total_norm(p.grad for p in models["policy"].parameters()).item(),
    }
    gradients = {n: p.grad.clone() for n, p in models["policy"].named_parameters()}
    return {"metrics": found | ({"critical": np.mean(critical)} if critical else {}), "gradients": gradients}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Path]]:
    """Folders of four models of each kind: the second to fourth are the first, shaken."""
    found: dict[str, dict[str, Path]] = {}
    for name in ("qwen3", "qwen3_untied"):
        found[name] = {role: tmp_path_factory.mktemp(f"{name}-{role}") for role in ROLES}
        model = write_model(name, found[name]["policy"])
        for seed, role in enumerate(ROLES[1:]):
            torch.manual_seed(seed)
            with torch.no_grad():
                for p in model.parameters():
                    p.add_(0.02 * torch.randn_like(p))
            model.save_pretrained(found[name][role])
    return found


@pytest.fixture(scope="module")
def results(models, run_ranks, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("pairs")
    cases = [
        {"name": str(i), "actor": actor, "pairs": pairs(), "preference": options | {"batch_size": len(pairs())}}
        | {role: str(folder) for role, folder in models[model].items()}
        for i, (model, actor, options) in enumerate(FOUR)
    ]
    (out / "cases.json").write_text(json.dumps(cases))
    run_ranks(RANKS, 4, out / "cases.json", out)
    return out


@pytest.mark.parametrize("index", range(len(FOUR)), ids=[f"{m}-{a}-{o}" for m, a, o in FOUR])
def test_loss_and_gradients_equal_the_formulas(index: int, models, results: Path) -> None:
    name, actor, options = FOUR[index]
    loaded = {role: AutoModelForCausalLM.from_pretrained(folder).float() for role, folder in models[name].items()}
    wanted = expected(loaded, options)
    ranks = [torch.load(results / f"{index}-{rank}.pt", weights_only=False) for rank in range(4)]
    for rank in ranks:
        for key, value in wanted["metrics"].items():
            assert rank["metrics"][key] == pytest.approx(value, abs=2e-6, rel=1e-5), key
    hf_config = json.loads((models[name]["policy"] / "config.json").read_text())
    engine = {s.tensor: s for s in transformers_layout(hf_config).ranks[0].segments}
    checked = 0
    for rank, shard in enumerate(megatron_layout(hf_config, ActorConfig(**actor).sizes()).ranks):
        for segment in shard.segments:
            local = ranks[rank]["gradients"][segment.local].flatten()
            there = engine[segment.tensor]
            offset = there.offset + sum(a * b for a, b in zip(segment.start, there.strides, strict=True))
            full = wanted["gradients"][there.local].flatten().as_strided(segment.shape, there.strides, offset)
            own = local.as_strided(segment.shape, segment.strides, segment.offset)
            assert (own - full).abs().max() < 1e-6, segment
            checked += 1
    assert checked >= len(wanted["gradients"])
