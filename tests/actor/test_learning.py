"""Every algorithm, surrogate and aggregation, at every layout, against the formulas in plain torch.

The reference knows no packing and no ranks: transformers in float64, sequence by sequence, and torch's AdamW.
"""

import json
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from megatron_rl.algorithms.config import AlgorithmConfig
from megatron_rl.algorithms.published import settled
from tests.actor.learning_ranks import LONGEST, SETTINGS, TEMPERATURE, TERMS, Given
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
    "ep2": dict(expert_parallel=2, data_parallel=2),
}
KINDS = {layout: "qwen3_moe" if layout == "ep2" else "qwen3" for layout in LAYOUTS}
MASKED = dict(correction="masked", correction_level="sequence", correction_low=0.5, correction_high=2.0)
CORRECTED: dict[str, dict] = {
    "seq-mis": MASKED | dict(minibatches=2, epochs=2),
    "seq-tis": MASKED | dict(correction="truncated", epochs=2),
    "seq-mask-tis": MASKED | dict(correction_level="geometric", correction_low=0.97, correction_high=1.03),
    "tis": dict(correction="truncated", minibatches=2, correction_high=1.1),
    "bypass": dict(bypass=True, minibatches=2),
}
HINTS = {9: 4, 1: 3, 12: 6, 6: 2}  # tokens that were told, by length of the completion
NARROW = dict(clip_low=0.004, clip_high=0.006)
SURROGATES: dict[str, dict] = {
    f"{surrogate} {aggregation}": dict(surrogate=surrogate, aggregation=aggregation, **NARROW)
    | (dict(minibatches=2, epochs=2) if surrogate != "policy_gradient" else {})
    for surrogate in ("clip", "gspo", "cispo", "policy_gradient")
    for aggregation in ("token-mean", "seq-mean-token-mean", "seq-mean-token-sum", "seq-mean-token-sum-norm")
}
ALGORITHMS: dict[str, dict] = {
    "grpo": dict(kl_coef=0.1, kl_estimator="k2", std="population", entropy_coef=-0.01),
    "gdpo": dict(reward_normalization="each", minibatches=2),
    "dr_grpo": dict(name="dr_grpo", kl_coef=0.1, kl_coefs={"maths": 0.01}, epochs=2),
    "rloo": dict(name="rloo", kl_coef=0.1),
    "reinforce_pp": dict(name="reinforce_pp", kl_coef=0.1, kl_coefs={"maths": 0.0}, gamma=0.9, minibatches=2),
    "reinforce_pp_baseline": dict(
        name="reinforce_pp_baseline", kl_coef=0.1, kl_estimator="k3+", std="population", epochs=2
    ),
    "dapo": dict(name="dapo", truncated="mask", epochs=2, dual_clip=1.001, **NARROW),
    "gspo": dict(name="gspo", minibatches=2, epochs=2, correction="truncated", correction_level="sequence"),
    "cispo": dict(name="cispo", clip_high=0.002, epochs=3, entropy_coef=0.01, truncated="mask"),
    "hinted": dict(name="dr_grpo", hint_coef=0.2, kl_coef=0.1, minibatches=2, truncated="mask"),
}
CASES = CORRECTED | SURROGATES | ALGORITHMS
# all where sequences are spread over ranks or micro-batches; one of a kind everywhere
EVERYWHERE = ("seq-mis", "clip token-mean", "gspo seq-mean-token-mean", "reinforce_pp", "gdpo", "hinted")
JOBS = [
    (layout, name)
    for layout in LAYOUTS
    for name in (CASES if layout in ("cp2-small", "dp2-small") else SURROGATES if layout == "ep2" else EVERYWHERE)
]
JOBS += [("cp2", "seq-tis"), ("dp2", "bypass"), ("pp2", "rloo"), ("pp2", "dapo"), ("tp2", "cispo")]


def exact(folder: Path) -> torch.nn.Module:
    # torch's grouped products of experts know no float64
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64, experts_implementation="eager").eval()


def logprobs(model: torch.nn.Module, given: Given) -> tuple[torch.Tensor, torch.Tensor]:
    """Of the completion's tokens, and their distributions' entropies; float64."""
    log_p, tokens = every_logprob(model, given)[given.start - 1 :], torch.from_numpy(given.tokens)[given.start :]
    return log_p.gather(1, tokens[:, None]).squeeze(1), -(log_p.exp() * log_p).sum(-1)


