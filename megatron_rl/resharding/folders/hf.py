"""Hugging Face model folders on the disk: safetensors files with their index, config.json and tokenizer. No torch.

The file format is https://github.com/huggingface/safetensors#format: a length, a JSON header, the tensors' bytes.
"""

import json
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from fnmatch import fnmatch
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

from megatron_rl.errors import InputError
from megatron_rl.resharding.families import family
from megatron_rl.resharding.families.table import HEAD, aliases
from megatron_rl.resharding.folders.stored import FP8, ITEMSIZES, PAGE, TORCH_DTYPES, Place, Stored, UnlikeError
from megatron_rl.resharding.layouts.fp8 import QUANTISATION, SCALE, quantised_names, scale_shape
from megatron_rl.resharding.layouts.transformers import files_layout

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
FLOATS = ("BF16", "F16", "F32")
_LONGEST_HEADER = 100_000_000  # bytes, as the safetensors library has it
_COMPARED = 1 << 20  # bytes at a time
_CARRIED = (  # what a model folder holds besides weights and config.json
    "generation_config.json",
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab*",
    "merges.txt",
    "chat_template*",
    "*.tiktoken",
    "tekken.json",
    "*.model",
)


class Entry(NamedTuple):
    """A tensor in a safetensors file: bytes [begin, end) of the file."""

    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file; InputError when it is missing or is not one."""
    if not path.is_file():
        raise InputError(f"{path} does not exist: a Hugging Face model folder (config.json, *.safetensors) is needed.")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is not valid JSON ({error}). It may be cut short: fetch it again.") from error
    if not isinstance(content, dict):
        raise InputError(f"{path} holds a {type(content).__name__}; a JSON object is needed.")
    return content


def read_hf_config(folder: str | Path) -> dict[str, Any]:
    """The content of a model folder's config.json. Raises InputError naming what is missing or broken."""
    return read_json(Path(folder) / "config.json")


def weight_files(folder: Path) -> dict[str, list[str]]:
    """File name -> the tensors that the index expects in it (none without an index).

    Raises InputError when there are no weights, the index names a file that is not there, or a model.safetensors lies
    beside it: transformers would load that one, SGLang the index's files.
    """
    if (folder / INDEX).is_file():
        weight_map = read_json(folder / INDEX).get("weight_map")
        if not isinstance(weight_map, dict) or not weight_map:
            raise InputError(f"{folder / INDEX} has no weight_map: it cannot say which shard holds which tensor.")
        expected: dict[str, list[str]] = {}
        for tensor, file in weight_map.items():
            if not isinstance(file, str) or not (folder / file).is_file():
                raise InputError(
                    f"{folder / INDEX} says that {tensor} is in {file}, and {folder} has no such file: the shard is "
                    f"missing. Fetch the model again."
                )
            expected.setdefault(file, []).append(tensor)
        if (folder / WEIGHTS).is_file() and expected.keys() != {WEIGHTS}:
            raise InputError(
                f"{folder} has {WEIGHTS}, and {INDEX}, which names {min(expected.keys() - {WEIGHTS})}: programs differ "
                f"in which of them they load. Remove the one that is not meant."
            )
        return expected
    if (folder / WEIGHTS).is_file():
        return {WEIGHTS: []}
    stray = sorted(p.name for p in folder.glob("*.safetensors")) + sorted(p.name for p in folder.glob("*.bin"))
    hint = f"it has {', '.join(stray[:3])}, but no index" if stray else "it holds no weights"
    raise InputError(f"{folder} has neither {WEIGHTS} nor {INDEX}: {hint}. Save the model as safetensors first.")


def _whole(numbers: object) -> tuple[int, ...]:
    """A list from JSON as whole numbers that are not negative; ValueError when it is none."""
    if not isinstance(numbers, list) or not all(type(n) is int and n >= 0 for n in numbers):
        raise ValueError(f"{numbers!r} are no whole numbers")
    return tuple(numbers)


