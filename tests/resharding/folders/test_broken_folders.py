"""Folders that are damaged: each is explained."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from megatron_rl.errors import InputError
from megatron_rl.resharding.folders.load import open_hf_folder
from tests.resharding.folders.test_hf import (
    CONFIG,
    INDEX,
    SECOND,
    Damage,
    cut,
    edit_index,
    rewrite,
    write_folder,
)
from tests.resharding.reference import hf_tensors

GATE = "model.layers.0.mlp.gate_proj.weight"


def edit_header(change: Callable[[dict[str, Any], int], object]) -> Damage:
    """Damage that changes the header of the only file, of so many bytes of data; the data stay."""

    def damage(folder: Path) -> None:
        path = folder / "model.safetensors"
        content = path.read_bytes()
        data = content[8 + int.from_bytes(content[:8], "little") :]
        header = json.loads(content[8 : -len(data)])
        change(header, len(data))
        text = json.dumps(header).encode()
        path.write_bytes(len(text).to_bytes(8, "little") + text + data)

    return damage


def offsets(*values: object) -> Damage:
    return edit_header(lambda header, size: header[GATE].update(data_offsets=list(values)))


def shape(*values: object) -> Damage:
    return edit_header(lambda header, size: header[GATE].update(shape=list(values)))


def add_copy(folder: Path) -> None:
    """GATE also lies in a shard in which the index does not have it."""
    where = json.loads((folder / INDEX).read_text())["weight_map"][GATE]
    other = next(path for path in folder.glob("*.safetensors") if path.name != where)
    rewrite(other, lambda tensors: tensors | {GATE: torch.ones(12, 8)})


NO_WHOLE_NUMBERS = rf"is damaged: its header does not describe tensor {GATE}"
BROKEN: dict[str, tuple[int, Damage, str]] = {
    "no folder": (1, lambda f: f.rename(f.parent / "b"), r"no such folder as .*a: give a local Hugging Face folder"),
    "no weights": (1, lambda f: (f / "model.safetensors").unlink(), r"a holds no weights \(\*\.safetensors\)"),
    "no index": (3, lambda f: (f / INDEX).unlink(), r"has model-00001-of-00003\.safetensors, .*, but no index"),
    "other name": (
        1,
        lambda f: (f / "model.safetensors").rename(f / "policy.safetensors"),
        r"has policy\.safetensors, and neither .*: rename it to model\.safetensors if it is the whole",
    ),
    "missing shards": (
        3,
        lambda f: [(f / name).unlink() for name in (SECOND, SECOND.replace("2-", "3-"))],
        r"the shard is missing \(and so are 1 others\)",
    ),
    "two cut shards": (
        3,
        lambda f: [cut(f / name, 9) for name in (SECOND, SECOND.replace("2-", "3-"))],
        r"2 problems: \(1\) .*cut short.* \(2\) .*cut short",
    ),
    "pointer": (
        1,
        lambda f: (f / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\n"),
        r"model\.safetensors is a Git LFS pointer, not the file itself: run `git lfs pull`",
    ),
    "missing shard": (
        3,
        lambda f: (f / SECOND).unlink(),
        rf"says that .* is in {SECOND}, .*shard is missing",
    ),
    "unknown shard": (3, lambda f: edit_index(f, {GATE: "x.safetensors"}), rf"says that {GATE} is in x\.safetensors"),
    "wrong shard": (
        3,
        lambda f: edit_index(f, {GATE: SECOND}),
        rf"says that {GATE} is in {SECOND}, which does not hold it\. It is in model-00001-of-00003\.safetensors",
    ),
    "broken index": (3, lambda f: cut(f / INDEX, 50), r"index\.json is not valid JSON .*cut short"),
    "empty index": (3, lambda f: (f / INDEX).write_text("{}"), r"index\.json has no weight_map"),
    "cut data": (
        1,
        lambda f: cut(f / "model.safetensors", (f / "model.safetensors").stat().st_size - 1),
        r"model\.safetensors is cut short: tensor \S+ ends at byte \d+, the file at \d+",
    ),
    "no tensor of the index": (
        3,
        lambda f: edit_index(f, {"model.layers.0.x": SECOND}),
        rf"says that model\.layers\.0\.x is in {SECOND}, which does not",
    ),
    "not in the index": (
        3,
        lambda f: edit_index(f, {GATE: None}),
        rf"holds tensor {GATE}, which {INDEX} does not list: add it to the weight_map there",
    ),
    "stored twice": (
        3,
        add_copy,
        rf"0000[23]-of-00003.safetensors holds tensor {GATE}, which {INDEX} says is in model-00001-of-00003",
    ),
    "file of no name": (3, lambda f: edit_index(f, {GATE: ["x"]}), rf"says that {GATE} is in \['x'\]"),
    "index and one file": (
        3,
        lambda f: save_file({}, f / "model.safetensors"),
        r"has model\.safetensors, and .*index\.json, which names model-00001-of-00003.*Remove the one",
    ),
    "bytes of another tensor": (1, offsets(0, 12 * 8 * 4), r"is damaged: tensor \S+ is said to be bytes \d+ to \d+"),
    "negative offsets": (1, offsets(-1000, 12 * 8 * 4 - 1000), NO_WHOLE_NUMBERS),
    "infinite offsets": (1, offsets(0, float("inf")), NO_WHOLE_NUMBERS),
    "offsets in no order": (1, offsets(12 * 8 * 4, 0), r"is damaged: tensor \S+ is said to be bytes \d+ to \d+"),
    "shape of words": (1, shape("12", "8"), NO_WHOLE_NUMBERS),
    "shape of fractions": (1, shape(12.0, 8.0), NO_WHOLE_NUMBERS),
    "infinite shape": (1, shape(float("inf"), 8), NO_WHOLE_NUMBERS),
    "bytes at the end": (
        1,
        lambda f: (f / "model.safetensors").open("ab").write(bytes(8)),
        r"is damaged: its last tensor ends at byte (\d+), the file at \d+",
    ),
    "nested header": (
        1,
        lambda f: (f / "model.safetensors").write_bytes((200_000).to_bytes(8, "little") + b"[" * 200_000),
        r"is no safetensors file: its header is not JSON",
    ),
    "nested index": (3, lambda f: (f / INDEX).write_text("[" * 200_000), r"index\.json is not valid JSON"),
    "cut header": (1, lambda f: cut(f / "model.safetensors", 100), r"model\.safetensors is cut short: its header"),
    "empty file": (1, lambda f: cut(f / "model.safetensors", 0), r"model\.safetensors is empty \(0 bytes\)"),
    "no safetensors": (
        1,
        lambda f: (f / "model.safetensors").write_bytes((4).to_bytes(8, "little") + b"PK\3\4data"),
        r"is no safetensors file: its header is not JSON",
    ),
    "other shape": (
        1,
        lambda f: rewrite(f / "model.safetensors", lambda t: t | {GATE: torch.zeros(8, 12)}),
        rf"Tensor {GATE} of .*model\.safetensors has shape \[8, 12\], but config\.json makes it \[12, 8\]",
    ),
    "missing tensor": (
        1,
        lambda f: rewrite(f / "model.safetensors", lambda t: {n: x for n, x in t.items() if n != GATE}),
        rf"does not hold tensor {GATE}; 1 of 24 are missing",
    ),
    "unknown tensor": (
        1,
        lambda f: rewrite(f / "model.safetensors", lambda t: t | {"model.layers.2.x": torch.zeros(1)}),
        r"model\.safetensors holds tensor model\.layers\.2\.x, which no qwen3 model",
    ),
    "wrong dtype": (
        1,
        lambda f: rewrite(f / "model.safetensors", lambda t: t | {GATE: torch.zeros(12, 8, dtype=torch.int32)}),
        rf"Tensor {GATE} of .* has dtype I32; only BF16, F16, F32",
    ),
}


@pytest.mark.parametrize("what", BROKEN)
def test_a_broken_folder_is_explained(what: str, tmp_path: Path) -> None:
    files, damage, message = BROKEN[what]
    folder = write_folder(tmp_path / "a", hf_tensors(CONFIG, tags=False), CONFIG, files)
    open_hf_folder(folder, CONFIG)
    damage(folder)
    with pytest.raises(InputError, match=message):
        open_hf_folder(folder, CONFIG)
