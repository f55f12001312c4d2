"""Learning from an engine that samples from another policy: every layout against plain torch, sequence by sequence."""

import json
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from megatron_rl.algorithms.config import AlgorithmConfig
from tests.actor.learning_ranks import SETTINGS, TEMPERATURE, cut
from tests.actor.models import write_model

RANKS = Path(__file__).parent / "learning_ranks.py"
LAYOUTS: dict[str, dict] = {
    "tp2": dict(tensor_parallel=2),
    "pp2": dict(pipeline_parallel=2, micro_batch_tokens=60),
    "dp2": dict(data_parallel=2),
    "dp2-small": dict(data_parallel=2, micro_batch_tokens=40),
    "dp2-unpacked": dict(data_parallel=2, packing=False),
    "cp2": dict(context_parallel=2),
    "cp2-small": dict(context_parallel=2, micro_batch_tokens=30),
}
MASKED = dict(correction="masked", correction_level="sequence", correction_low=0.5, correction_high=2.0)
ALGORITHMS: dict[str, dict] = {
    "seq-mis": MASKED | dict(minibatches=2, epochs=2),
    "seq-tis": MASKED | dict(correction="truncated", epochs=2),
    "seq-mask-tis": MASKED | dict(correction_level="geometric", correction_low=0.97, correction_high=1.03),
    "tis": dict(correction="truncated", minibatches=2, correction_high=1.1),
    "bypass": dict(bypass=True, minibatches=2),
}
# every layout for one algorithm, and the others where a sequence is spread over ranks or the order matters
JOBS = [(layout, "seq-mis") for layout in LAYOUTS] + [
    ("cp2", "seq-tis"),
    ("cp2-small", "seq-mask-tis"),
    ("dp2-small", "tis"),
    ("dp2", "bypass"),
]


def logprobs(model: torch.nn.Module, sequence: dict) -> torch.Tensor:
    """Of the completion's tokens, float64."""
    tokens = torch.from_numpy(sequence["tokens"])[None]
    log_p = (model(tokens).logits[0, :-1] / TEMPERATURE).log_softmax(-1)
    return log_p.gather(1, tokens[0, 1:, None]).squeeze(1)[sequence["prompt"] - 1 :]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    write_model("qwen3", folder)
    return folder


@pytest.fixture(scope="module")
def rollout(model: Path) -> list[list[dict]]:
    """Two mini-batches of prompts with two completions each; the engine's log-probs are off by noise."""
    rng = np.random.default_rng(5)
    policy = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float64).eval()
    result = []
    for groups in (((5, 9, 20), (3, 30, 14)), ((7, 1, 12), (4, 25, 6))):
        batch = []
        for prompt, *lengths in groups:
            head = rng.integers(0, 99, prompt)
            for length in lengths:
                tokens = np.concatenate([head, rng.integers(0, 99, length)])
                batch.append({"tokens": tokens, "prompt": prompt})
        total = sum(len(s["tokens"]) - s["prompt"] for s in batch)
        for s in batch:
            length = len(s["tokens"]) - s["prompt"]
            with torch.no_grad():
                engine = logprobs(policy, s).numpy() + rng.normal(0, 0.12, length) + rng.normal(0, 0.03)
            columns = {"weight": np.full(length, 1 / total), "advantage": np.full(length, rng.normal())}
            columns["rollout_logprobs"] = engine
            fill = np.zeros(s["prompt"])
            s["columns"] = {k: np.concatenate([fill, v]).astype(np.float32) for k, v in columns.items()}
        result.append(batch)
    return result