def read_header(path: Path) -> dict[str, Entry]:
    """A safetensors file's tensors.

    Raises InputError naming file and tensor when the header does not fit the file, whose every byte behind the header
    has to belong to one tensor.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > size - 8:
            raise InputError(
                f"{path} is cut short: its header should have {length} bytes, the file has {size}. Fetch it again."
            )
        if length > _LONGEST_HEADER:
            raise InputError(f"{path} is no safetensors file: its header would have {length} bytes.")
        try:
            header = json.loads(file.read(length))
            header.pop("__metadata__", None)
        except (ValueError, RecursionError, AttributeError, TypeError) as error:
            raise InputError(f"{path} is no safetensors file: its header is not JSON ({error}).") from error
    entries = {}
    for name, entry in header.items():
        try:
            begin, end = (8 + length + n for n in _whole(entry["data_offsets"]))
            entries[name] = Entry(str(entry["dtype"]), _whole(entry["shape"]), begin, end)
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(f"{path} is damaged: its header does not describe tensor {name}.") from error
        if end > size:
            raise InputError(
                f"{path} is cut short: tensor {name} ends at byte {end}, the file at {size}. Fetch it again."
            )
    at = 8 + length
    for name, item in sorted(entries.items(), key=lambda pair: (pair[1].begin, pair[1].end)):
        if item.begin != at or item.end < at:
            raise InputError(
                f"{path} is damaged: tensor {name} is said to be bytes {item.begin} to {item.end}, and what stands "
                f"before it ends at {at}. Fetch it again."
            )
        at = item.end
    if at != size:
        raise InputError(f"{path} is damaged: its last tensor ends at byte {at}, the file at {size}. Fetch it again.")
    return entries


def read_headers(folder: Path) -> Iterator[tuple[Path, dict[str, Entry]]]:
    """Every file of weights and the tensors in it.

    Raises InputError naming file and tensor unless each tensor is stored once, in the file that the index names.
    """
    for file, expected in weight_files(folder).items():
        path, listed = folder / file, set(expected)
        header = read_header(path)
        for name in expected:
            if name not in header:
                raise InputError(f"{folder / INDEX} says that {name} is in {file}, which does not hold it.")
        for name in header if expected else ():
            if name not in listed:
                raise InputError(
                    f"{path} holds tensor {name}, and {INDEX} does not say so: they are not of one model. Fetch it "
                    f"again."
                )
        yield path, header


def _check(path: Path, name: str, entry: Entry, shape: tuple[int, ...], dtypes: Collection[str]) -> None:
    if entry.dtype not in dtypes:
        raise InputError(f"Tensor {name} of {path} has dtype {entry.dtype}; only {', '.join(dtypes)} can be loaded.")
    if entry.shape != shape:
        raise UnlikeError(
            f"Tensor {name} of {path} has shape {list(entry.shape)}, but config.json makes it {list(shape)}: the "
            f"folder mixes two models."
        )
    if prod(entry.shape) * ITEMSIZES[entry.dtype] != entry.end - entry.begin:
        raise InputError(f"Tensor {name} of {path}: {entry.end - entry.begin} bytes do not fit shape {list(shape)}.")


def _check_copy(name: str, path: Path, entry: Entry, original: str, place: Place, shape: tuple[int, ...]) -> None:
    """Raises InputError unless a tensor that is stored a second time has the dtype, shape and bytes of the original."""
    size = entry.end - entry.begin
    same = (entry.dtype, entry.shape, size) == (place.dtype, shape, prod(shape) * place.itemsize)
    if same:
        with path.open("rb") as one, place.path.open("rb") as other:
            one.seek(entry.begin)
            other.seek(place.offset)
            sizes = (min(_COMPARED, size - done) for done in range(0, size, _COMPARED))
            same = all(one.read(n) == other.read(n) for n in sizes)
    if not same:
        advice = (
            "Set tie_word_embeddings=false there if it is a weight of its own, or remove it from the file."
            if name == HEAD
            else "It cannot be converted as a weight of its own; remove it from the file if it is none."
        )
        raise InputError(
            f"Tensor {name} of {path} is not equal to {original}, of which this config.json makes it a copy. {advice}"
        )


def open_stored(folder: Path, hf_config: Mapping[str, Any], *, fp8: bool = False) -> Stored:
    """Where every canonical tensor of a folder of safetensors files (one, or sharded with an index) lies.

    ``fp8``: block-quantised weights are welcome. Raises InputError naming file and tensor for a missing or damaged
    shard, for a tensor that is missing, unknown, of an unsupported dtype, or of another shape than ``hf_config``
    says, for one stored a second time (``aliases``) with other bytes, which are all compared, and for scales of a
    weight that is not quantised.
    """
    layout = files_layout(hf_config)
    canonical = layout.tensors
    scales = {name + SCALE: name for name in quantised_names(hf_config)} if fp8 else {}
    originals = aliases(family(hf_config), hf_config)
    endings = family(hf_config).ignored
    found: dict[str, Place] = {}
    found_scales: dict[str, Place] = {}
    copies: dict[str, tuple[Path, Entry]] = {}
    for path, header in read_headers(folder):
        for name, entry in header.items():
            place = Place(path, entry.begin, entry.dtype)
            if name.endswith(endings):
                continue
            if name in originals:
                copies[name] = path, entry
            elif name in canonical:
                _check(path, name, entry, canonical[name].shape, (*FLOATS, FP8) if fp8 else FLOATS)
                found[name] = place
            elif name in scales:
                _check(path, name, entry, scale_shape(canonical[scales[name]].shape), ("F32",))
                found_scales[scales[name]] = place
            else:
                raise UnlikeError(
                    f"{path} holds tensor {name}, which no {hf_config['model_type']} model with this config.json has."
                )
    missing = [name for name in canonical if name not in found]
    missing += [name + SCALE for name, place in found.items() if place.dtype == FP8 and name not in found_scales]
    if missing:
        note = " (config.json has tie_word_embeddings=false)" if missing == [HEAD] else ""
        raise UnlikeError(
            f"{folder} does not hold tensor {missing[0]}{note}; {len(missing)} of {len(canonical)} are missing."
        )
    for name, place in found_scales.items():
        if found[name].dtype != FP8:
            raise InputError(
                f"{place.path} holds scales of {name}, whose dtype is {found[name].dtype} and not {FP8}: the folder "
                f"mixes two models."
            )
    for name, (path, entry) in copies.items():
        original = originals[name]
        _check_copy(name, path, entry, original, found[original], canonical[original].shape)
    return Stored(folder, hf_config, layout, found, found_scales)


def divide(sizes: Mapping[str, int], limit: int) -> list[list[str]]:
    """Tensors by file, in order, each file at most ``limit`` bytes unless a single tensor is larger."""
    files: list[list[str]] = [[]]
    filled = 0
    for name, size in sizes.items():
        if filled and filled + size > limit:
            files.append([])
            filled = 0
        files[-1].append(name)
        filled += size
    return files


def file_name(number: int, count: int) -> str:
    """The name of weight file ``number`` (from 1) of ``count``."""
    return WEIGHTS if count == 1 else f"model-{number:05d}-of-{count:05d}.safetensors"


def page_shift(order: Iterable[str], sizes: Mapping[str, int], sources: Mapping[str, int]) -> tuple[int, int]:
    """Where tensors that follow each other should begin, modulo the page size, for most bytes to keep their position
    modulo it; and how many bytes then do."""
    shifts, begin = Counter({0: 0}), 0
    for name in order:
        if name in sources:
            shifts[(sources[name] - begin) % PAGE] += sizes[name]
        begin += sizes[name]
    shift = max((s for s in shifts if s % 8 == 0), key=lambda s: shifts[s])
    return shift, shifts[shift]


def header_bytes(
    tensors: Iterable[tuple[str, str, tuple[int, ...]]], sources: Mapping[str, int] | None = None
) -> tuple[bytes, dict[str, int]]:
    """A safetensors header for (name, dtype, shape), and where in the file each tensor begins.

    ``sources``: positions in other files from which tensors are to be copied. The header is padded (always to 8 bytes)
    so that most bytes keep their position modulo the page size, between which the kernel copies fastest.
    """
    entries: dict[str, object] = {"__metadata__": {"format": "pt"}}
    begins, sizes, begin = {}, {}, 0
    for name, dtype, shape in tensors:
        sizes[name] = prod(shape) * ITEMSIZES[dtype]
        entries[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, begin + sizes[name]]}
        begins[name] = begin
        begin += sizes[name]
    text = json.dumps(entries, separators=(",", ":")).encode()
    shift, kept = page_shift(sizes, sizes, sources or {})
    text += b" " * ((shift - 8 - len(text)) % (PAGE if kept else 8))
    header = len(text).to_bytes(8, "little") + text
    return header, {name: len(header) + at for name, at in begins.items()}


def carried(origin: Path | None) -> list[Path]:
    """The files of a model folder that go along with its weights: tokenizer and generation config."""
    files = sorted(origin.iterdir()) if origin is not None else []
    return [file for file in files if file.is_file() and any(fnmatch(file.name, pattern) for pattern in _CARRIED)]


def small_files(
    hf_config: Mapping[str, Any], dtype: str, origin: Path | None, *, fp8: bool = False
) -> dict[str, bytes]:
    """What a folder holds besides weights and their index, by file name.

    config.json for weights of this dtype (with ``fp8``, of all but the quantised ones), and the tokenizer files and
    generation_config.json of the folder ``origin``.
    """
    found = {file.name: file.read_bytes() for file in carried(origin)}
    config = {"architectures": [family(hf_config).architecture], **hf_config}
    key = "torch_dtype" if "torch_dtype" in config else "dtype"  # transformers 4 and 5
    config[key] = TORCH_DTYPES[dtype]
    config.pop("quantization_config", None)
    if fp8:
        config["quantization_config"] = QUANTISATION
    return found | {"config.json": json.dumps(config, indent=2, sort_keys=True).encode() + b"\n"}


def index_file(files: Mapping[str, Iterable[str]], total: int) -> bytes:
    """The index of weights that lie in several files: file -> tensors; ``total`` bytes."""
    weight_map = {name: file for file, names in files.items() for name in names}
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    return json.dumps(index, indent=2).encode() + b"\n"


def quantised(hf_config: Mapping[str, Any]) -> bool:
    """True when config.json says that the weights are block-quantised FP8. Raises InputError for another scheme."""
    scheme = hf_config.get("quantization_config")
    if scheme is None:
        return False
    if not isinstance(scheme, Mapping):
        raise InputError(f"config.json's quantization_config is {scheme!r}; a JSON object is needed.")
    for key in ("quant_method", "fmt", "weight_block_size"):
        wanted = QUANTISATION[key]
        if scheme.get(key, wanted) != wanted:
            raise InputError(
                f"config.json's quantization_config has {key}={scheme[key]!r}; only {wanted!r} can be converted."
            )
    return True
