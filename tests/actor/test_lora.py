"""Adapters and frozen weights of the real sharded actor: against plain torch, saved and continued at any sharding."""

import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch.func import functional_call
from transformers import AutoModelForCausalLM

from megatron_rl.actor.tuning.lora import drawn
from megatron_rl.resharding.folders.torch_dist.reader import read_metadata
from tests.actor.lora_ranks import DECAY, SEED, SETTINGS
from tests.actor.test_training import CUT_EXPERTS, full
from tests.actor.training_ranks import sequences

RANKS = Path(__file__).parent / "lora_ranks.py"
LORA = {"rank": 4, "alpha": 8.0}
SCALE = LORA["alpha"] / LORA["rank"]
FUSED = {"q_proj": "q_proj", "k_proj": "q_proj", "v_proj": "q_proj", "gate_proj": "gate_proj", "up_proj": "gate_proj"}
LAYOUTS = {
    "tp2": {"tensor_parallel": 2},
    "sp": {"tensor_parallel": 2, "sequence_parallel": True},
    "pp2": {"pipeline_parallel": 2, "recompute": "full"},
    "cp2": {"context_parallel": 2},
    "dp2": {"data_parallel": 2},
    "vpp": {"pipeline_parallel": 2, "virtual_pipeline": 2, "micro_batch_tokens": 40},
}
FREEZE = ["model.embed_tokens.*", "model.layers.{0-1}.*", "*.mlp.*", "!model.layers.3.mlp.*"]
UNEVEN = {"pipeline_parallel": 2, "first_stage": 3}
ATTENTION = LORA | {"targets": ["linear_qkv", "linear_proj"]}
MIXTURES = {"moe-dp2": LAYOUTS["dp2"] | {"expert_parallel": 2}, "moe-sp": LAYOUTS["sp"]}
OVERLAP = {"overlap_grad_reduce": True, "bucket_size": 200}
STEPS, SAVED = 4, 2


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("lora")


@pytest.fixture(scope="module")
def results(model: Path, mixture: Path, run_ranks: Callable[..., None], out: Path) -> dict[str, list[dict]]:
    """What both ranks of every job have found."""
    defaults = {"model": str(model), "dtype": "float32", "given": False, "load": None, "save": None, "steps": STEPS}
    defaults |= {"exact": False, "moves": False, "kl": False, "folder": str(out / "lora")}
    adapted = {name: options | {"lora": LORA} for name, options in LAYOUTS.items()}
    saved = {"load": f"step-{SAVED}", "kl": True, "moves": True}
    jobs = [
        {"name": "tp2", "actor": adapted["tp2"], "given": True, "save": SAVED, "kl": True, "moves": True},
        *({"name": name, "actor": adapted[name], "given": True} for name in ("sp", "pp2", "cp2", "dp2", "vpp")),
        {"name": "overlap", "actor": adapted["dp2"] | {"megatron": OVERLAP}, "given": True},
        {"name": "exact", "actor": adapted["tp2"], "given": True, "exact": True, "steps": 1},
        *({"name": f"then-{name}", "actor": adapted[name], **saved} for name in ("tp2", "pp2", "dp2")),
        {"name": "new", "actor": adapted["tp2"], "steps": 0, "kl": True},
        {"name": "bf16", "actor": adapted["tp2"], "dtype": "bfloat16", "save": SAVED, "folder": str(out / "bf16")},
        {
            "name": "then-bf16",
            "actor": adapted["tp2"],
            "dtype": "bfloat16",
            "load": "step-2",
            "folder": str(out / "bf16"),
        },
        *(
            {"name": name, "actor": options | {"lora": ATTENTION}, "model": str(mixture), "given": True}
            for name, options in MIXTURES.items()
        ),
        {"name": "moving", "actor": MIXTURES["moe-dp2"], "model": str(mixture), "save": SAVED, "kl": True}
        | {"moves": True, "folder": str(out / "moving")},
        {"name": "then-moving", "actor": CUT_EXPERTS, "model": str(mixture), "load": "step-2", "kl": True}
        | {"moves": True, "folder": str(out / "moving")},
        {"name": "frozen", "actor": {"tensor_parallel": 2, "freeze": FREEZE}, "save": SAVED, "folder": str(out / "f")},
        {
            "name": "then-frozen",
            "actor": UNEVEN | {"recompute": "full", "freeze": FREEZE},
            "load": "step-2",
            "folder": str(out / "f"),
        },
    ]
    (out / "jobs.json").write_text(json.dumps([defaults | job for job in jobs]))
    run_ranks(RANKS, 2, out / "jobs.json", out)
    names = [job["name"] for job in jobs]
    return {n: [torch.load(out / f"{n}-{rank}.pt", weights_only=False) for rank in range(2)] for n in names}


