"""Reading Hugging Face folders: safetensors mapped into memory, and loaded into a sharded model through a plan."""

import json
import mmap
import warnings
from collections.abc import Mapping
from math import prod
from pathlib import Path
from typing import Any

import torch

from megatron_rl.errors import InputError
from megatron_rl.resharding.execute import flat, pull
from megatron_rl.resharding.families import family
from megatron_rl.resharding.families.table import HEAD, tied
from megatron_rl.resharding.layout import Layout, ParallelSizes, Shard
from megatron_rl.resharding.megatron import megatron_layout
from megatron_rl.resharding.plan import make_plan
from megatron_rl.resharding.proof import check_parameters, prove
from megatron_rl.resharding.transformers import files_layout

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
DTYPES = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32}  # safetensors' names


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file; InputError when it is missing or is not one."""
    if not path.is_file():
        raise InputError(f"{path} does not exist: a Hugging Face model folder (config.json, *.safetensors) is needed.")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{path} is not valid JSON ({error}). It may be cut short: fetch it again.") from error
    if not isinstance(content, dict):
        raise InputError(f"{path} holds a {type(content).__name__}; a JSON object is needed.")
    return content


def read_hf_config(folder: str | Path) -> dict[str, Any]:
    """The content of a model folder's config.json. Raises InputError naming what is missing or broken."""
    return read_json(Path(folder) / "config.json")


def _weight_files(folder: Path) -> dict[str, list[str] | None]:
    """File name -> the tensors that the index expects in it (None: there is no index)."""
    if (folder / INDEX).is_file():
        weight_map = read_json(folder / INDEX).get("weight_map")
        if not isinstance(weight_map, dict) or not weight_map:
            raise InputError(f"{folder / INDEX} has no weight_map: it cannot say which shard holds which tensor.")
        expected: dict[str, list[str] | None] = {}
        for tensor, file in weight_map.items():
            names = expected.setdefault(file, [])
            assert names is not None
            names.append(tensor)
        for file, names in expected.items():
            if not (folder / file).is_file():
                raise InputError(
                    f"{folder / INDEX} says that {names[0] if names else ''} is in {file}, and {folder} has no such "
                    f"file: the shard is missing. Fetch the model again."
                )
        return expected
    if (folder / WEIGHTS).is_file():
        return {WEIGHTS: None}
    stray = sorted(p.name for p in folder.glob("*.safetensors")) + sorted(p.name for p in folder.glob("*.bin"))
    hint = f"it has {', '.join(stray[:3])}, but no index" if stray else "it holds no weights"
    raise InputError(f"{folder} has neither {WEIGHTS} nor {INDEX}: {hint}. Save the model as safetensors first.")


def _read_header(path: Path) -> tuple[dict[str, dict[str, Any]], int]:
    """A safetensors file's entries and where its data begin; checked against the file's size."""
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > size - 8:
            raise InputError(
                f"{path} is cut short: its header should have {length} bytes, the file has {size}. Fetch it again."
            )
        try:
            header = json.loads(file.read(length))
        except ValueError as error:
            raise InputError(f"{path} is no safetensors file: its header is not JSON ({error}).") from error
    header.pop("__metadata__", None)
    for name, entry in header.items():
        if entry["data_offsets"][1] > size - 8 - length:
            raise InputError(
                f"{path} is cut short: tensor {name} ends at byte {8 + length + entry['data_offsets'][1]}, the file at "
                f"{size}. Fetch it again."
            )
    return header, 8 + length


