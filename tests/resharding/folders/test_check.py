"""What is said about a folder that is given as a model, before anything is started."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from megatron_rl.errors import InputError
from megatron_rl.resharding.folders.check import folder_problems, transformers_config
from megatron_rl.resharding.folders.hf import read_headers
from megatron_rl.resharding.folders.load import open_hf_folder
from tests.conftest import ROOT
from tests.resharding.folders.test_broken_folders import BROKEN
from tests.resharding.folders.test_hf import CONFIG, write_folder
from tests.resharding.reference import hf_tensors


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_folder(tmp_path / "model", hf_tensors(CONFIG, tags=False), CONFIG)


def said(folder: Path) -> str:
    (problem,) = folder_problems(folder)[1]
    return problem


@pytest.mark.parametrize("what", BROKEN)
def test_whatever_stops_the_loading_is_found_before(what: str, tmp_path: Path) -> None:
    files, damage, _ = BROKEN[what]
    folder = write_folder(tmp_path / "a", hf_tensors(CONFIG, tags=False), CONFIG, files)
    assert folder_problems(folder) == (CONFIG, [])
    damage(folder)
    with pytest.raises(InputError) as error:
        open_hf_folder(folder, CONFIG)
    assert said(folder) == str(error.value)


def only(*names: str) -> Callable[[Path], None]:
    """A folder with these files, which hold a few bytes."""

    def write(folder: Path) -> None:
        shutil.rmtree(folder)
        for name in names:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text("0000003")

    return write


def without_weights(*names: str) -> Callable[[Path], None]:
    """A folder with config.json and these files."""

    def write(folder: Path) -> None:
        (folder / "model.safetensors").unlink()
        for name in names:
            (folder / name).write_text("x")

    return write


def changed(**changes: Any) -> Callable[[Path], None]:
    return lambda folder: (folder / "config.json").write_text(json.dumps(CONFIG | changes))


def as_file(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.write_text("x")


def gone(name: str) -> Callable[[Path], object]:
    """Leaves a link in a file's place, as in a cache of the hub that was cleaned."""

    def change(folder: Path) -> None:
        (folder / name).unlink()
        (folder / name).symlink_to("blobs/0")

    return change


FP8 = {"quant_method": "fp8", "weight_block_size": [128, 128]}
MISTAKEN: dict[str, tuple[Callable[[Path], object], list[str]]] = {
    "nothing": (shutil.rmtree, ["There is no such folder as", "`hf download` fetches one"]),
    "a file": (as_file, ["is a file: name the model's folder"]),
    "empty": (lambda f: [p.unlink() for p in f.iterdir()], ["config.json does not exist", "holds no weights"]),
    "adapter": (only("adapter_config.json", "adapter_model.safetensors"), ["holds a LoRA adapter", "merge_and_unload"]),
    "adapter with config": (without_weights("adapter_config.json", "adapter_model.safetensors"), ["a LoRA adapter"]),
    "torch_dist": (
        only(".metadata", "__0_0.distcp"),
        ["is a Megatron checkpoint", "convert megatron-to-hf", "--model"],
    ),
    "converted": (
        only(".metadata", "huggingface/config.json"),
        ["is a Megatron checkpoint: `megatron-rl convert megatron-to-hf", "model NEW_FOLDER` makes a"],
    ),
    "Megatron's root": (
        only("latest_checkpointed_iteration.txt", "iter_0000003/.metadata", "iter_0000002/.metadata"),
        ["convert megatron-to-hf", "model/iter_0000003 NEW_FOLDER"],
    ),
    "old Megatron": (
        only("latest_checkpointed_iteration.txt", "iter_0000003/mp_rank_00/model_optim_rng.pt"),
        ["of another format than torch_dist"],
    ),
    "hub cache": (only("snapshots/0000003/config.json", "refs/main"), ["hub's cache", "model/snapshots/0000003."]),
    "hub cache, no refs": (only("snapshots/b/config.json", "snapshots/a/config.json"), ["snapshots/a or ", "/b."]),
    "a run": (
        only("hf/config.json", "manifest.json"),
        ["is no model itself, but", "model/hf, the policy that was trained"],
    ),
    "a run and more": (
        only("hf/config.json", "warm_start/config.json", "checkpoints/step-3-1/.metadata"),
        ["model/hf, the policy that was trained, is one: name that folder or another of 2."],
    ),
    "a run's checkpoints": (
        only(*(f"step-1-{step}/.metadata" for step in range(1, 7))),
        ["has checkpoints in it (step-1-3, step-1-4, step-1-5, step-1-6, and 2 more)", "such as ", "model/step-1-6."],
    ),
    "GGUF": (without_weights("model-q4.gguf"), ["model-q4.gguf: GGUF files are for inference"]),
    "GGUF alone": (
        only("model-q4.gguf"),
        ["config.json does not exist", "model-q4.gguf: GGUF files are for inference"],
    ),
    "no config": (lambda f: (f / "config.json").unlink(), ["has weights: fetch the model's config.json, too"]),
    "link": (gone("config.json"), ["model/config.json is a link to blobs/0, which is not there. Fetch it again."]),
    "link to weights": (gone("model.safetensors"), ["model/model.safetensors is a link to blobs/0, which is not"]),
    "pickles": (without_weights("pytorch_model.bin"), ["pytorch_model.bin and no *.safetensors", "save_pretrained"]),
    "no weights": (without_weights(), ["holds no weights"]),
    "empty config": (lambda f: (f / "config.json").write_text(""), ["config.json is empty (0 bytes)"]),
    "pointer": (
        lambda f: (f / "config.json").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\n"),
        ["config.json is a Git LFS pointer", "`git lfs pull`"],
    ),
    "list": (lambda f: (f / "config.json").write_text("[]"), ["config.json holds a list; a JSON object is needed"]),
    "not UTF-8": (lambda f: (f / "config.json").write_bytes(b'{"a": "\xff"}'), ["config.json is not valid JSON"]),
    "family": (changed(model_type="bert"), ["model_type='bert', which the actor does not train"]),
    "FP8": (changed(quantization_config=FP8), ["not quantised", "convert hf-to-megatron", "in bfloat16 of it"]),
    "FP8 of a kind that is not read": (
        changed(quantization_config=FP8 | {"weight_block_size": [128, 64]}),
        ["not quantised", "Name the model's release"],
    ),
    "GPTQ": (changed(quantization_config={"quant_method": "gptq"}), ["'gptq'", "Name the model's release"]),
    "untied": (changed(tie_word_embeddings=False), ["does not hold tensor lm_head.weight"]),
}