class Plain:
    """The model with adapters in float64: W + s B A by torch.func, A of fused matrices shared."""

    def __init__(self, model: Path) -> None:
        self.model = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float64)
        self.base = {n: p.detach() for n, p in self.model.named_parameters()}
        self.a: dict[str, torch.Tensor] = {}
        self.b: dict[str, torch.Tensor] = {}
        for name, weight in self.base.items():
            module = name.removesuffix(".weight")
            if module.rpartition(".")[2] in (*FUSED, "o_proj", "down_proj"):
                a = drawn(f"{SEED}/{self.owner(module)}", LORA["rank"], weight.shape[1])
                self.a.setdefault(self.owner(module), a.double().requires_grad_())
                self.b[module] = drawn(name, weight.shape[0], LORA["rank"]).double().requires_grad_()

    @staticmethod
    def owner(module: str) -> str:
        """The first of the modules that Megatron has in one matrix."""
        parent, _, last = module.rpartition(".")
        return f"{parent}.{FUSED.get(last, last)}"

    def merged(self) -> dict[str, torch.Tensor]:
        added = {f"{m}.weight": SCALE * b @ self.a[self.owner(m)] for m, b in self.b.items()}
        return {n: p + added[n] if n in added else p for n, p in self.base.items()}

    def logprobs(self, step: int) -> list[torch.Tensor]:
        weights, found = self.merged(), []
        for s in sequences(step):
            tokens = torch.from_numpy(s.tokens)[None]
            logits = functional_call(self.model, weights, (tokens,)).logits[0, :-1]
            found.append(logits.log_softmax(-1).gather(1, tokens[0, 1:, None]).squeeze(1))
        return found

    def loss(self, step: int) -> torch.Tensor:
        rows = zip(self.logprobs(step), sequences(step), strict=True)
        return -sum((torch.from_numpy(s.columns["weight"])[1:] * log_p).sum() for log_p, s in rows)

    def trained(self) -> list[torch.Tensor]:
        return [*self.a.values(), *self.b.values()]


@pytest.fixture(scope="module")
def plain(model: Path) -> dict:
    """Gradients, their norm, and losses and matrices after STEPS - 1 steps of AdamW."""
    it = Plain(model)
    it.loss(0).backward()
    grads = {"a": {n: a.grad.clone() for n, a in it.a.items()}, "b": {n: b.grad.clone() for n, b in it.b.items()}}
    found: dict = {"merged": {n: p.detach().clone() for n, p in it.merged().items()}, "gradients": grads}
    found["norm"] = math.sqrt(sum(p.grad.square().sum().item() for p in it.trained()))
    optimizer = torch.optim.AdamW(
        it.trained(), lr=SETTINGS.lr, betas=(SETTINGS.beta1, SETTINGS.beta2), eps=SETTINGS.eps, weight_decay=0.1
    )
    optimizer.zero_grad()  # the step without a rate counts for the moments
    it.loss(0).backward()
    torch.nn.utils.clip_grad_norm_(it.trained(), SETTINGS.clip_grad)
    optimizer.param_groups[0]["lr"] = 0.0
    optimizer.step()
    optimizer.param_groups[0]["lr"] = SETTINGS.lr
    found["losses"] = []
    for step in range(1, STEPS):
        optimizer.zero_grad()
        loss = it.loss(step)
        found["losses"].append(loss.item())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(it.trained(), SETTINGS.clip_grad)
        optimizer.step()
    found["weights"] = {n: p.detach().clone() for n, p in it.merged().items()}
    found["pairs"] = {m: (it.a[it.owner(m)].detach(), b.detach()) for m, b in it.b.items()}
    return found


def joined(ranks: list[dict], key: str) -> list[dict]:
    """As ``test_training.full`` takes them."""
    return [{"weights": rank[key]} for rank in ranks]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_gradients_and_merged_weights_are_those_of_plain_torch(
    layout: str, results: dict[str, list[dict]], plain: dict, model: Path
) -> None:
    """Matrices that ranks share have the whole gradient on each of them, and count once in its norm."""
    ranks = results[layout]
    merged = full(joined(ranks, "merged"), model, LAYOUTS[layout])
    for name, weight in merged.items():
        assert (weight - plain["merged"][name]).abs().max() < 1e-6, name
    seen = set()
    for rank in ranks:
        assert rank["norm"] == pytest.approx(plain["norm"], rel=1e-5)
        for name, (a, b, index) in rank["gradients"].items():
            seen.add(name)
            rows = name.endswith(("o_proj", "down_proj"))
            ways = LAYOUTS[layout].get("tensor_parallel", 1)
            wanted = plain["gradients"]["a"][name]
            wanted = wanted.chunk(ways, 1)[index] if rows else wanted
            assert (a - wanted).abs().max() < 3e-6, name
            if rows:
                assert (b - plain["gradients"]["b"][name]).abs().max() < 3e-6, name
    assert len(seen) == 4 * 4