def _map_file(path: Path, header: dict[str, dict[str, Any]], begin: int) -> dict[str, torch.Tensor]:
    """Flat read-only views of a file's tensors; pages are read when they are touched."""
    with path.open("rb") as file:
        memory = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    found = {}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given buffer is not writable")
        for name, entry in header.items():
            first, last = entry["data_offsets"]
            count = prod(entry["shape"])
            dtype = DTYPES.get(entry["dtype"])
            if dtype is None:
                raise InputError(
                    f"Tensor {name} of {path} has dtype {entry['dtype']}; only {', '.join(DTYPES)} can be loaded."
                )
            if count * dtype.itemsize != last - first:
                raise InputError(f"Tensor {name} of {path}: {last - first} bytes do not fit shape {entry['shape']}.")
            found[name] = torch.frombuffer(memory, dtype=dtype, count=count, offset=begin + first)
    return found


def open_hf_folder(path: str | Path, hf_config: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    """Every canonical tensor of a folder of safetensors files (one, or sharded with an index), flat and memory-mapped.

    Raises InputError naming file and tensor for a missing or truncated shard, and for a tensor that is missing,
    unknown, of an unsupported dtype, or of another shape than ``hf_config`` says.
    """
    folder = Path(path)
    canonical = files_layout(hf_config).tensors
    ignored = (HEAD,) if tied(hf_config) else ()  # some tied checkpoints store the head all the same
    endings = family(hf_config).ignored
    tensors: dict[str, torch.Tensor] = {}
    for file, expected in _weight_files(folder).items():
        header, begin = _read_header(folder / file)
        for name in expected or ():
            if name not in header:
                raise InputError(f"{folder / INDEX} says that {name} is in {file}, which does not hold it.")
        wanted = {n: e for n, e in header.items() if n not in ignored and not n.endswith(endings)}
        for name, entry in wanted.items():
            if name not in canonical:
                raise InputError(
                    f"{folder / file} holds tensor {name}, which no {hf_config['model_type']} model with this "
                    f"config.json has."
                )
            if tuple(entry["shape"]) != canonical[name].shape:
                raise InputError(
                    f"Tensor {name} of {folder / file} has shape {entry['shape']}, but config.json makes it "
                    f"{list(canonical[name].shape)}: the folder mixes two models."
                )
        tensors |= _map_file(folder / file, wanted, begin)
    missing = [name for name in canonical if name not in tensors]
    if missing:
        note = " (config.json has tie_word_embeddings=false)" if missing == [HEAD] else ""
        raise InputError(
            f"{folder} does not hold tensor {missing[0]}{note}; {len(missing)} of {len(canonical)} are missing."
        )
    return tensors


def load_hf(
    path: str | Path,
    hf_config: Mapping[str, Any],
    sizes: ParallelSizes,
    rank: int,
    parameters: Mapping[str, torch.Tensor],
    *,
    fused_norms: bool = False,
    grouped_experts: bool = False,
) -> None:
    """Fill one Megatron rank's parameters (contiguous, by local name) from a Hugging Face folder.

    The rank reads its own segments only, through a proved plan; vocabulary padding becomes zero. Dtypes are cast to
    the parameters'. Raises InputError for a folder that does not hold the model (``open_hf_folder``), ProofError for
    parameters that are not those of the layout.
    """
    stored = open_hf_folder(path, hf_config)
    shard = megatron_layout(hf_config, sizes, fused_norms=fused_norms, grouped_experts=grouped_experts).ranks[rank]
    check_parameters(shard, {name: tuple(p.shape) for name, p in parameters.items()}, f"rank {rank}")
    files = files_layout(hf_config)
    needed = {segment.tensor for segment in shard.segments}
    tensors = {name: spec for name, spec in files.tensors.items() if name in needed}
    segments = tuple(s for s in files.ranks[0].segments if s.tensor in needed)
    source = Layout(tensors, (Shard({name: spec.shape for name, spec in tensors.items()}, segments),))
    destination = Layout(tensors, (shard,))
    plan = make_plan(source, destination)
    prove(plan, source, destination)
    local = {name: flat(p) for name, p in parameters.items()}
    pull(plan.copies, {(0, name): stored[name] for name in tensors}, local)
    for pad in shard.padding:
        local[pad.local][pad.offset : pad.offset + pad.size] = 0
