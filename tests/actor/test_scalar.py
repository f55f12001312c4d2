"""Models with a scalar head at every kind of sharding: against transformers, trained beside a policy, and continued."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from megatron_rl.actor.config import ActorConfig
from megatron_rl.resharding.families import with_scalar_head
from megatron_rl.resharding.families.table import SCORE
from megatron_rl.resharding.layouts.megatron import megatron_layout
from megatron_rl.resharding.layouts.transformers import files_layout
from tests.actor.models import write_model
from tests.actor.test_parity import sequences

RANKS = Path(__file__).parent / "scalar_ranks.py"
LAYOUTS = {
    "tp2": dict(tensor_parallel=2),
    "tp2-sp": dict(tensor_parallel=2, sequence_parallel=True),
    "pp2": dict(pipeline_parallel=2),
    "cp2": dict(context_parallel=2),
    "dp2": dict(data_parallel=2, micro_batch_tokens=40),
}
OTHERS = ("tp2-sp", "dp2", "pp2")  # than tp2, that a checkpoint of it is continued at
PAIRED = {name: LAYOUTS[name] | {"micro_batch_tokens": 64} for name in LAYOUTS}
FOUR = {"tp2-sp-pp2": dict(tensor_parallel=2, sequence_parallel=True, pipeline_parallel=2)}
STEPS, SAVED = 4, 2
MARGIN = 0.5


def rows() -> list[dict]:
    rng = np.random.default_rng(11)
    return [s | {"return": rng.normal(size=len(s["tokens"])).tolist()} for s in sequences()]


def pairs() -> list[dict]:
    """Pairs of replies of different lengths, some with prompts of a single token, two with one prompt."""
    rng = np.random.default_rng(4)
    found = []
    for prompt, chosen, rejected in ((8, 5, 11), (1, 9, 2), (17, 1, 30), (8, 6, 6), (3, 20, 4)):
        lengths = {"prompt": prompt, "chosen": chosen, "rejected": rejected}
        found.append({name: rng.integers(0, 99, length).tolist() for name, length in lengths.items()})
    found[3]["prompt"] = found[0]["prompt"]
    return found


def write_classifier(folder: Path) -> torch.nn.Module:
    """A random tied Qwen3 as transformers saves a reward model; float64."""
    torch.manual_seed(5)
    write_model("qwen3", folder / "decoder")
    model = AutoModelForSequenceClassification.from_pretrained(folder / "decoder", num_labels=1, dtype=torch.float32)
    torch.nn.init.normal_(model.score.weight, std=0.3)
    model.save_pretrained(folder / "classifier")
    return model.double().eval()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("scalar")


@pytest.fixture(scope="module")
def expected(folder: Path) -> dict:
    """transformers' values by token id, loss, gradients and their norm, in float64."""
    model = write_classifier(folder)
    values, loss = {}, torch.zeros((), dtype=torch.float64)
    for s in rows():
        tokens = torch.tensor([s["tokens"]])
        found = model.score(model.model(tokens[:, :-1]).last_hidden_state)[0, :, 0]
        weight, target = (torch.tensor(s[name], dtype=torch.float32).double()[1:] for name in ("weight", "return"))
        loss = loss + (weight * 0.5 * (found - target).square()).sum()
        values |= {i: v for i, v, w in zip(s["id"][1:], found.tolist(), weight.tolist(), strict=True) if w}
    loss.backward()
    gradients = {n: p.grad for n, p in model.named_parameters()}
    norm = torch.nn.utils.get_total_norm(gradients.values()).item()
    found = {"values": values, "loss": loss.item(), "gradients": dict(gradients), "norm": norm}
    model.zero_grad()
    model.config.pad_token_id = None  # one by one: the last token is read
    rewards = torch.stack(
        [
            torch.stack(
                [model(torch.tensor([p["prompt"] + p[reply]])).logits[0, 0] for reply in ("chosen", "rejected")]
            )
            for p in pairs()
        ]
    )
    loss = torch.nn.functional.softplus(MARGIN - (rewards[:, 0] - rewards[:, 1])).mean()
    loss.backward()
    norm = torch.nn.utils.get_total_norm([p.grad for p in model.parameters()]).item()
    return found | {"rewards": rewards.detach(), "pair_loss": loss.item(), "pair_norm": norm}


