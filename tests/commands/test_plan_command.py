"""megatron-rl plan: of a recipe, of a config.json, and what it says about what cannot be planned."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from megatron_rl.cli import main
from megatron_rl.resharding.families import canonical_tensors
from megatron_rl.resharding.layout import ParallelSizes
from megatron_rl.resharding.layouts.megatron import megatron_layout
from megatron_rl.resharding.layouts.sglang import EngineSizes, sglang_layout
from megatron_rl.resharding.layouts.transformers import transformers_layout
from megatron_rl.resharding.plan import make_plan
from recipes.quickstart import QWEN3_454K
from tests.resharding.families.test_families import DEEPSEEK_V3

FOUR_LAYERS = DEEPSEEK_V3 | {"num_hidden_layers": 4, "n_routed_experts": 16}


@pytest.fixture
def model(tmp_path: Path) -> str:
    (tmp_path / "config.json").write_text(json.dumps(FOUR_LAYERS))
    return str(tmp_path)


def plan(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    assert main(["plan", *arguments, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_a_recipe(capsys: pytest.CaptureFixture[str]) -> None:
    found = plan(capsys, "quickstart", "model.dtype=bfloat16")
    expected = make_plan(megatron_layout(QWEN3_454K, ParallelSizes(tensor=2)), transformers_layout(QWEN3_454K))
    assert found["hash"] == expected.hash  # the one that trainer and engine compare when they meet
    assert (found["proved"], found["tensors"], found["copies"]) == (True, 35, len(expected.copies))
    assert found["bytes"] == 2 * 453_696 == found["bytes_by_link"]["same host"]
    assert found["busiest_receiver"] == {"rank": 0, "bytes": 2 * 453_696}
    assert main(["plan", "quickstart", "rollout.engines=2", "actor.data_parallel=2"]) == 0
    out = capsys.readouterr().out
    for part in ("qwen3, 453,696 parameters, float32", "4 ranks on host 0", "2 workers", "H100: NVLink 4", "35 moved"):
        assert part in out


def test_a_recipe_with_sglang_engines(capsys: pytest.CaptureFixture[str]) -> None:
    sizes = ["rollout.engine=sglang", "rollout.engines=2", "rollout.sglang.tensor_parallel=2"]
    found = plan(capsys, "quickstart", *sizes)
    layout = sglang_layout(QWEN3_454K, EngineSizes(tensor=2))
    both = replace(layout, ranks=layout.ranks * 2)
    assert found["hash"] == make_plan(megatron_layout(QWEN3_454K, ParallelSizes(tensor=2)), both).hash
    assert found["engines"] == "4 workers on host 0: 2 sglang engines, each tensor_parallel 2"
    whole_tiles = ["model.architecture.num_attention_heads=8", "model.architecture.num_key_value_heads=4"]
    options = ["rollout.engine=sglang", "rollout.sglang.fp8=true", "rollout.sglang.colocated=true", *whole_tiles]
    fp8 = plan(capsys, "quickstart", *options)
    assert fp8["tensors"] > found["tensors"] and "FP8" in fp8["model"] and fp8["bytes_by_link"]["same GPU"] > 0
    other = plan(capsys, "quickstart", *options, "--engine", "tensor_parallel=1")  # are still the recipe's
    assert (other["hash"], other["bytes_by_link"]) == (fp8["hash"], fp8["bytes_by_link"])


def test_hosts_of_a_recipe(capsys: pytest.CaptureFixture[str]) -> None:
    options = ["quickstart", "actor.tensor_parallel=1", "rollout.engines=2"]
    assert plan(capsys, *options)["engines"].startswith("2 workers on host 0")
    found = plan(capsys, *options, "--gpus-per-host", "2")
    assert (found["trainer"], found["engines"][:19]) == ("1 rank on host 0: not sharded", "2 workers on host 1")


def test_weights_without_prediction_layers_are_planned_without(
    capsys: pytest.CaptureFixture[str], model: str, tmp_path: Path
) -> None:
    """As transformers saves the model; the index is enough to see it."""
    names = canonical_tensors(FOUR_LAYERS | {"num_nextn_predict_layers": 0})
    with_layers, engine = plan(capsys, "--model", model), "1 worker on host 0: not sharded"
    weight_map = dict.fromkeys(names, "model-00001-of-00002.safetensors")
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    for named in (model, f"{model}/config.json"):
        found = plan(capsys, "--model", named)
        assert found["tensors"] == len(names) and found["unused_tensors"] == [] and found["engines"] == engine
    assert with_layers["unused_tensors"] != []


def test_a_large_model_by_its_config(capsys: pytest.CaptureFixture[str], model: str) -> None:
    actor = "tensor_parallel=8,pipeline_parallel=2,first_stage=3,expert_parallel=16,data_parallel=2"
    engine = "tensor_parallel=16,expert_parallel=16,data_parallel=2"
    found = plan(capsys, "--model", model, "--actor", actor, "--engine", engine)
    assert found["trainer"].startswith("32 ranks on hosts 0 to 3: tensor_parallel 8")
    assert found["engines"].startswith("32 workers on hosts 4 to 7: tensor_parallel 16")
    assert {name.split(".")[2] for name in found["unused_tensors"]} == {"4"}
    assert found["bytes_by_link"]["across hosts"] == found["bytes"]
    h100 = next(p for p in found["predictions"] if p["fabric"].startswith("H100"))
    assert h100["limit"] == pytest.approx(found["busiest_receiver"]["bytes"] / 50e9)
    assert h100["seconds"] >= h100["limit"]
    near = plan(capsys, "--model", model, "--actor", actor, "--engine", engine, "--colocated")
    assert near["bytes"] == found["bytes"] and near["bytes_by_link"]["same GPU"] > 0
    fp8 = plan(capsys, "--model", f"{model}/config.json", "--actor", actor, "--engine", engine, "--fp8")
    # embedding, head, norms and routers stay as they are
    assert 0.5 < fp8["bytes"] / found["bytes"] < 0.8 and fp8["tensors"] > found["tensors"]
    assert fp8["hash"] != found["hash"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "Name a recipe"),
        (["quickstrat"], "quickstart"),
        (["quickstart", "actor.tensor_parallel=3"], "actor.tensor_parallel=3 does not divide num_attention_heads=4"),
        (["quickstart", "actor.tensr_parallel=3"], "did you mean actor.tensor_parallel"),
        (["quickstart", "--fp8"], "--fp8 needs SGLang"),
        (["quickstart", "--actor", "tensor_parallel=2"], "--actor goes with --model"),
        (["quickstart", "--model", "x"], "exclude each other"),
        (["quickstart", "model.path=nowhere"], "There is no such folder as nowhere"),
        (["quickstart", "--engine", "tp=2"], "--engine 'tp=2' is not understood; write tensor_parallel=N"),
        (["quickstart", "--engine", "tensor_parallel=²"], "--engine 'tensor_parallel=²' is not understood; write"),
        (["quickstart", "--engine", "data_parallel=2,data_parallel=1"], "--engine gives data_parallel twice"),
        (["quickstart", "--engine", "expert_parallel=2"], "engine.expert_parallel=2, but qwen3 has no experts; use 1."),
        (["quickstart", "--gpus-per-host", "-3"], "--gpus-per-host -3 is not positive"),
        (["quickstart", "rollout.engines=0"], "rollout.engines is 0; it must be between 1 and 4096."),
        (["quickstart", "rollout.engine=foo"], "rollout.engine is 'foo'; it must be embedded or sglang."),
        (["quickstart", "model.architecture.hidden_size=wide"], "config.json has hidden_size='wide'; a whole number"),
        (["quickstart", "--engine", "tensor_parallel=3"], "engine.tensor_parallel=3 does not divide num_attention"),
    ],
)
def test_bad_input_is_one_paragraph(arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", *arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1 and said in error


def test_every_violation_of_both_sides_at_once(capsys: pytest.CaptureFixture[str], model: str) -> None:
    arguments = ["--model", model, "--actor", "expert_parallel=3", "--engine", "tensor_parallel=6,expert_parallel=4"]
    assert main(["plan", *arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: 5 problems: (1) actor.expert_parallel=3 does not divide num_experts=16; 1, 2, 4")
    for part in (") engine.tensor_parallel=6 does not", "(5) engine.expert_parallel=4 does not divide engine.tensor_"):
        assert part in error
    sizes = ["rollout.engine=sglang", "rollout.sglang.tensor_parallel=3", "actor.tensor_parallel=3", "actor.tensr=1"]
    assert main(["plan", "quickstart", *sizes, "rollout.engines=-2"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: 8 problems: (1) actor.tensr=1: ") and error.count("\n") == 1
    for part in ("(2) rollout.engines is -2", "(3) actor.tensor_parallel=3", "(6) rollout.sglang.tensor_parallel=3"):
        assert part in error
    assert main(["plan", "--model", model, "--engine", "tensor_parallel=32", "--fp8"]) == 2
    assert "cuts its 128 x 128 FP8 tiles" in capsys.readouterr().err


def test_planning_imports_no_torch(model: str) -> None:
    code = (
        "import sys; from megatron_rl.cli import main\n"
        f"assert main(['plan', '--model', {model!r}]) == 0 and main(['plan', 'quickstart']) == 0\n"
        "assert 'torch' not in sys.modules and 'transformers' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)