def every_logprob(model: torch.nn.Module, given: Given) -> torch.Tensor:
    """[tokens - 1, vocabulary]: what is said before each token but the first."""
    tokens = torch.from_numpy(given.tokens)[None]
    return (model(tokens).logits[0, :-1] / TEMPERATURE).log_softmax(-1)


def of_hint(model: torch.nn.Module, given: Given) -> torch.Tensor:
    """Sum of the log-probs of what was told."""
    told = torch.from_numpy(given.tokens)[given.prompt : given.start, None]
    return every_logprob(model, given)[given.prompt - 1 : given.start - 1].gather(1, told).sum()


Folders = tuple[Path, Path]
Groups = list[list[Given]]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Folders]:
    """By kind the policy, and a reference that is a little off it."""
    return {kind: _write_models(kind, tmp_path_factory) for kind in sorted(set(KINDS.values()))}


def _write_models(kind: str, tmp_path_factory: pytest.TempPathFactory) -> Folders:
    folder, other = tmp_path_factory.mktemp("model"), tmp_path_factory.mktemp("reference")
    write_model(kind, folder)
    reference = AutoModelForCausalLM.from_pretrained(folder)
    torch.manual_seed(7)
    with torch.no_grad():
        for parameter in reference.parameters():
            parameter += 0.01 * torch.randn_like(parameter)
    reference.save_pretrained(other)
    return folder, other


@pytest.fixture(scope="module")
def rollouts(models: dict[str, Folders]) -> dict[str, Groups]:
    """By kind four prompts with two or three completions each; the engine's log-probs are off by noise."""
    return {kind: _rollout(policy) for kind, (policy, _) in models.items()}


def _rollout(folder: Path) -> Groups:
    rng = np.random.default_rng(5)
    policy = exact(folder)
    result = []
    for number, (prompt, *lengths) in enumerate(((5, 9, 20), (3, 30, 14, 1), (7, 1, 12), (4, 25, 6, 8))):
        head, group = rng.integers(0, 99, prompt), []
        for length in lengths:
            hint = HINTS.get(length, 0)
            tokens = np.concatenate([head, rng.integers(0, 99, hint + length)])
            scores = {"right": float(rng.integers(0, 3)), "format": float(rng.normal())}
            given = Given(tokens, prompt, np.zeros(length), scores, ("social", "maths")[number % 2], length in (30, 6))
            given.hint = hint
            with torch.no_grad():
                given.engine = logprobs(policy, given)[0].numpy() + rng.normal(0, 0.12, length) + rng.normal(0, 0.03)
            given.engine = given.engine.astype(np.float32)
            group.append(given)
        result.append(group)
    result[3][0].token_rewards = rng.normal(0, 0.1, 25).astype(np.float32)
    return result


