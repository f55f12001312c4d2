"""Conversions of every family between folders and checkpoints: contents, dtypes, FP8, comparing, listing."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from hypothesis import HealthCheck, given, settings
from safetensors.torch import load_file, save_file

from megatron_rl.actor.config import ModelConfig
from megatron_rl.cli import main
from megatron_rl.config import Config
from megatron_rl.errors import InputError
from megatron_rl.resharding.convert import kernel, parts
from megatron_rl.resharding.convert.run import Conversion
from megatron_rl.resharding.convert.targets import HfTarget, MegatronTarget
from megatron_rl.resharding.families import family
from megatron_rl.resharding.families.table import aliases
from megatron_rl.resharding.folders.hf import open_stored, read_hf_config
from megatron_rl.resharding.folders.torch_dist.keys import Position
from megatron_rl.resharding.folders.torch_dist.reader import open_torch_dist
from megatron_rl.resharding.folders.torch_dist.writer import target_sizes
from megatron_rl.resharding.layout import ParallelSizes
from megatron_rl.resharding.layouts.fp8 import quantised_names
from megatron_rl.resharding.quantise import dequantise_blockwise, quantise_blockwise
from megatron_rl.tracking.run_folder import RunFolder
from tests.resharding.families.test_families import DEEPSEEK
from tests.resharding.folders.test_hf import CONFIG, MOE, read_folder, write_folder
from tests.resharding.reference import Case, Tensors, cases, hf_tensors, megatron_shards


def loaded(folder: Path) -> Tensors:
    """Every global tensor of a checkpoint, read by torch alone."""
    metadata = dcp.FileSystemReader(folder).read_metadata()
    sizes = {k: (e.size, e.properties.dtype) for k, e in metadata.state_dict_metadata.items() if hasattr(e, "size")}
    state = {key: torch.empty(size, dtype=dtype) for key, (size, dtype) in sizes.items()}
    dcp.load(state, checkpoint_id=folder, no_dist=True)
    return state


def find(state: Tensors, name: str) -> torch.Tensor:
    """A one-rank model's parameter among the global tensors; the decoder's layers may be stacked."""
    words = name.partition("/")[2].split(".")
    index: list[int] = []
    if words[:2] == ["decoder", "layers"] and not any(key.startswith("decoder.layers.0.") for key in state):
        index.append(int(words.pop(2)))
    if "local_experts" in words:
        at = words.index("local_experts")
        index.append(int(words[at + 1]))
        words[at : at + 2] = ["experts"]
    return state[".".join(words)][tuple(index)]


@settings(
    max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(cases())
def test_there_and_back(tmp_path_factory: pytest.TempPathFactory, case: Case) -> None:
    """Any family, any two shardings: what torch reads is what Megatron holds, and the folder comes back bit by bit."""
    path = tmp_path_factory.mktemp("convert")
    hf = hf_tensors(case.config, tags=False)
    hf = {name: t.bfloat16() if not name.endswith("e_score_correction_bias") else t for name, t in hf.items()}
    source = open_stored(write_folder(path / "hf", hf, case.config, files=3), case.config)
    sizes = target_sizes(
        case.a.tensor, case.a.pipeline, case.a.expert, case.a.expert_tensor, case.a.first_stage, case.a.last_stage
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parts, "SHORTEST_RUN", 8)
        patch.setattr(parts, "PART", 64)
        patch.setattr(parts, "BAND", 64)
        there = Conversion(source, MegatronTarget(source, sizes, source.dtypes), buffer=1 << 22, threads=2)
        there.run(path / "megatron")
        middle = open_torch_dist(path / "megatron", case.config)
        back = Conversion(middle, HfTarget(middle, middle.dtypes, path / "hf", 500), buffer=1 << 22, threads=2)
        back.run(path / "back")
    found = read_folder(path / "back")
    copies = aliases(family(case.config), case.config)
    hf |= {copy: hf[name] for copy, name in copies.items() if copy != "lm_head.weight"}
    assert found.keys() == hf.keys() and all(torch.equal(found[name], hf[name]) for name in hf)
    state = loaded(path / "megatron")
    for name, expected in megatron_shards(hf, case.config, ParallelSizes(), fused=True)[0].items():
        global_tensor = find(state, name)
        assert torch.equal(global_tensor[: len(expected)], expected) and not global_tensor[len(expected) :].any(), name


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A mixture of experts whose matrices are cut by tiles, in bfloat16, with a tokenizer."""
    config = MOE | {
        "hidden_size": 192,
        "head_dim": 48,
        "moe_intermediate_size": 136,
        "vocab_size": 7,
        "dtype": "bfloat16",
    }
    hf = {name: (t * 0.1).bfloat16() for name, t in hf_tensors(config, tags=False).items()}
    folder = write_folder(tmp_path / "hf", hf, config, files=2)
    (folder / "tokenizer.json").write_text("{}")
    (folder / "generation_config.json").write_text('{"eos_token_id": 3}')
    (folder / "additional_chat_templates").mkdir()
    (folder / "additional_chat_templates" / "rag.jinja").write_text("{{ documents }}")
    return folder