@pytest.mark.parametrize("layout", LAYOUTS)
def test_steps_are_those_of_torch_adamw(
    layout: str, results: dict[str, list[dict]], plain: dict, model: Path, out: Path
) -> None:
    assert results[layout][0]["losses"] == pytest.approx(plain["losses"], abs=5e-6)
    weights = full(joined(results[layout], "weights"), model, LAYOUTS[layout])
    errors = torch.cat([(weights[n] - p).abs().flatten() for n, p in plain["weights"].items()])
    assert errors.quantile(0.99) < 1e-5 and errors.mean() < 1e-5
    tensors = load_file(out / f"{layout}.adapter" / "adapter_model.safetensors")
    assert len(tensors) == 2 * len(plain["pairs"])
    for name, (a, b) in plain["pairs"].items():
        for held, wanted in ((f"{name}.lora_A", a), (f"{name}.lora_B", b)):
            errors = (tensors[f"base_model.model.{held}.weight"] - wanted).abs()
            assert errors.quantile(0.98) < 1e-5, held


def test_attention_of_a_mixture_of_experts_is_adapted_alike_at_every_sharding(results: dict[str, list[dict]]) -> None:
    one, other = (results[name] for name in MIXTURES)
    assert one[0]["norm"] == pytest.approx(other[0]["norm"], rel=1e-5)
    assert one[0]["losses"] == pytest.approx(other[0]["losses"], abs=5e-6)
    assert len(one[0]["trained"]) == 2 * 2 * 4


def test_what_actor_and_engine_compute_under_true_on_policy_is_untouched(
    results: dict[str, list[dict]], plain: dict, model: Path
) -> None:
    """Float64 sums over the merged matrices, as the engine has them: a float32's rounding of the plain ones."""
    for rank in results["exact"]:
        assert rank["norm"] == pytest.approx(plain["norm"], rel=1e-5)
        there = zip(rank["logprobs"], results["tp2"][0]["logprobs"], strict=True)
        assert all((exact - usual).abs().max() < 1e-5 for exact, usual in there)


def test_the_first_step_begins_with_the_base_model(results: dict[str, list[dict]]) -> None:
    """B is zero; the base's matrices are the reference's, without a second copy."""
    for rank in results["new"]:
        for name, weight in rank["weights"].items():
            assert torch.equal(weight, rank["before"][name]) and torch.equal(weight, rank["reference"][name])
        assert rank["shared"] == 4 * 4
        assert len(rank["trained"]) == 2 * 4 * 4 and all(name.startswith("adapters.") for name in rank["trained"])


def test_steps_change_the_adapted_matrices_alone(results: dict[str, list[dict]]) -> None:
    for rank in results["bf16"]:
        for name, weight in rank["weights"].items():
            adapted = ".linear_" in name and name.endswith("weight")
            assert torch.equal(weight, rank["before"][name]) != adapted, name
            assert weight.dtype == torch.bfloat16


@pytest.mark.parametrize("name", ["tp2", "bf16"])
def test_a_saved_run_continues_bit_identically(name: str, results: dict[str, list[dict]]) -> None:
    for whole, continued in zip(results[name], results[f"then-{name}"], strict=True):
        assert continued["losses"] == whole["losses"][-len(continued["losses"]) :]
        for kind in ("weights", "reference") if name == "tp2" else ("weights",):
            for parameter, weight in whole[kind].items():
                assert torch.equal(continued[kind][parameter], weight), (kind, parameter)


@pytest.mark.parametrize("layout", ["pp2", "dp2"])
def test_a_saved_run_continues_at_another_sharding(
    layout: str, results: dict[str, list[dict]], model: Path, out: Path
) -> None:
    """With the adapters, their moments and the moving reference that were saved, on every rank."""
    ranks = results[f"then-{layout}"]
    assert ranks[0]["losses"] == pytest.approx(results["tp2"][0]["losses"][SAVED - 1 :], abs=1e-6)
    for kind in ("weights", "reference"):
        continued = full(joined(ranks, kind), model, LAYOUTS[layout])
        whole = full(joined(results["tp2"], kind), model, LAYOUTS["tp2"])
        errors = torch.cat([(continued[n] - whole[n]).abs().flatten() for n in whole])
        assert errors.quantile(0.99) < 1e-6 and errors.mean() < 1e-6, kind
    one, other = (load_file(out / f"{n}.adapter" / "adapter_model.safetensors") for n in ("tp2", f"then-{layout}"))
    errors = torch.cat([(one[n] - other[n]).abs().flatten() for n in one])
    assert one.keys() == other.keys() and errors.quantile(0.99) < 1e-6