@pytest.fixture(scope="module")
def results(
    models: dict[str, Folders],
    rollouts: dict[str, Groups],
    run_ranks: Callable[..., None],
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """What both ranks measured, by layout and case."""
    out = tmp_path_factory.mktemp("learned")
    jobs = [
        {
            "layout": layout,
            "actor": actor,
            "cases": {name: CASES[name] for at, name in JOBS if at == layout},
            "models": [str(folder) for folder in models[KINDS[layout]]],
            "rollout": str(out / f"{KINDS[layout]}.pt"),
        }
        for layout, actor in LAYOUTS.items()
    ]
    (out / "jobs.json").write_text(json.dumps(jobs))
    for kind, rollout in rollouts.items():
        torch.save(rollout, out / f"{kind}.pt")
    run_ranks(RANKS, 2, out / "jobs.json", out)
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


def coefficient(given: Given, config: AlgorithmConfig) -> float:
    return config.kl_coefs.get(given.source, config.kl_coef)


def token_rewards(given: Given, config: AlgorithmConfig, old: torch.Tensor, ref: torch.Tensor) -> np.ndarray:
    """Of every token of a completion."""
    rewards = np.zeros(len(old)) if given.token_rewards is None else given.token_rewards.astype(float)
    if config.kl_in == "reward":
        rewards = rewards - coefficient(given, config) * (old - ref).numpy()
    rewards[-1] += given.reward
    return rewards


def advantages(groups: Groups, config: AlgorithmConfig, old: dict, ref: dict) -> dict[int, np.ndarray]:
    """id -> the advantages of its tokens."""
    ddof, found = int(config.std == "sample"), {}
    trained = [g for group in groups for g in group if not (g.truncated and config.truncated == "mask")]
    for group in groups:
        each = [token_rewards(g, config, old[id(g)], ref[id(g)]) for g in group]
        sums = np.array([rewards.sum() for rewards in each])
        others = (sums.sum() - sums) / (len(sums) - 1)
        if config.name == "reinforce_pp":
            for g, rewards in zip(group, each, strict=True):
                n = len(rewards)
                found[id(g)] = np.array(
                    [sum(config.gamma ** (k - t) * rewards[k] for k in range(t, n)) for t in range(n)]
                )
            continue
        if config.reward_normalization == "each":
            values = sums - [g.reward for g in group]
            for term, weight in TERMS.items():
                scores = np.array([g.scores[term] for g in group])
                values = values + weight * (scores - scores.mean()) / (scores.std(ddof=ddof) + config.std_eps)
        elif config.name == "rloo":
            values = sums - others
        elif config.name in ("dr_grpo", "reinforce_pp_baseline"):
            values = sums - sums.mean()
        else:
            values = (sums - sums.mean()) / (sums.std(ddof=ddof) + config.std_eps)
        found |= {id(g): np.full(len(g.engine), value) for g, value in zip(group, values, strict=True)}
    if config.name.startswith("reinforce_pp") or config.reward_normalization == "each":
        every = np.concatenate([found[id(g)] for g in trained])
        scale = math.sqrt(every.var(ddof=ddof) + 1e-8)
        found = {key: (values - every.mean()) / scale for key, values in found.items()}
    return found


def surrogate(
    new: torch.Tensor, old: torch.Tensor, advantage: torch.Tensor, config: AlgorithmConfig
) -> tuple[torch.Tensor, torch.Tensor]:
    """What is minimised of each token of one sequence, and its ratio."""
    low, high = 1 - config.clip_low, 1 + config.clip_high
    ratio = (new - old).exp()
    if config.surrogate == "policy_gradient":
        return -advantage * new, ratio
    if config.surrogate == "cispo":
        return -ratio.detach().clamp(low, high) * advantage * new, ratio
    if config.surrogate == "gspo":  # the paper's own: the gradient goes through the sequence's ratio
        ratio = (new - old).mean().exp().expand(len(new))
    value = torch.minimum(ratio * advantage, ratio.clamp(low, high) * advantage)
    if config.dual_clip:
        value = torch.where(advantage < 0, torch.maximum(value, config.dual_clip * advantage), value)
    return -value, ratio


def kl(new: torch.Tensor, ref: torch.Tensor, estimator: str) -> torch.Tensor:
    d = new - ref
    if estimator == "k2":
        return d.square() / 2
    k3 = (-d).exp() - 1 + d
    return k3 if estimator == "k3" else k3.detach() + (d.square() - d.square().detach()) / 2


def weights(batch: list[Given], config: AlgorithmConfig) -> dict[int, tuple[float, float]]:
    """id -> a token's weight in the loss and in the metrics."""
    lengths = {id(g): 0 if g.truncated and config.truncated == "mask" else len(g.engine) for g in batch}
    total, count = sum(lengths.values()), sum(n > 0 for n in lengths.values())
    by_mode = {
        "token-mean": lambda n: 1 / total,
        "seq-mean-token-mean": lambda n: 1 / (count * n),
        "seq-mean-token-sum": lambda n: 1 / count,
        "seq-mean-token-sum-norm": lambda n: 1 / (count * LONGEST),
    }
    found = {}
    for key, n in lengths.items():
        weight = by_mode[config.aggregation](n) if n else 0.0
        found[key] = (weight, (1 / total if n else 0.0) if "sum" in config.aggregation else weight)
    return found


def reference(models: Folders, rollout: Groups, options: dict) -> dict[str, float]:
    """The metrics of all updates on a rollout."""
    config = settled(AlgorithmConfig(**options))
    policy, other = map(exact, models)
    settings = dict(lr=SETTINGS.lr, betas=(SETTINGS.beta1, SETTINGS.beta2), eps=SETTINGS.eps, weight_decay=0.0)
    optimizer = torch.optim.AdamW(policy.parameters(), **settings)
    size = len(rollout) // config.minibatches
    minibatches = [[g for group in rollout[i : i + size] for g in group] for i in range(0, len(rollout), size)]
    with torch.no_grad():
        ref = {id(g): logprobs(other, g)[0] for group in rollout for g in group}
        ours = {id(g): logprobs(policy, g)[0] for group in rollout for g in group}
    credit = advantages(rollout, config, ours, ref)
    if config.bypass:
        ours = {}  # of the first update on a mini-batch
    rows: list[dict[str, float]] = []
    for batch in minibatches * config.epochs:
        row = dict.fromkeys(("loss", "policy_loss", "ratio", "entropy"), 0.0)
        row |= {"hint_loss": 0.0} if config.hint_coef else {}
        loss = torch.zeros((), dtype=torch.float64)
        for g in batch:
            (weight, share), engine = weights(batch, config)[id(g)], torch.from_numpy(g.engine).double()
            new, entropy = logprobs(policy, g)
            old = ours.setdefault(id(g), new.detach())
            factors, _ = correct((old - engine).tolist(), config)
            advantage = torch.from_numpy(credit[id(g)])
            values, ratio = surrogate(new, engine if config.bypass else old, advantage, config)
            values = values * torch.tensor(factors)
            row["policy_loss"] += weight * values.sum().item()
            row["ratio"] += share * ratio.sum().item()
            row["entropy"] += share * entropy.sum().item()
            if config.uses_reference and config.kl_in == "loss":
                values = values + coefficient(g, config) * kl(new, ref[id(g)], config.kl_estimator)
            loss = loss + weight * (values - config.entropy_coef * entropy).sum()
            if config.hint_coef:
                told = -config.hint_coef * weight * of_hint(policy, g)
                loss, row["hint_loss"] = loss + told, row["hint_loss"] + told.item()
        optimizer.zero_grad()
        loss.backward()
        row["loss"] = loss.item()
        row["grad_norm"] = math.sqrt(sum(p.grad.square().sum().item() for p in policy.parameters()))
        rows.append(row)
        optimizer.step()
    gaps, shares, factors, bounded = [], [], [], []
    for batch in minibatches:
        for g in batch:
            d = ours[id(g)] - torch.from_numpy(g.engine).double()
            share = weights(batch, config)[id(g)][1]
            if share:
                f, o = correct(d.tolist(), config)
                gaps += d.tolist()
                shares += [share / len(minibatches)] * len(d)
                factors, bounded = factors + f, bounded + o
    w, c, d = np.array(shares), np.array(factors), np.array(gaps)
    result = {name: float(np.mean([row[name] for row in rows])) for name in rows[0]} | {
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


Expected = dict[tuple[str, str], dict[str, float]]


@pytest.fixture(scope="module")
def expected(models: dict[str, Folders], rollouts: dict[str, Groups]) -> Expected:
    """The metrics by kind and case."""
    wanted = {(KINDS[layout], name) for layout, name in JOBS}
    return {(kind, name): reference(models[kind], rollouts[kind], CASES[name]) for kind, name in sorted(wanted)}


@pytest.mark.parametrize(("layout", "name"), JOBS)
def test_equals_plain_torch(layout: str, name: str, results: Path, expected: Expected) -> None:
    for rank in range(2):
        measured = json.loads((results / f"{layout}-{name}-{rank}.json").read_text())
        assert "correction_square" not in measured
        assert ("hint_loss" in measured) == (CASES[name].get("hint_coef", 0) > 0)
        assert ("correction_weight" in measured) == (CASES[name].get("correction", "none") != "none")
        for metric, value in expected[KINDS[layout], name].items():
            assert measured[metric] == pytest.approx(value, rel=2e-5, abs=2e-6), metric


def test_everything_matters(expected: Expected, results: Path) -> None:
    """No two cases are alike, bounds bind, and what a sample got credit for is known to the rank that writes it."""
    dense = {name: values for (kind, name), values in expected.items() if kind == "qwen3"}
    norms = [values["grad_norm"] for values in dense.values()]
    assert min(abs(a - b) / a for i, a in enumerate(norms) for b in norms[:i]) > 1e-5
    assert all(0.05 < dense[name]["correction_fraction"] < 0.95 for name in CORRECTED if name != "bypass")
    for name in CASES:
        first, second = (
            json.loads((results / f"{layout}-{name}-0.json").read_text()) for layout in ("cp2-small", "dp2-small")
        )
        assert first["credit"] == pytest.approx(second["credit"], abs=1e-5)
        if "surrogate" in CASES[name] and CASES[name]["surrogate"] in ("clip", "gspo", "cispo"):
            assert 0.05 < first["clip_fraction"] < 0.95
    of_pipeline, alone = (
        json.loads((results / f"{layout}-reinforce_pp-0.json").read_text())["credit"] for layout in ("pp2", "dp2")
    )
    assert of_pipeline == pytest.approx(alone, abs=1e-5) and np.std(alone) > 0.1
