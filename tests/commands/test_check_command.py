"""megatron-rl check for this machine, and for one that is elsewhere, without a GPU and without weights."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from megatron_rl.cli import main
from megatron_rl.config import Config
from megatron_rl.settings.fit import warnings
from tests.commands.test_suggested_layouts import unasked
from tests.settings.foresight.shapes import QWEN3_8B, QWEN3_235B, of_235b

RECIPE = "tests.commands.test_check_command.of_8b_here"
KEYS = {
    *("recipe", "overrides", "problems", "warnings", "notes", "forecast", "suggestions", "why_none", "precision"),
}
FORECAST = {
    *("hardware", "workload", "memory", "seconds", "mfu", "micro_batch_tokens", "tokens_per_second", "assumptions"),
}
PARTS = {"weights", "gradients", "optimizer", "activations", "logits", "backward", "exchange", "reference", "beside"}


def of_8b_here() -> Any:
    """A recipe whose data lie in the working folder."""
    from tests.settings.foresight.shapes import of_8b

    config = of_8b()
    config.data.path = "rows.jsonl"
    config.actor.data_parallel = config.rollout.engines = 8
    return config


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "rows.jsonl").write_text('{"prompt": "1 + 1 =", "answer": "2"}\n')
    (tmp_path / "8b.json").write_text(json.dumps(QWEN3_8B))
    (tmp_path / "235b.json").write_text(json.dumps(QWEN3_235B))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("megatron_rl.commands.check.ask_megatron", unasked)  # of layouts: test_suggested_layouts.py
    return tmp_path


def answer(capsys: pytest.CaptureFixture[str], *arguments: str, code: int = 0) -> dict[str, Any]:
    assert main(["check", *arguments, "--json"]) == code
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert found.keys() == KEYS
    return found


def test_plain_data(capsys: pytest.CaptureFixture[str]) -> None:
    found = answer(capsys, RECIPE, "--gpu", "h200", "--gpus", "8", "--model", "8b.json", "--tokens", "500")
    assert (found["recipe"], found["problems"], found["suggestions"]) == (RECIPE, [], None)
    forecast = found["forecast"]
    assert forecast.keys() == FORECAST
    assert forecast["memory"]["trainer"].keys() == PARTS | {"runtime", "peak"}
    assert set(forecast["seconds"]) == {"generate", "score", "reference", "update", "swap", "step"}
    assert forecast["workload"]["completion"] == 500 and forecast["hardware"]["gpus"] == 8
    assert forecast["memory"]["trainer"]["weights"] == 2 * 8_190_735_360
    shorter = answer(capsys, RECIPE, "--gpu", "h200", "--gpus", "8", "--model", "8b.json", "--tokens", "100")
    assert shorter["forecast"]["seconds"]["step"] < forecast["seconds"]["step"]


def test_a_page(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", RECIPE, "--gpu", "h100", "--gpus", "8", "--model", "8b.json", "--suggest"]) == 0
    out = capsys.readouterr().out
    for part in (
        "8 on 8 GPUs: tensor 1 x pipeline 1 x context 1 x data 8",
        "hardware   1 x 8 H100, 85.5 GB each (NVIDIA H100 data sheet",
        "a rank     weights 16.4 GB, gradients 32.8 GB, optimizer 12.3 GB, activations",
        "assumed    prompts of 512 tokens; completions of 1024 (longest 2048)",
        "warning: It will probably not fit: the fullest GPU is predicted to need",
        "warning: The tokenizer and the rows of the data were not looked at",
    ):
        assert part in out
    suggested = [line for line in out.splitlines() if "tokens/s)" in line]
    assert suggested
    options = suggested[0].split("  #")[0].split()
    assert main(["check", RECIPE, *options, "--gpu", "h100", "--gpus", "8", "--model", "8b.json"]) == 0
    assert "not fit" not in capsys.readouterr().out


def test_all_that_is_wrong_there(capsys: pytest.CaptureFixture[str]) -> None:
    """In one list: what the GPUs there lack, and what is wrong here."""
    wrong = ["actor.data_parallel=16", "actor.fp8=blockwise", "data.path=none.jsonl", "rollout.group_size=0"]
    found = answer(capsys, RECIPE, *wrong, "--gpu", "a100", "--gpus", "4", "--model", "8b.json", code=2)
    said = "\n".join(found["problems"])
    for part in ("none.jsonl", "rollout.group_size is 0", "the A100 80 GB is older"):
        assert part in said
    assert found["forecast"] is None
    found = answer(
        capsys, RECIPE, "actor.data_parallel=16", "--gpu", "a100", "--gpus", "4", "--model", "8b.json", code=2
    )
    assert "16 ranks" in found["problems"][0] and "4 GPUs" in found["problems"][0]
    assert main(["check", RECIPE, "actor.data_parallel=16", "--gpu", "a100", "--model", "8b.json"]) == 2
    assert "1. The parallel sizes make 16 ranks" in capsys.readouterr().out


def test_a_folder_with_config_json_alone_is_enough(capsys: pytest.CaptureFixture[str], folder: Path) -> None:
    there = ["--gpu", "h200", "--gpus", "8"]
    found = answer(capsys, RECIPE, *there, code=2)
    assert "give its config.json: --model FILE" in found["problems"][0]
    (folder / "Qwen3-8B").mkdir()
    (folder / "8b.json").rename(folder / "Qwen3-8B/config.json")
    assert answer(capsys, RECIPE, *there)["problems"] == []


def big() -> Any:
    """Of 235 billion parameters, on eight nodes."""
    config = of_235b()
    config.data.path = "rows.jsonl"
    return config


def test_a_large_model_on_several_nodes(capsys: pytest.CaptureFixture[str]) -> None:
    here = "tests.commands.test_check_command.big"
    found = answer(capsys, here, "--gpu", "h200", "--gpus", "8", "--model", "235b.json", "--suggest")
    assert found["problems"] == [] and found["forecast"]["hardware"]["nodes"] == 8
    best = found["suggestions"][0]
    assert best["memory"]["fits"] and best["seconds"]["step"] > 0 and best["line"].startswith("actor.")


def test_this_machine(capsys: pytest.CaptureFixture[str]) -> None:
    found = answer(capsys, "quickstart")
    assert found["forecast"]["hardware"]["gpus"] == 0 and found["forecast"]["seconds"]["step"] > 0
    assert answer(capsys, "quickstart", "--gpu", "cpu", "--gpus", "2")["forecast"]["hardware"]["name"] == "CPU"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--gpu", "h1000"], "--gpu h1000 is not known"),
        (["--gpus", "8"], "--gpus 8 goes with --gpu NAME"),
        (["--gpu", "h100", "--gpus", "0"], "--gpus 0 goes with --gpu NAME and is 1 or more"),
        (["--gpu", "h100", "--gpus", "1000000"], "--gpus 1000000 is the number of each node: 128 at most"),
        (["--gpu", ""], "--gpu is empty"),
        (["--model", ""], "--model is empty"),
        (["--nodes", "2", "launch.nodes=4"], "--nodes 2 and launch.nodes=4 contradict each other"),
        (["--tokens", "0"], "--tokens 0 is the mean length"),
        (["--suggest"], "--suggest needs GPUs"),
        (["no.such.recipe", "--suggest", "--gpu", "cpu"], "--suggest needs GPUs"),  # said at once
        (["--model", "empty.json"], "--model empty.json has no model_type"),
        (["--model", "none.json"], "none.json"),
    ],
)
def test_bad_options(capsys: pytest.CaptureFixture[str], arguments: list[str], said: str) -> None:
    Path("empty.json").write_text("{}")
    assert main(["check", *([] if "." in arguments[0] else ["quickstart"]), *arguments]) == 2
    assert said in capsys.readouterr().err


def test_suggestions_reproduce_with_the_flags(capsys: pytest.CaptureFixture[str], folder: Path) -> None:
    (folder / "there").mkdir()
    (folder / "8b.json").rename(folder / "there/config.json")  # a folder is as good
    there = ["--gpu", "h200", "--nodes", "2", "--rollout-nodes", "1", "--model", "there", "actor.recompute=full"]
    there += ["rollout.sglang.colocated=false"]
    first = answer(capsys, RECIPE, *there, "--suggest")["suggestions"][0]
    assert not any(key.startswith("launch.") for key in first["options"])
    options = [f"{key}={str(value).lower()}" for key, value in first["options"].items()]
    assert answer(capsys, RECIPE, *there, *options)["forecast"]["seconds"] == first["seconds"]


def test_options_of_sglang_do_nothing_with_the_embedded_engine() -> None:
    config = Config()
    config.rollout.engine, config.rollout.sglang.nodes, config.rollout.sglang.fp8 = "embedded", 2, True
    said = " ".join(warnings(config))
    assert "rollout.sglang.nodes, .fp8 do nothing with rollout.engine=embedded" in said
    config.rollout.sglang.nodes, config.rollout.sglang.fp8, config.rollout.sglang.args = 1, False, {"log_level": "info"}
    assert any("rollout.sglang.args does nothing with rollout.engine=embedded" in said for said in warnings(config))


def test_no_machines_run_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    for command in ("check", "train"):
        with pytest.raises(SystemExit, match="2"):
            main([command, "quickstart", "--nodes", "0"])
        assert "--nodes: 0 machines run nothing" in capsys.readouterr().err


def test_completions_longer_than_the_longest_are_said_to_be_cut(capsys: pytest.CaptureFixture[str]) -> None:
    there = [RECIPE, "--gpu", "h200", "--gpus", "8", "--model", "8b.json", "--tokens"]
    found = answer(capsys, *there, "5000")
    assert any(said.startswith("--tokens 5000 counts as 2048, the longest") for said in found["warnings"])
    assert not any("--tokens" in said for said in answer(capsys, *there, "2048")["warnings"])


def test_where_no_layout_fits_it_says_how_many_nodes_would_do(capsys: pytest.CaptureFixture[str]) -> None:
    here = "tests.commands.test_check_command.big"
    there = ["launch.nodes=1", "--gpu", "h200", "--gpus", "8", "--model", "235b.json", "--suggest"]
    assert main(["check", here, *there]) == 2
    said = capsys.readouterr().out
    nodes = re.search(r"On (\d+) nodes there are some with actor.asleep=true; without it on (\d+): --nodes", said)
    assert nodes, said
    assert 2 <= int(nodes[1]) < int(nodes[2]) <= 8  # 1.1 TB a node, 3 TB of weights, gradients and moments


@pytest.mark.usefixtures("forked_look")
def test_a_folder_that_keeps_no_files(capsys: pytest.CaptureFixture[str]) -> None:
    (said,) = answer(capsys, "quickstart", "run.folder=/proc/runs", code=2)["problems"]
    assert said == "run.folder is /proc/runs, and /proc keeps no files: choose another run.folder."


@pytest.mark.usefixtures("forked_look")
@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["overlap_p2p_comm_warmup_flush=true"], "only compatible with overlap_p2p_comm but not batch_p2p_comm"),
        (["cpu_offloading=true", "cpu_offloading_num_layers=99"], "done only for layers less than"),  # of TE's layers
        (["apply_rope_fusion=true", "attention_backend=flash"], ""),
        (["tp_comm_overlap=true"], "needs buffers of one shape"),
        (["no_such_field=1"], "has no such field"),
    ],
)
def test_megatron_is_asked_of_gpus_elsewhere(capsys: pytest.CaptureFixture[str], given: list[str], said: str) -> None:
    """With Transformer Engine taken for granted, of a model that is known by its config.json."""
    there = ["--gpu", "h200", "--model", "8b.json", *(f"actor.megatron.{each}" for each in given)]
    problems = answer(capsys, RECIPE, *there, "actor.moments=bfloat16", code=2 if said else 0)["problems"]
    assert len(problems) == bool(said) and all(said in each for each in problems)


def test_float32_on_gpus(capsys: pytest.CaptureFixture[str]) -> None:
    """Megatron's own layers; what is for weights in bfloat16 is refused."""
    there = ["model.dtype=float32", "--gpu", "b200", "--model", "8b.json"]
    assert main(["check", RECIPE, *there]) == 0
    assert "kernels    Megatron's own layers, in float32; for the rest taken for" in capsys.readouterr().out
    found = answer(capsys, RECIPE, *there, "actor.moments=bfloat16", "rollout.sglang.fp8=true", code=2)["problems"]
    assert len(found) == 2 and all("for weights in bfloat16, and model.dtype is float32" in said for said in found)


def test_fp8_on_blackwell(capsys: pytest.CaptureFixture[str]) -> None:
    fp8 = ["actor.fp8=blockwise", "rollout.sglang.fp8=true", "--gpu", "b200", "--model", "8b.json"]
    found = answer(capsys, RECIPE, *fp8)
    assert "not unified" in found["precision"] and any("once more after loading" in each for each in found["warnings"])
