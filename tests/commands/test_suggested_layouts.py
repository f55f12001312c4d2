"""Whether ``check`` finds nothing wrong with what ``check --suggest`` prints, by the same arguments."""

import json
from pathlib import Path
from typing import Any

import pytest

from megatron_rl.cli import main
from tests.settings.foresight.shapes import QWEN3_8B, QWEN3_235B, of_8b

pytestmark = pytest.mark.usefixtures("forked_look")
RECIPE = "tests.commands.test_suggested_layouts.small"
MIXTURE = QWEN3_235B | {"num_hidden_layers": 12, "num_experts": 16, "hidden_size": 2048, "num_attention_heads": 32}
LATENT = QWEN3_8B | {  # as DeepSeek's attention, which is converted and not trained
    **{"model_type": "deepseek_v3", "architectures": ["DeepseekV3ForCausalLM"], "kv_lora_rank": 512},
    **{"q_lora_rank": 1536, "qk_rope_head_dim": 64, "qk_nope_head_dim": 128, "v_head_dim": 128, "n_routed_experts": 64},
}
SHAPES: dict[str, dict[str, Any]] = {
    "dense": QWEN3_8B,
    "tied": QWEN3_8B | {"tie_word_embeddings": True, "num_hidden_layers": 27, "hidden_size": 1024},
    "odd": QWEN3_8B | {"num_hidden_layers": 37, "num_attention_heads": 24, "num_key_value_heads": 6},
    "mixture": MIXTURE,
    "latent": LATENT,
}


def small() -> Any:
    """A recipe whose data lie in the working folder."""
    config = of_8b()
    config.data.path = "rows.jsonl"
    return config


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "rows.jsonl").write_text('{"prompt": "1 + 1 =", "answer": "2"}\n')
    for name, shape in SHAPES.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(shape))
    monkeypatch.chdir(tmp_path)


def answer(capsys: pytest.CaptureFixture[str], *arguments: str, code: int = 0) -> dict[str, Any]:
    assert main(["check", RECIPE, *arguments, "--json"]) == code
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def unasked(_: Any, __: Any, layouts: list[Any]) -> list[list[str]]:
    """As a Megatron-Core would say that takes everything."""
    return [[] for _ in layouts]


def written(suggestion: dict[str, Any]) -> list[str]:
    """As it is printed."""
    return suggestion["line"].split("  #")[0].split()  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("shape", "arguments"),
    [
        ("dense", ["--gpu", "h100", "--nodes", "4", "actor.fp8=blockwise", "rollout.sglang.fp8=true"]),
        ("dense", ["--gpu", "h200", "launch.nodes=2", "launch.rollout_nodes=1", "actor.data_parallel=16"]),
        ("tied", ["--gpu", "l40s", "--gpus", "4", "--nodes", "2"]),
        ("odd", ["--gpu", "h100", "--nodes", "4", "rollout.staleness=1"]),
        ("mixture", ["--gpu", "h200", "--nodes", "2"]),
    ],
)
def test_nothing_is_wrong_with_what_is_suggested(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, shape: str, arguments: list[str]
) -> None:
    """Of two of the shapes Megatron-Core is asked, too, which takes seconds."""
    if shape not in ("odd", "mixture"):
        monkeypatch.setattr("megatron_rl.commands.check.ask_megatron", unasked)
    there = [*arguments, "--model", f"{shape}.json"]
    code = main(["check", RECIPE, *there, "--suggest", "--json"])
    first = json.loads(capsys.readouterr().out)
    assert code == (2 if first["problems"] else 0) and first["suggestions"]
    for each in first["suggestions"]:
        again = answer(capsys, *there, *written(each))
        assert again["problems"] == []
        assert again["forecast"]["seconds"] == each["seconds"] and again["forecast"]["memory"]["fits"]
        assert not any("nothing to do" in said or "probably not fit" in said for said in again["warnings"])


def test_megatron_core_itself_takes_what_is_suggested(capsys: pytest.CaptureFixture[str]) -> None:
    """Which wants one pipeline stage for this option, and none of our rules say so."""
    given = ["actor.megatron.cpu_offloading=true", "actor.megatron.cpu_offloading_num_layers=2"]
    there = ["--gpu", "h200", "--model", "mixture.json", *given]
    found = answer(capsys, *there, "actor.pipeline_parallel=2", "--suggest", code=2)
    (said,) = found["problems"]
    assert "no support for Pipeline parallelism with CPU offloading" in said and found["suggestions"]
    assert all(each["options"]["actor.pipeline_parallel"] == 1 for each in found["suggestions"])
    assert answer(capsys, *there, *written(found["suggestions"][0]))["problems"] == []


def test_where_megatron_core_takes_none_it_is_said_why(capsys: pytest.CaptureFixture[str]) -> None:
    given = ["actor.megatron.cpu_offloading=true", "actor.megatron.cpu_offloading_num_layers=999"]
    there = ["--gpu", "h200", "--model", "dense.json", *given, "--suggest"]
    assert main(["check", RECIPE, *there]) == 2
    out = capsys.readouterr().out
    assert "Layouts fit on 1 x 8 H200, but none without a problem. Of one: Megatron-Core" in out
    assert "CPU offloading can be done only for layers less than" in out.splitlines()[-1]


def test_megatron_core_is_not_asked_of_what_it_does_not_have(capsys: pytest.CaptureFixture[str]) -> None:
    there = ["--gpu", "h200", "--model", "dense.json", "actor.megatron.no_such_field=1"]
    found = answer(capsys, *there, "--suggest", code=2)
    assert "has no such field" in found["problems"][0] and len(found["suggestions"]) == 5


def test_what_is_wrong_with_the_data_stays_and_with_the_layout_does_not(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("megatron_rl.commands.check.ask_megatron", unasked)
    there = ["--gpu", "h100", "--model", "dense.json", "data.path=none.jsonl", "actor.data_parallel=3"]
    found = answer(capsys, *there, "--suggest", code=2)
    assert len(found["problems"]) > 1 and found["suggestions"]
    (said,) = answer(capsys, *there, *written(found["suggestions"][0]), code=2)["problems"]
    assert "none.jsonl" in said


def test_of_a_model_that_is_not_trained_nothing_is_suggested(capsys: pytest.CaptureFixture[str]) -> None:
    found = answer(capsys, "--gpu", "h200", "--model", "latent.json", "--suggest", code=2)
    assert "deepseek_v3" in found["problems"][0] and not found["suggestions"]