def convert(*arguments: object) -> int:
    return main(["convert", *map(str, arguments)])


def test_dtypes_and_files_carried_along(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    wide, back = tmp_path / "wide", tmp_path / "back"
    assert (
        convert("hf-to-megatron", model, wide, "--dtype", "float32", "--tensor-parallel", 2, "--expert-parallel", 2)
        == 0
    )
    assert "2 files" not in capsys.readouterr().out
    assert json.loads((wide / "huggingface" / "config.json").read_text())["dtype"] == "float32"
    assert convert("megatron-to-hf", wide, back, "--dtype", "bfloat16", "--max-shard-size", "200kB") == 0
    hf, found = read_folder(model), read_folder(back)
    assert found.keys() == hf.keys() and all(torch.equal(found[n], hf[n]) for n in hf)
    assert all(t.dtype == torch.float32 for t in loaded(wide).values())
    assert read_hf_config(back) == read_hf_config(model)
    for name in ("tokenizer.json", "generation_config.json", "additional_chat_templates/rag.jinja"):
        assert (back / name).read_bytes() == (model / name).read_bytes()
    index = json.loads((back / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == sum(t.numel() * 2 for t in hf.values())
    assert all(name in load_file(back / file) for name, file in index["weight_map"].items())


def test_fp8_is_that_of_the_whole_tensor(model: Path, tmp_path: Path) -> None:
    hf, quantised = read_folder(model), quantised_names(read_hf_config(model))
    assert convert("hf-to-megatron", model, tmp_path / "m", "--tensor-parallel", 2) == 0
    assert convert("megatron-to-hf", tmp_path / "m", tmp_path / "fp8", "--fp8", "--buffer-size", "1MiB") == 0
    found = read_folder(tmp_path / "fp8")
    assert found.keys() == hf.keys() | {f"{name}_scale_inv" for name in quantised}
    for name, t in hf.items():
        if name in quantised:
            weight, scales = quantise_blockwise(t)
            assert torch.equal(found[name].view(torch.uint8), weight.view(torch.uint8))
            assert torch.equal(found[f"{name}_scale_inv"], scales)
        else:
            assert torch.equal(found[name], t)
    config = read_hf_config(tmp_path / "fp8")
    assert config["quantization_config"]["weight_block_size"] == [128, 128] and config["dtype"] == "bfloat16"
    assert convert("verify", model, tmp_path / "fp8") == 0
    assert convert("hf-to-megatron", tmp_path / "fp8", tmp_path / "again", "--tensor-parallel", 4) == 0
    assert convert("megatron-to-hf", tmp_path / "again", tmp_path / "plain") == 0
    plain = read_folder(tmp_path / "plain")
    for name in quantised:
        weight = dequantise_blockwise(found[name], found[f"{name}_scale_inv"], torch.bfloat16)
        assert torch.equal(plain[name], weight)
    assert "quantization_config" not in read_hf_config(tmp_path / "plain")
    assert convert("verify", tmp_path / "fp8", tmp_path / "again") == 0
    assert convert("verify", tmp_path / "fp8", tmp_path / "fp8") == 0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_scales_of_16_bits_are_read(dtype: torch.dtype, model: Path, tmp_path: Path) -> None:
    """As public checkpoints have them; widened exactly, they are what the weights are multiplied with."""
    assert convert("hf-to-megatron", model, tmp_path / "m") == 0
    assert convert("megatron-to-hf", tmp_path / "m", tmp_path / "fp8", "--fp8") == 0
    path = tmp_path / "fp8" / "model.safetensors"
    narrow = {n: t.to(dtype) if n.endswith("_scale_inv") else t for n, t in load_file(path).items()}
    save_file(narrow, path)
    assert convert("verify", tmp_path / "fp8", tmp_path / "fp8") == 0
    assert convert("hf-to-megatron", tmp_path / "fp8", tmp_path / "again") == 0
    assert convert("megatron-to-hf", tmp_path / "again", tmp_path / "plain") == 0
    plain = read_folder(tmp_path / "plain")
    for name in quantised_names(read_hf_config(model)):
        scales = narrow[f"{name}_scale_inv"].float()
        assert torch.equal(plain[name], dequantise_blockwise(narrow[name], scales, torch.bfloat16))
    assert convert("verify", tmp_path / "fp8", tmp_path / "plain") == 0


def test_a_model_saved_without_its_prediction_layers(tmp_path: Path) -> None:
    """Converted as one without them, in both directions, whatever number config.json gives; each target says 0."""
    hf = hf_tensors(DEEPSEEK | {"num_nextn_predict_layers": 0}, tags=False)
    model = write_folder(tmp_path / "hf", hf, DEEPSEEK, files=2)
    assert convert("hf-to-megatron", model, tmp_path / "m") == 0
    assert not any(key.startswith("mtp.") for key in loaded(tmp_path / "m"))
    assert read_hf_config(tmp_path / "m" / "huggingface")["num_nextn_predict_layers"] == 0
    assert convert("megatron-to-hf", tmp_path / "m", tmp_path / "back", "--model", model) == 0
    back = read_folder(tmp_path / "back")
    assert back.keys() == hf.keys() and all(torch.equal(back[n], t) for n, t in hf.items())
    assert read_hf_config(tmp_path / "back")["num_nextn_predict_layers"] == 0
    assert convert("verify", model, tmp_path / "m") == convert("verify", tmp_path / "m", tmp_path / "back") == 0


def test_verify_names_the_first_difference(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert convert("hf-to-megatron", model, tmp_path / "m", "--tensor-parallel", 2) == 0
    assert convert("verify", model, tmp_path / "m") == 0
    assert "All 45 tensors" in capsys.readouterr().out
    name = "model.layers.1.mlp.experts.2.down_proj.weight"
    for path in model.glob("*.safetensors"):
        tensors = load_file(path)
        if name in tensors:
            tensors[name][150, 7] = 3.0
            save_file(tensors, path)
    assert convert("verify", model, tmp_path / "m") == 1
    said = capsys.readouterr().out
    assert f"{name}[150, 7] is 3.0 in the first" in said
    assert convert("verify", tmp_path / "m", model, "--buffer-size", "1MiB") == 1
    assert f"{name}[150, 7] is " in capsys.readouterr().out


@pytest.mark.parametrize("kind", ["hf", "megatron"])
@pytest.mark.parametrize("what", ["fewer layers", "another width", "another family", "a tensor less"])
def test_other_tensors_are_a_difference(
    kind: str, what: str, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    changes: dict[str, dict[str, Any]] = {
        "fewer layers": {"num_hidden_layers": 1},
        "another width": {"moe_intermediate_size": 128},
        "another family": {"model_type": "qwen3"},
        "a tensor less": {},
    }
    config = read_hf_config(model) | changes[what]
    second = write_folder(tmp_path / "other", hf_tensors(config, tags=False), config, files=1)
    if kind == "megatron":
        assert convert("hf-to-megatron", second, tmp_path / "m") == 0
        second = tmp_path / "m"
        if what == "a tensor less":  # which a model folder of the first's tells
            (second / "huggingface" / "config.json").write_text(
                json.dumps(config | {"num_hidden_layers": config["num_hidden_layers"] + 1})
            )
    elif what == "a tensor less":
        tensors = load_file(second / "model.safetensors")
        del tensors["model.norm.weight"]
        save_file(tensors, second / "model.safetensors")
    capsys.readouterr()
    for pair in ((model, second), (second, model)):
        assert convert("verify", *pair) == 1
        said = capsys.readouterr().out
        assert said.startswith(f"{pair[0]} and {pair[1]} differ: ") and str(second) in said.partition(": ")[2]


def test_a_checkpoint_of_a_run_finds_its_model(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What it started from; where that has gone, what the run itself keeps."""
    run = RunFolder(tmp_path / "runs" / "r")
    checkpoint = run.checkpoints / "step-1-000002"
    run.checkpoints.mkdir(parents=True)
    assert convert("hf-to-megatron", model, checkpoint) == 0
    shutil.rmtree(checkpoint / "huggingface")
    assert convert("megatron-to-hf", checkpoint, tmp_path / "none") == 2
    assert "name the model's Hugging Face folder (--model)" in capsys.readouterr().err
    run.write_config(Config(model=ModelConfig(path=str(model))))
    assert convert("megatron-to-hf", checkpoint, tmp_path / "one") == 0
    assert convert("verify", checkpoint, checkpoint) == 0
    model.rename(run.export)
    assert convert("megatron-to-hf", checkpoint, tmp_path / "two") == 0
    assert convert("verify", tmp_path / "one", tmp_path / "two") == 0


def test_reading_a_mixture_takes_time_in_proportion_to_its_experts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """How often it is asked where an expert stands, instead of seconds."""
    asked, get = 0, object.__getattribute__

    def counting(position: Position, name: str) -> Any:
        nonlocal asked
        asked += 1
        return get(position, name)

    counts = []
    for experts in (40, 80):
        config = MOE | {"num_experts": experts, "moe_intermediate_size": 2}
        folder = write_folder(tmp_path / f"hf{experts}", hf_tensors(config, tags=False), config, files=1)
        assert convert("hf-to-megatron", folder, tmp_path / f"m{experts}") == 0
        with monkeypatch.context() as patch:
            patch.setattr(Position, "__getattribute__", counting, raising=False)
            asked = 0
            open_torch_dist(tmp_path / f"m{experts}", config)
            counts.append(asked)
    assert 1000 < counts[1] < 2.2 * counts[0]


def test_inspect(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert convert("hf-to-megatron", model, tmp_path / "m", "--expert-parallel", 2) == 0
    capsys.readouterr()
    assert convert("inspect", tmp_path / "m") == 0
    lines = capsys.readouterr().out.splitlines()
    row = next(line for line in lines if "experts.linear_fc1" in line).split()
    assert row[1:] == ["BF16", "[2,", "4,", "272,", "192]", f"{2 * 4 * 272 * 192 * 2:,}", "B", "16", "chunks"]
    assert convert("inspect", model) == 0
    hf = capsys.readouterr().out.splitlines()
    assert lines[-1].split(";")[0] != hf[-1].split(";")[0] and hf[-1].startswith("Hugging Face: 45 tensors")
    total = sum(t.numel() * 2 for t in read_folder(model).values())
    assert f"{total:,} bytes" in hf[-1]


def test_inspect_counts_every_byte_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Norms that have two names in Megatron; dtypes that no weight has."""
    hf = hf_tensors(DEEPSEEK, tags=False)
    numbers, size = sum(t.numel() for t in hf.values()), sum(t.nbytes for t in hf.values())
    write_folder(tmp_path / "hf", hf, DEEPSEEK)
    assert convert("hf-to-megatron", tmp_path / "hf", tmp_path / "m") == 0
    capsys.readouterr()
    assert convert("inspect", tmp_path / "m") == 0
    *rows, last = capsys.readouterr().out.splitlines()
    assert f"{numbers:,} numbers, {size:,} bytes" in last
    assert any("pre_mlp_layernorm" in row and ", also decoder.layers" in row for row in rows)
    kinds = [torch.uint16, torch.uint64, torch.complex64, torch.bool]
    save_file({str(kind): torch.zeros(3, dtype=kind) for kind in kinds}, tmp_path / "model.safetensors")
    assert convert("inspect", tmp_path) == 0
    assert f"{3 * (2 + 8 + 8 + 1)} bytes" in capsys.readouterr().out


def test_a_number_that_the_dtype_cannot_hold(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = model / "model-00001-of-00002.safetensors"
    tensors = load_file(path)
    tensors["model.embed_tokens.weight"][0, 0] = 1e6
    save_file(tensors, path)
    assert convert("hf-to-megatron", model, tmp_path / "m", "--dtype", "float16") == 2
    assert "model.embed_tokens.weight holds numbers beyond float16's largest" in capsys.readouterr().err
    assert not list(tmp_path.glob("*m*"))


LARGE = 3.4028e38  # in float32; bfloat16 rounds it to infinity
ROW = "model.layers.0.self_attn.o_proj.weight"  # of a family's table, quantised


@pytest.mark.parametrize(
    ("number", "options", "message"),
    [
        (LARGE, ("--dtype", "bfloat16"), r"beyond bfloat16's largest, 3\.38953e\+38: convert to float32"),
        (float("inf"), ("--fp8",), r"holds inf, which would make a whole tile of FP8 NaN"),
        (float("nan"), ("--fp8",), r"holds nan, which would make a whole tile of FP8 NaN"),
    ],
)
def test_numbers_that_a_dtype_cannot_hold(
    number: float, options: tuple[str, ...], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    hf = hf_tensors(CONFIG, tags=False)
    hf[ROW][5, 9] = number
    assert convert("hf-to-megatron", write_folder(tmp_path / "hf", hf, CONFIG), tmp_path / "m") == 0
    assert convert("megatron-to-hf", tmp_path / "m", tmp_path / "b", *options) == 2
    assert re.search(f"Tensor {re.escape(ROW)} {message}", capsys.readouterr().err.replace("holds numbers ", ""))
    assert not (tmp_path / "b").exists()


@pytest.mark.parametrize("refused", [1, 2])
def test_where_the_kernel_refuses_to_copy(refused: int, model: Path, tmp_path: Path) -> None:
    """sendfile, then plain reads and writes, give the same bytes."""
    path, copy = model / "model-00001-of-00002.safetensors", tmp_path / "copy"
    size = path.stat().st_size
    copy.touch()
    with kernel.Files(tmp_path) as files:
        kernel.copy_run(files, kernel.Run(path, 5, Path("copy"), 3, size - 5), list(kernel.WAYS[refused:]))
    assert copy.read_bytes() == bytes(3) + path.read_bytes()[5:]
    with kernel.Files(tmp_path) as files, pytest.raises(InputError, match=f"ends at byte {size}: it became shorter"):
        kernel.copy_run(files, kernel.Run(path, 5, Path("copy"), 3, size), list(kernel.WAYS[refused:]))


def test_scales_of_a_weight_that_is_not_quantised(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert convert("hf-to-megatron", model, tmp_path / "m") == 0
    assert convert("megatron-to-hf", tmp_path / "m", tmp_path / "fp8", "--fp8") == 0
    path = tmp_path / "fp8" / "model.safetensors"
    save_file(load_file(path) | {ROW: torch.zeros(192, 192).bfloat16()}, path)
    assert convert("hf-to-megatron", tmp_path / "fp8", tmp_path / "again") == 2
    assert f"holds scales of {ROW}, whose dtype is BF16 and not F8_E4M3" in capsys.readouterr().err
