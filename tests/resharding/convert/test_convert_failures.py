"""Every kind of bad input to a conversion: exit code 2, one paragraph, nothing left or touched."""

import json
import os
import pickle
import random
import re
import shutil
from argparse import ArgumentTypeError
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from megatron_rl.cli import main
from megatron_rl.commands.convert_options import _size
from megatron_rl.errors import InputError
from megatron_rl.resharding.folders.hf import read_hf_config
from megatron_rl.resharding.folders.torch_dist.reader import open_torch_dist
from tests.resharding.convert.test_convert_resume import contents, small_model
from tests.resharding.families.test_families import DEEPSEEK
from tests.resharding.folders.test_hf import CONFIG, SECOND, cut, edit_index, write_folder
from tests.resharding.reference import hf_tensors


def break_distcp(folder: Path, size: int | None = None, at: int = 0) -> None:
    """Cut a .distcp file, or spoil a byte of the directory at the end of its last archive."""
    path = max(folder.glob("__0_0.distcp"))
    content = bytearray(path.read_bytes())
    if size is not None:
        content = content[:size]
    else:
        content[at] ^= 0xFF
    path.write_bytes(content)


def edit_config(folder: Path, changes: dict[str, object]) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def touch(path: Path) -> Path:
    path.touch()
    return path


Metadata = Any  # torch.distributed.checkpoint.metadata.Metadata
FC1 = "decoder.layers.mlp.experts.experts.linear_fc1.weight"


def edit_metadata(change: Callable[[Metadata], object]) -> Callable[[Path], object]:
    """Damage that changes a checkpoint's metadata, which torch reads and writes."""

    def damage(folder: Path) -> None:
        metadata = pickle.loads((folder / ".metadata").read_bytes())
        change(metadata)
        (folder / ".metadata").write_bytes(pickle.dumps(metadata))

    return damage


def storage(metadata: Metadata, key: str) -> list[Any]:
    """Where the chunks of a tensor lie."""
    return [at for index, at in metadata.storage_data.items() if index.fqn == key]


def double_chunk(metadata: Metadata) -> None:
    chunks = metadata.state_dict_metadata[FC1].chunks
    chunks[3] = chunks[0]


def flatten_chunk(metadata: Metadata) -> None:
    metadata.state_dict_metadata[FC1].chunks[0].sizes = torch.Size([1])


def share_place(metadata: Metadata) -> None:
    one, other = storage(metadata, FC1)[:2]
    other.__dict__.update(one.__dict__)


def move_name(metadata: Metadata) -> None:
    first, second = storage(metadata, "decoder.layers.pre_mlp_layernorm.weight")
    first.__dict__, second.__dict__ = second.__dict__, first.__dict__


def shift_data(folder: Path) -> None:
    """The local header of a tensor's data says that they begin two bytes later."""
    content = bytearray((folder / "__0_0.distcp").read_bytes())
    content[content.index(b"archive/data/0") - 2] ^= 2
    (folder / "__0_0.distcp").write_bytes(content)


def retype(folder: Path) -> None:
    path = folder / SECOND
    save_file({name: t.to(torch.int16) for name, t in load_file(path).items()}, path)


def spoil_header(folder: Path) -> None:
    content = (folder / SECOND).read_bytes()
    (folder / SECOND).write_bytes(content[:8] + content[8:].replace(b'"shape"', b'"shade"'))