@pytest.fixture(scope="module")
def results(folder: Path, expected: dict, run_ranks: Callable[..., None]) -> dict[str, list[dict]]:
    classifier, decoder = str(folder / "classifier"), str(folder / "decoder")
    parity = {"model": classifier, "sequences": rows()}
    preference = {"model": classifier, "pairs": pairs()}
    run = {"model": decoder, "folder": str(folder / "checkpoints"), "load": None, "save": None}
    saved = {"load": f"step-{SAVED}"}
    two = [
        *(parity | {"name": name, "actor": actor} for name, actor in LAYOUTS.items()),
        *(preference | {"name": f"pairs-{name}", "actor": actor} for name, actor in PAIRED.items()),
        run | {"name": "whole", "actor": LAYOUTS["tp2"], "save": SAVED},
        run | saved | {"name": "continued", "actor": LAYOUTS["tp2"]},
        *(run | saved | {"name": f"continued-{name}", "actor": LAYOUTS[name]} for name in OTHERS),
    ]
    four = [parity | {"name": name, "actor": actor} for name, actor in FOUR.items()]
    found = {}
    for world, jobs in ((2, two), (4, four)):
        (folder / "jobs.json").write_text(json.dumps(jobs))
        run_ranks(RANKS, world, folder / "jobs.json", folder)
        for name in (job["name"] for job in jobs):
            found[name] = [torch.load(folder / f"{name}-{rank}.pt", weights_only=False) for rank in range(world)]
    return found


def full(shards: list[dict[str, torch.Tensor]], model: Path, actor: dict) -> dict[str, torch.Tensor]:
    """Every rank's tensors put together under Hugging Face's names; ranks that share one must agree."""
    hf_config = with_scalar_head(json.loads((model / "config.json").read_text()))
    tensors = files_layout(hf_config).tensors
    whole = {name: torch.full(spec.index, torch.nan) for name, spec in tensors.items()}
    for held, shard in zip(shards, megatron_layout(hf_config, ActorConfig(**actor).sizes()).ranks, strict=True):
        assert {n: tuple(t.shape) for n, t in held.items()} == shard.locals
        for s in shard.segments:
            box = tuple(slice(a, a + n) for a, n in zip(s.start, s.shape, strict=True))
            mine = held[s.local].flatten().as_strided(s.shape, s.strides, s.offset)
            assert whole[s.tensor][box].isnan().all() or torch.allclose(whole[s.tensor][box], mine, rtol=1e-6)
            whole[s.tensor][box] = mine
    return {name: t.view(tensors[name].shape) for name, t in whole.items()}


@pytest.mark.parametrize("name", [*LAYOUTS, *FOUR])
def test_equals_transformers(name: str, results: dict[str, list[dict]], expected: dict, folder: Path) -> None:
    """Nothing that tensor-parallel ranks share is counted twice: neither in a gradient nor in the norm."""
    ranks = results[name]
    scored = {i: v for rank in ranks for i, v in rank["scored"].items()}
    assert scored.keys() == expected["values"].keys()
    largest = max(map(abs, expected["values"].values()))
    assert max(abs(scored[i] - v) for i, v in expected["values"].items()) < 2e-6 * largest
    for rank in ranks:
        assert rank["metrics"]["loss"] == pytest.approx(expected["loss"], rel=1e-6)
        assert rank["metrics"]["grad_norm"] == pytest.approx(expected["norm"], rel=1e-6)
    gradients = full([rank["gradients"] for rank in ranks], folder / "classifier", (LAYOUTS | FOUR)[name])
    assert gradients.keys() == expected["gradients"].keys()
    for tensor, wanted in expected["gradients"].items():
        assert (gradients[tensor] - wanted).abs().max() < 1e-6 * max(expected["norm"], 1), tensor
    assert gradients[SCORE].norm() > 0.01