def test_a_checkpoint_holds_adapters_alone(results: dict[str, list[dict]], out: Path) -> None:
    state = json.loads((out / "lora" / f"step-{SAVED}" / "state.json").read_text())
    assert state["reference"] == {"moves": True} and len(state["base"]["hash"]) == 32
    tensors, _ = read_metadata(out / "bf16" / f"step-{SAVED}")
    assert {key.partition(".")[0] for key in tensors} == {"adapters", "optimizer"}
    assert len([key for key in tensors if key.startswith("adapters.")]) == 2 * 4 * 4


def test_a_reference_that_moves_is_the_average_of_the_policies(results: dict[str, list[dict]]) -> None:
    """d^3 base + d^2 (1 - d) first + d (1 - d) second + (1 - d) third, after three steps."""
    for rank in results["tp2"]:
        for name, held in rank["reference"].items():
            wanted = rank["before_steps"][0][name] * DECAY**3
            for age, policy in enumerate(reversed(rank["before_steps"][1:])):
                wanted = wanted + policy[name] * DECAY**age * (1 - DECAY)
            assert (held - wanted).abs().max() < 1e-6, name


def test_a_moving_reference_of_whole_weights_is_saved_too(results: dict[str, list[dict]], mixture: Path) -> None:
    """Of a mixture of experts, continued with experts that are cut where they were parted."""
    continued = full(joined(results["then-moving"], "reference"), mixture, CUT_EXPERTS)
    whole = full(joined(results["moving"], "reference"), mixture, MIXTURES["moe-dp2"])
    before = full(joined(results["moving"], "before"), mixture, MIXTURES["moe-dp2"])
    errors = torch.cat([(continued[n] - whole[n]).abs().flatten() for n in whole])
    assert errors.quantile(0.99) < 1e-6
    assert all((whole[n] - before[n]).abs().max() > 1e-3 for n in whole)


def test_frozen_tensors_stay_as_they_are_and_have_no_moments(
    results: dict[str, list[dict]], model: Path, out: Path
) -> None:
    """Tied embedding, two layers and most of the MLPs; also continued at another sharding, with layers that are
    computed anew."""
    whole = full(joined(results["frozen"], "weights"), model, LAYOUTS["tp2"])
    before = full(joined(results["frozen"], "before"), model, LAYOUTS["tp2"])
    trained = {n for n in whole if not torch.equal(whole[n], before[n])}
    assert trained == {
        name
        for name in whole
        if name == "model.norm.weight"
        or name.startswith("model.layers.3.")
        or (name.startswith("model.layers.2.") and ".mlp." not in name)
    }
    assert sum(rank["states"] for rank in results["frozen"]) >= sum(whole[n].numel() for n in trained)
    tensors, _ = read_metadata(out / "f" / f"step-{SAVED}")
    moments = {key for key in tensors if "exp_avg." in key}
    assert moments and not any(
        "embedding" in key or "layers.0" in key or "layers.2.mlp.linear_fc1.weight" in key for key in moments
    )
    assert results["then-frozen"][0]["losses"] == pytest.approx(results["frozen"][0]["losses"][SAVED:], abs=1e-6)
    continued = full(joined(results["then-frozen"], "weights"), model, UNEVEN)
    errors = torch.cat([(continued[n] - whole[n]).abs().flatten() for n in whole])
    assert errors.quantile(0.999) < 1e-6
    assert all(torch.equal(continued[n], before[n]) for n in whole if n not in trained)


def test_the_adapter_loads_in_peft(results: dict[str, list[dict]], model: Path, out: Path) -> None:
    """Base and adapter compute what the merged model does."""
    peft = pytest.importorskip("peft")
    tokens = torch.tensor([[5, 17, 3, 88, 41, 2]])
    base = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    adapted = peft.PeftModel.from_pretrained(base, out / "sp.adapter")
    with torch.no_grad():
        logits = adapted(tokens).logits
        merged = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
        plain = merged(tokens).logits
        merged.load_state_dict(full(joined(results["sp"], "weights"), model, LAYOUTS["sp"]), strict=False)
        assert (logits - merged(tokens).logits).abs().max() < 1e-5
        assert (logits - plain).abs().max() > 0.1


def test_gradients_summed_while_layers_compute(results: dict[str, list[dict]]) -> None:
    """Megatron's overlap_grad_reduce, in buckets of a matrix or two: the same steps."""
    for one, two in zip(results["dp2"], results["overlap"], strict=True):
        assert two["losses"] == pytest.approx(one["losses"], abs=1e-6)
        for name, weight in one["weights"].items():
            assert (two["weights"][name] - weight).abs().max() < 1e-6, name