@pytest.mark.parametrize("what", MISTAKEN)
def test_what_is_no_model_is_named_with_the_way_out(what: str, folder: Path) -> None:
    damage, parts = MISTAKEN[what]
    damage(folder)
    problem = said(folder)
    for part in parts:
        assert part in problem, problem
    assert str(folder) in problem or problem.startswith("config.json has")


def test_a_second_copy_is_compared_at_its_beginning(folder: Path) -> None:
    hf = hf_tensors(CONFIG, tags=False)
    shutil.rmtree(folder)
    write_folder(folder, hf | {"lm_head.weight": hf["model.embed_tokens.weight"] + 1}, CONFIG)
    assert "lm_head.weight" in said(folder) and "is not equal to model.embed_tokens.weight" in said(folder)


def test_many_damaged_files_are_counted(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "a", hf_tensors(CONFIG, tags=False), CONFIG, files=9)
    for path in folder.glob("*.safetensors"):
        path.write_bytes(b"")
    problem = said(folder)
    assert problem.startswith("6 problems: (1) ") and problem.endswith(
        "(6) 4 more files of " + f"{folder} are damaged, too."
    )


def test_it_needs_no_torch(folder: Path) -> None:
    code = (
        "import sys; from megatron_rl.resharding.folders.check import folder_problems; "
        f"print(folder_problems({str(folder)!r})[1], 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "[] False\n"


def test_buffers_that_are_no_weights_are_no_tensors_of_a_sharded_model(tmp_path: Path) -> None:
    hf = hf_tensors(CONFIG, tags=False) | {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(2)}
    folder = write_folder(tmp_path / "a", hf, CONFIG, files=2)
    assert folder_problems(folder)[1] == []
    assert {name for header in read_headers(folder).values() for name in header} == hf.keys()


@pytest.mark.parametrize("change", [{"initializer_range": "wide"}, {"layer_types": ["full_attention"]}])
def test_what_transformers_refuses_is_said_in_its_words(change: dict[str, Any], folder: Path) -> None:
    changed(**change)(folder)
    with pytest.raises(InputError, match=rf"transformers refuses {folder}/config.json: .*{next(iter(change))}"):
        transformers_config(folder)
    with pytest.raises(InputError, match=rf"transformers refuses model.architecture: .*{next(iter(change))}"):
        transformers_config(CONFIG | change)


def test_an_architecture_is_left_as_it_was() -> None:
    architecture = CONFIG | {"rope_parameters": {"rope_type": "default"}}
    assert transformers_config(architecture).rope_parameters["rope_theta"] == 10000.0
    assert architecture["rope_parameters"] == {"rope_type": "default"}