HF: dict[str, tuple[Callable[[Path], object], list[str], str]] = {
    "cut data": (lambda f: cut(f / SECOND, 3000), [], rf"{SECOND} is cut short: tensor \S+ ends at byte \d+"),
    "header": (spoil_header, [], rf"{SECOND} is damaged: its header does not describe tensor \S+"),
    "missing shard": (lambda f: (f / SECOND).unlink(), [], rf"says that \S+ is in {SECOND}, .*shard is missing"),
    "index": (
        lambda f: edit_index(f, {"model.norm.weight": "x.safetensors"}),
        [],
        r"says that model\.norm\.weight is in x\.safetensors",
    ),
    "dtype": (retype, [], r"Tensor \S+ of .* has dtype I16; only BF16, F16, F32 can be"),
    "config": (lambda f: edit_config(f, {"hidden_size": 16}), [], r"has shape \[.*\], but config\.json makes it \["),
    "family": (lambda f: edit_config(f, {"model_type": "mamba"}), [], r"model_type='mamba'.*known are"),
    "scheme": (
        lambda f: edit_config(f, {"quantization_config": {"quant_method": "awq"}}),
        [],
        r"quant_method='awq'; only 'fp8'",
    ),
    "scheme of no kind": (
        lambda f: edit_config(f, {"quantization_config": "fp8"}),
        [],
        r"quantization_config is 'fp8'; a JSON object is needed",
    ),
    "layout": (
        lambda f: None,
        ["--tensor-parallel=3", "--pipeline-parallel=5", "--expert-parallel=3", "--threads=0", "--buffer-size=3kB"],
        r"6 problems: \(1\) --threads=0 .* \(2\) --buffer-size.* \(3\) --tensor-parallel=3 does not divide "
        r"num_attention_heads=4.*num_key_value_heads=2.*--pipeline-parallel=5 .*--expert-parallel=3 ",
    ),
    "space": (lambda f: None, [], r"MB free; the checkpoint needs"),
    "space for the rest": (lambda f: os.truncate(touch(f / "tokenizer.json"), 1 << 43), [], r"needs 8796093 MB"),
    "shard as a name": (lambda f: edit_index(f, {"model.norm.weight": "x" * 999}), [], r"x{999}"),
    "no folder": (lambda f: shutil.rmtree(f), [], "There is no such folder as"),
}
MEGATRON: dict[str, tuple[Callable[[Path], object], list[str], str]] = {
    "cut data": (
        lambda f: break_distcp(f, 9000),
        [],
        r"__0_0\.distcp is cut short: the chunk of \S+ at \[.*\] ends at",
    ),
    "missing file": (
        lambda f: (f / "__0_0.distcp").unlink(),
        [],
        r"a chunk of \S+ is in __0_0\.distcp, and there is no",
    ),
    "metadata": (lambda f: cut(f / ".metadata", 500), [], r"\.metadata cannot be read"),
    "hostile": (
        lambda f: (f / ".metadata").write_bytes(pickle.dumps(print)),
        [],
        r"\.metadata cannot be read \(it names builtins\.print",
    ),
    "huge object number": (
        lambda f: (f / ".metadata").write_bytes(b"\x80\x02Nr\x00\x00\x00\x40."),
        [],
        r"\.metadata cannot be read \(object number 1073741824",
    ),
    "chunk twice": (edit_metadata(double_chunk), [], rf"The chunks of tensor {FC1} of .* do not make up its shape \["),
    "chunk of other dimensions": (edit_metadata(flatten_chunk), [], rf"the chunk of {FC1} at .* has other dimensions"),
    "file elsewhere": (
        edit_metadata(lambda m: storage(m, FC1)[0].__dict__.update(relative_path="../x")),
        [],
        r"\.metadata cannot be read \('\.\./x' is no file of the folder\)",
    ),
    "negative offset": (
        edit_metadata(lambda m: storage(m, FC1)[0].__dict__.update(offset=-1)),
        [],
        r"\.metadata cannot be read \(.*-1.* stands where whole numbers should\)",
    ),
    "two chunks in one place": (edit_metadata(share_place), [], rf"{FC1}@\S+ and {FC1}@\S+ are both at byte \d+ of"),
    "two names": (edit_metadata(move_name), [], r"which are two names of one weight, in two places"),
    "shifted data": (shift_data, [], r"__0_0\.distcp is damaged .*entry archive/data/0 is not what the directory says"),
    "archive": (lambda f: break_distcp(f, at=0), [], r"__0_0\.distcp is damaged at the chunk of \S+ at \["),
    "no metadata": (lambda f: (f / ".metadata").unlink(), [], r"has no \.metadata: it is no torch_dist checkpoint"),
    "no model": (lambda f: shutil.rmtree(f / "huggingface"), [], r"does not say of which model it is: .*\(--model\)"),
    "config": (
        lambda f: edit_config(f / "huggingface", {"moe_intermediate_size": 8}),
        [],
        r"Tensor decoder\.layers\.mlp\.experts\.experts\.linear_fc1\.weight of .* has shape \[2, 4, 12, 8\], but "
        r"config\.json makes it \[2, 4, 16, 8\]",
    ),
    "other model": (
        lambda f: edit_config(f / "huggingface", {"tie_word_embeddings": True}),
        [],
        r"holds tensor output_layer\.weight, which no qwen3_moe model",
    ),
    "other family": (
        lambda f: edit_config(f / "huggingface", {"model_type": "qwen3", "intermediate_size": 12}),
        [],
        r"holds tensor decoder\.layers\.\S+, which no qwen3 model",
    ),
}
CASES = [("hf-to-megatron", what) for what in HF] + [("megatron-to-hf", what) for what in MEGATRON]