@pytest.fixture(scope="module")
def results(
    model: Path, rollout: list[list[dict]], run_ranks: Callable[..., None], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """What both ranks measured, by job."""
    out = tmp_path_factory.mktemp("learned")
    jobs = [
        {"name": f"{layout}-{name}", "model": str(model), "actor": LAYOUTS[layout], "algorithm": ALGORITHMS[name]}
        for layout, name in JOBS
    ]
    (out / "jobs.json").write_text(json.dumps(jobs))
    torch.save(rollout, out / "rollout.pt")
    run_ranks(RANKS, 2, out / "jobs.json", out / "rollout.pt", out)
    return out


def correct(d: list[float], config: AlgorithmConfig) -> tuple[list[float], list[bool]]:
    """The factors of one sequence's tokens, and which of them a bound changed."""
    low, high = config.correction_low, config.correction_high
    product, mean = math.exp(sum(d)), math.exp(sum(d) / len(d))
    ratio = {"token": [math.exp(x) for x in d], "sequence": [product] * len(d), "geometric": [mean] * len(d)}
    outside = [not low <= r <= high for r in ratio[config.correction_level]]
    if config.correction == "none":
        return [1.0] * len(d), [False] * len(d)
    if config.correction == "truncated":
        return [min(max(r, low), high) for r in ratio[config.correction_level]], outside
    kept = ratio["token" if config.correction_level == "geometric" else config.correction_level]
    return [0.0 if o else r for r, o in zip(kept, outside, strict=True)], outside


@pytest.fixture(scope="module")
def expected(model: Path, rollout: list[list[dict]]) -> dict[str, dict[str, float]]:
    """The metrics by algorithm, computed with transformers, torch's AdamW and no packing, in float64."""
    return {name: reference(model, rollout, AlgorithmConfig(**options)) for name, options in ALGORITHMS.items()}


def reference(model: Path, rollout: list[list[dict]], config: AlgorithmConfig) -> dict[str, float]:
    policy = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float64).eval()
    settings = dict(lr=SETTINGS.lr, betas=(SETTINGS.beta1, SETTINGS.beta2), eps=SETTINGS.eps, weight_decay=0.0)
    optimizer = torch.optim.AdamW(policy.parameters(), **settings)
    minibatches = cut(rollout, config.minibatches)
    ours: dict[int, torch.Tensor] = {}  # by sequence: of the policy before the first update
    if not config.bypass:
        with torch.no_grad():
            ours = {id(s): logprobs(policy, s) for batch in minibatches for s in batch}
    losses, norms = [], []
    for batch in minibatches * config.epochs:
        loss = torch.zeros((), dtype=torch.float64)
        for s in batch:
            weight, advantage, engine = (
                torch.from_numpy(s["columns"][k][s["prompt"] :]).double()
                for k in ("weight", "advantage", "rollout_logprobs")
            )
            new = logprobs(policy, s)
            old = ours.setdefault(id(s), new.detach())
            factors, _ = correct((old - engine).tolist(), config)
            ratio = (new - (engine if config.bypass else old)).exp()
            surrogate = torch.minimum(ratio * advantage, ratio.clamp(0.8, 1.2) * advantage)
            loss = loss - (weight * torch.tensor(factors) * surrogate).sum()
        optimizer.zero_grad()
        loss.backward()
        norms.append(math.sqrt(sum(p.grad.square().sum().item() for p in policy.parameters())))
        losses.append(loss.item())
        optimizer.step()
    gaps, weights, factors, bounded = [], [], [], []
    for batch in minibatches:
        for s in batch:
            d = ours[id(s)] - torch.from_numpy(s["columns"]["rollout_logprobs"][s["prompt"] :]).double()
            f, o = correct(d.tolist(), config)
            gaps += d.tolist()
            weights += [float(s["columns"]["weight"][-1]) / len(minibatches)] * len(d)
            factors, bounded = factors + f, bounded + o
    w, c, d = np.array(weights), np.array(factors), np.array(gaps)
    result = {
        "loss": float(np.mean(losses)),
        "grad_norm": float(np.mean(norms)),
        "max_logprob_gap": abs(d).max(),
        "p99_logprob_gap": np.percentile(abs(d), 99, method="inverted_cdf"),
        "logprob_gap": (w * abs(d)).sum(),
        "engine_kl_k1": -(w * d).sum(),
        "engine_kl_k3": (w * (np.exp(d) - 1 - d)).sum(),
    }
    if config.correction != "none":
        result["correction_weight"] = (w * c).sum()
        result["correction_fraction"] = (w * bounded).sum()
        result["correction_ess"] = (w * c).sum() ** 2 / (w * c**2).sum()
    return result


@pytest.mark.parametrize(("layout", "name"), JOBS)
def test_equals_plain_torch(
    layout: str, name: str, results: Path, expected: dict[str, dict[str, float]], rollout: list[list[dict]]
) -> None:
    wanted = expected[name]
    for rank in range(2):
        measured = json.loads((results / f"{layout}-{name}-{rank}.json").read_text())
        assert "correction_square" not in measured and ("correction_weight" in measured) == (name != "bypass")
        for metric, value in wanted.items():
            assert measured[metric] == pytest.approx(value, rel=2e-5, abs=2e-6), metric
    if name != "bypass":
        assert 0.05 < wanted["correction_fraction"] < 0.95  # the bounds do something


def test_the_correction_matters(expected: dict[str, dict[str, float]]) -> None:
    norms = [values["grad_norm"] for values in expected.values()]
    assert min(abs(a - b) / a for i, a in enumerate(norms) for b in norms[:i]) > 1e-3