@pytest.mark.parametrize("name", PAIRED)
def test_rewards_of_pairs_equal_transformers(name: str, results: dict[str, list[dict]], expected: dict) -> None:
    """The number at each reply's last token; loss, metrics and gradient norm of all pairs, cut into micro-batches."""
    rewards = expected["rewards"]
    for rank in results[f"pairs-{name}"]:
        metrics = rank["metrics"]
        assert rank["micro_batches"] > 1 or name == "cp2"  # whose ranks have twice the room
        assert metrics["loss"] == pytest.approx(expected["pair_loss"], rel=1e-6)
        assert metrics["grad_norm"] == pytest.approx(expected["pair_norm"], rel=1e-6)
        assert metrics["pair_accuracy"] == pytest.approx((rewards[:, 0] > rewards[:, 1]).double().mean().item())
        assert metrics["reward_chosen"] == pytest.approx(rewards[:, 0].mean().item(), abs=2e-6)
        assert metrics["pair_margin"] == pytest.approx((rewards[:, 0] - rewards[:, 1]).mean().item(), abs=1e-5)


def test_an_exported_reward_model_gives_the_same_scores(
    results: dict[str, list[dict]], expected: dict, folder: Path
) -> None:
    """AutoModelForSequenceClassification finds every weight and one label, and its scores are those of the actor."""
    for name in ("tp2", "pp2"):
        model, info = AutoModelForSequenceClassification.from_pretrained(
            folder / f"pairs-{name}-exported", dtype=torch.float32, output_loading_info=True
        )
        assert type(model).__name__ == "Qwen3ForSequenceClassification" and model.num_labels == 1
        assert not info["missing_keys"] and not info["unexpected_keys"]
        with torch.no_grad():
            scores = [
                [model.eval()(torch.tensor([p["prompt"] + p[reply]])).logits.item() for reply in ("chosen", "rejected")]
                for p in pairs()
            ]
        assert (torch.tensor(scores) - expected["rewards"]).abs().max() < 1e-5
    assert results["pairs-tp2"]


def test_a_run_with_a_critic_continues_bit_identically(results: dict[str, list[dict]]) -> None:
    for continued, whole in zip(results["continued"], results["whole"], strict=True):
        assert continued["losses"] == whole["losses"][SAVED:]
        for model in ("policy", "critic"):
            for name, weight in whole["weights"][model].items():
                assert torch.equal(continued["weights"][model][name], weight), f"{model} {name}"


@pytest.mark.parametrize("name", OTHERS)
def test_and_at_another_sharding(name: str, results: dict[str, list[dict]], folder: Path) -> None:
    continued, whole = results[f"continued-{name}"], results["whole"]
    assert np.allclose(continued[0]["losses"], whole[0]["losses"][SAVED:], atol=1e-6)
    there, here = (
        full([rank["weights"]["critic"] for rank in found], folder / "decoder", LAYOUTS[layout])
        for found, layout in ((whole, "tp2"), (continued, name))
    )
    errors = torch.cat([(there[n] - here[n]).abs().flatten() for n in there])
    assert errors.quantile(0.999) < 1e-6 and errors.mean() < 1e-7


def test_the_head_begins_at_zero_and_learns(results: dict[str, list[dict]], folder: Path) -> None:
    first, *_, last = (critic for _, critic in results["whole"][0]["losses"])
    assert last < first
    weights = full([rank["weights"]["critic"] for rank in results["whole"]], folder / "decoder", LAYOUTS["tp2"])
    assert 0 < weights[SCORE].abs().max() < 0.005  # Adam's steps of 0.001 from zero
    start = AutoModelForCausalLM.from_pretrained(folder / "decoder").state_dict()
    assert (weights["model.norm.weight"] - start["model.norm.weight"]).abs().max() < 0.005


def test_a_checkpoint_without_a_critic_says_so(results: dict[str, list[dict]]) -> None:
    for rank in results["whole"]:
        assert "holds no critic" in rank["refused"] and "algorithm.name" in rank["refused"]