@pytest.mark.parametrize(("kind", "what"), CASES)
def test_bad_input(
    kind: str, what: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    source, target = small_model(tmp_path / "source"), tmp_path / "target"
    damage, options, message = (HF if kind == "hf-to-megatron" else MEGATRON)[what]
    if kind == "megatron-to-hf":
        assert main(["convert", "hf-to-megatron", str(source), str(tmp_path / "m")]) == 0
        source = tmp_path / "m"
    damage(source)
    if what == "space":
        usage = shutil.disk_usage(tmp_path)
        monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage._replace(free=1000))
    before = sorted(p.name for p in tmp_path.iterdir())
    capsys.readouterr()
    assert main(["convert", kind, str(source), str(target), *options]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1
    assert re.search(message, error), error
    assert sorted(p.name for p in tmp_path.iterdir()) == before


def test_a_norm_of_queries_that_the_model_has_not(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What Megatron-Core 0.19 has in latent attention whose queries have no rank of their own."""
    norm = "self_attention.linear_q_proj.layer_norm_weight"

    def add(metadata: Metadata) -> None:
        known = metadata.state_dict_metadata
        (like,) = [key for key in known if re.match(r"decoder\.layers\.0\.input_layernorm\.weight$", key)]
        added = f"decoder.layers.0.{norm}"
        known[added] = known[like]
        for index, at in list(metadata.storage_data.items()):
            if index.fqn == like:
                metadata.storage_data[replace(index, fqn=added)] = at

    config = DEEPSEEK | {"q_lora_rank": None, "num_nextn_predict_layers": 0}
    source = small_model(tmp_path / "source", config)
    assert main(["convert", "hf-to-megatron", str(source), str(tmp_path / "m")]) == 0
    names = pickle.loads((tmp_path / "m" / ".metadata").read_bytes()).state_dict_metadata
    assert "decoder.layers.0.self_attention.linear_q_proj.weight" in names and not [n for n in names if norm in n]
    edit_metadata(add)(tmp_path / "m")
    capsys.readouterr()
    assert main(["convert", "megatron-to-hf", str(tmp_path / "m"), str(tmp_path / "back")]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and f"holds tensor decoder.layers.0.{norm}: Megatron-Core 0.19" in error


@pytest.mark.parametrize("file", [".metadata", "__0_0.distcp"])
def test_a_flipped_bit_is_found_or_changes_nothing(file: str, tmp_path: Path) -> None:
    source = small_model(tmp_path / "source")
    assert main(["convert", "hf-to-megatron", str(source), str(tmp_path / "m")]) == 0
    content, config = (tmp_path / "m" / file).read_bytes(), read_hf_config(source)
    whole = open_torch_dist(tmp_path / "m", config)
    numbers, refused = random.Random(5), 0
    for _ in range(300):
        at, bit = numbers.randrange(len(content)), numbers.randrange(8)
        (tmp_path / "m" / file).write_bytes(content[:at] + bytes([content[at] ^ 1 << bit]) + content[at + 1 :])
        try:
            assert open_torch_dist(tmp_path / "m", config) == whole, (at, bit)
        except InputError:
            refused += 1
    assert refused > 20


@pytest.mark.parametrize("what", ["missing file", "cut data"])
def test_inspect_looks_at_the_files(what: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["convert", "hf-to-megatron", str(small_model(tmp_path / "hf")), str(tmp_path / "m")]) == 0
    assert main(["convert", "inspect", str(tmp_path / "m")]) == 0
    damage, _, message = MEGATRON[what]
    damage(tmp_path / "m")
    assert main(["convert", "inspect", str(tmp_path / "m")]) == 2
    assert re.search(message, capsys.readouterr().err)
    edit_index(tmp_path / "hf", {"model.layers.0.x": SECOND})
    assert main(["convert", "inspect", str(tmp_path / "hf")]) == 2
    assert f"says that model.layers.0.x is in {SECOND}, which does not hold it" in capsys.readouterr().err


def test_a_target_that_exists_is_not_touched(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = small_model(tmp_path / "source", CONFIG)
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "mine").write_text("important")
    assert main(["convert", "hf-to-megatron", str(source), str(tmp_path / "there")]) == 2
    assert "there exists already" in capsys.readouterr().err
    assert contents(tmp_path / "there") == {"mine": b"important"}
    assert sorted(p.name for p in tmp_path.iterdir()) == ["source", "there"]


TARGETS: dict[str, tuple[str, str]] = {
    "a file above": ("source/config.json/x", r"config\.json/x cannot be made: \S+config\.json is no folder"),
    "a device above": ("/dev/null/x", r"/dev/null is no folder"),
    "dangling": ("dangling", r"dangling exists already"),
    "taken": ("taken", r"\.taken\.partial, where the work is done, is no folder: remove it"),
    "long": ("x" * 250, r"The name x{250} is too long"),
    "dots": ("none/..", r"none/\.\. does not name a folder"),
}


@pytest.mark.parametrize("what", TARGETS)
def test_targets_that_cannot_be(what: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = small_model(tmp_path / "source", CONFIG)
    (tmp_path / "dangling").symlink_to(tmp_path / "nothing")
    (tmp_path / ".taken.partial").write_text("mine")
    before = sorted(p.name for p in tmp_path.iterdir())
    target, message = TARGETS[what]
    assert main(["convert", "hf-to-megatron", str(source), os.path.join(tmp_path, target)]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1
    assert re.search(message, error), error
    assert sorted(p.name for p in tmp_path.iterdir()) == before


@pytest.mark.parametrize("command", ["hf-to-megatron", "verify"])
def test_what_the_system_refuses_is_named(
    command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    source, really = small_model(tmp_path / "source", CONFIG), os.open

    def refuse(path: os.PathLike[str] | str, *arguments: int, **keywords: Any) -> int:
        if str(path).endswith(SECOND):
            raise PermissionError(13, "Permission denied", str(path))
        return really(path, *arguments, **keywords)

    monkeypatch.setattr(os, "open", refuse)
    assert main(["convert", command, str(source), str(tmp_path / "target" if command != "verify" else source)]) == 2
    error = capsys.readouterr().err
    assert f"{SECOND} cannot be used: Permission denied." in error
    left = [".target.partial"] * ("goes on with what is in" in error)  # parts of other files
    assert sorted(p.name for p in tmp_path.iterdir()) == [*left, "source"]


@pytest.mark.parametrize(("text", "size"), [("2048KiB", 2 << 20), ("5GB", 5 * 10**9), ("1 TB", 10**12), ("7", 7)])
def test_sizes(text: str, size: int) -> None:
    assert _size(text) == size


@pytest.mark.parametrize("text", ["-1", "1.5GB", "²", "GB", "1iB"])
def test_no_sizes(text: str) -> None:
    with pytest.raises(ArgumentTypeError, match="is no size; write 256MiB"):
        _size(text)


def test_dtypes_that_megatron_cannot_keep_apart(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    hf = hf_tensors(CONFIG, tags=False)
    hf["model.layers.1.self_attn.k_proj.weight"] = hf["model.layers.1.self_attn.k_proj.weight"].bfloat16()
    source = write_folder(tmp_path / "source", hf, CONFIG)
    assert main(["convert", "hf-to-megatron", str(source), str(tmp_path / "target")]) == 2
    error = capsys.readouterr().err
    assert "k_proj.weight BF16" in error and "linear_qkv.weight" in error and "--dtype" in error
    assert main(["convert", "hf-to-megatron", str(source), str(tmp_path / "target"), "--dtype", "float32"]) == 0
