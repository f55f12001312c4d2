"""Hugging Face model folders on the disk: safetensors files with their index, and config.json. No torch."""

from collections.abc import Collection, Iterable, Mapping
from contextlib import suppress
from math import prod
from pathlib import Path
from typing import Any

from megatron_rl.errors import InputError, refuse
from megatron_rl.resharding.families import family, predictor_layers
from megatron_rl.resharding.families.table import HEAD, IGNORED, PREDICTORS, aliases
from megatron_rl.resharding.folders.mistaken import mistaken
from megatron_rl.resharding.folders.safetensors import Entry, read_header
from megatron_rl.resharding.folders.stored import FP8, ITEMSIZES, Place, Stored, UnlikeError
from megatron_rl.resharding.layouts.fp8 import QUANTISATION, SCALE, quantised_names, scale_shape
from megatron_rl.resharding.layouts.transformers import files_layout
from megatron_rl.system.files import read_json

CONFIG = "config.json"
WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
FLOATS = ("BF16", "F16", "F32")
_COMPARED = 1 << 20  # bytes at a time
_LISTED = 5  # broken files that are named


def read_hf_config(folder: str | Path) -> dict[str, Any]:
    """The content of a model folder's config.json. Raises InputError naming what is missing or broken."""
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(mistaken(folder))
    if not (folder / CONFIG).is_file():
        raise InputError(f"{folder / CONFIG} does not exist. {mistaken(folder)}")
    return read_json(folder / CONFIG)


def model_config(folder: str | Path) -> dict[str, Any]:
    """As ``read_hf_config``, with multi-token prediction layers only if the folder's weights, if it has any, have them.

    Only names are looked at: of the index, or of the one file's header.
    """
    folder = Path(folder)
    config = read_hf_config(folder)
    if not predictor_layers(config):
        return config
    if (folder / INDEX).is_file():
        names = _weight_map(folder).keys()
    elif (folder / WEIGHTS).is_file():
        names = read_header(folder / WEIGHTS).keys()
    else:
        return config
    return with_stored_predictors(config, names)


def with_stored_predictors(hf_config: Mapping[str, Any], names: Iterable[str]) -> dict[str, Any]:
    """A config.json for tensors of these names: without multi-token prediction layers where no tensor is of one.

    transformers has no such layers. A model that it has saved is without their tensors, while config.json still
    counts them.
    """
    prefixes = tuple(f"model.layers.{layer}." for layer in predictor_layers(hf_config))
    if not prefixes or any(name.startswith(prefixes) and not name.endswith(IGNORED) for name in names):
        return dict(hf_config)
    return {**hf_config, PREDICTORS: 0}


def _weight_map(folder: Path) -> dict[str, Any]:
    """The index: tensor -> file."""
    found = read_json(folder / INDEX).get("weight_map")
    if not isinstance(found, dict) or not found:
        raise InputError(f"{folder / INDEX} has no weight_map: it cannot say which shard holds which tensor.")
    return found


def weight_files(folder: Path) -> dict[str, list[str]]:
    """File name -> the tensors that the index expects in it (none without an index).

    Raises InputError when there are no weights, the index names files that are not there, or a model.safetensors lies
    beside it: transformers would load that one, SGLang the index's files.
    """
    if (folder / INDEX).is_file():
        expected: dict[str, list[str]] = {}
        for tensor, file in _weight_map(folder).items():
            expected.setdefault(str(file), []).append(tensor)
        if missing := [file for file in expected if not (folder / file).is_file()]:
            more = f" (and so are {len(missing) - 1} others)" if len(missing) > 1 else ""
            raise InputError(
                f"{folder / INDEX} says that {expected[missing[0]][0]} is in {missing[0]}, and {folder} has no such "
                f"file: the shard is missing{more}. Fetch the model again."
            )
        if (folder / WEIGHTS).is_file() and expected.keys() != {WEIGHTS}:
            raise InputError(
                f"{folder} has {WEIGHTS}, and {INDEX}, which names {min(expected.keys() - {WEIGHTS})}: programs differ "
                f"in which of them they load. Remove the one that is not meant."
            )
        return expected
    if (folder / WEIGHTS).is_file():
        return {WEIGHTS: []}
    raise InputError(mistaken(folder))


def read_headers(folder: Path) -> dict[Path, dict[str, Entry]]:
    """Every file of weights and the tensors in it, without those that are no weights (``IGNORED``).

    Raises InputError naming the files that are damaged, or file and tensor unless each tensor is stored once, in the
    file that the index names.
    """
    files = weight_files(folder)
    found: dict[Path, dict[str, Entry]] = {}
    damaged: list[str] = []
    for file in files:
        try:
            found[folder / file] = read_header(folder / file)
        except InputError as error:
            damaged.append(str(error))
    if len(damaged) > _LISTED:
        damaged[_LISTED:] = [f"{len(damaged) - _LISTED} more files of {folder} are damaged, too."]
    refuse(damaged)
    if (folder / INDEX).is_file():
        _check_index(folder, {folder / file: names for file, names in files.items()}, found)
    return found


def _check_index(folder: Path, expected: Mapping[Path, list[str]], found: Mapping[Path, dict[str, Entry]]) -> None:
    """Raises InputError unless the index says where each tensor is; drops those that are no weights from ``found``."""
    index = folder / INDEX
    places = {name: path for path, names in expected.items() for name in names}
    for path, names in expected.items():
        if absent := next((name for name in names if name not in found[path] and not name.endswith(IGNORED)), None):
            where = next((f" It is in {other.name}: put that right." for other in found if absent in found[other]), "")
            raise InputError(f"{index} says that {absent} is in {path.name}, which does not hold it.{where}")
    for path, header in found.items():
        for name in sorted(header.keys() - expected[path]):
            if name.endswith(IGNORED):
                del header[name]
            elif name not in places:
                raise InputError(
                    f"{path} holds tensor {name}, which {INDEX} does not list: add it to the weight_map there if it is "
                    f"of the model, or remove it from the file."
                )
            else:
                raise InputError(
                    f"{path} holds tensor {name}, which {INDEX} says is in {places[name].name}, where it is, too: "
                    f"programs differ in which of the two they load. Remove the one that is not meant from its file."
                )


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


def _check_copy(
    name: str, path: Path, entry: Entry, original: str, place: Place, shape: tuple[int, ...], thorough: bool
) -> None:
    """Raises InputError unless a tensor that is stored a second time has the dtype, shape and bytes of the original."""
    size = entry.end - entry.begin
    same = (entry.dtype, entry.shape, size) == (place.dtype, shape, prod(shape) * place.itemsize)
    if same:
        with path.open("rb") as one, place.path.open("rb") as other:
            one.seek(entry.begin)
            other.seek(place.offset)
            compared = size if thorough else min(size, _COMPARED)
            sizes = (min(_COMPARED, compared - done) for done in range(0, compared, _COMPARED))
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


def open_stored(folder: Path, hf_config: Mapping[str, Any], *, fp8: bool = False, thorough: bool = True) -> Stored:
    """Where every canonical tensor of a folder of safetensors files (one, or sharded with an index) lies.

    ``fp8``: block-quantised weights are welcome. The result's ``hf_config`` counts multi-token prediction layers only
    if there are any (``with_stored_predictors``). A tensor that is stored under an alias alone (``aliases``), as the
    head of a tied model may be, is taken.

    Raises InputError naming file and tensor for a missing or damaged shard, for a tensor that is missing, unknown, of
    an unsupported dtype, or of another shape than ``hf_config`` says, for one stored a second time with other bytes,
    of which all are compared (not ``thorough``: the first MiB), and for scales of a weight that is not quantised.
    """
    headers = read_headers(folder)
    hf_config = with_stored_predictors(hf_config, (name for header in headers.values() for name in header))
    layout = files_layout(hf_config)
    canonical = layout.tensors
    scales = {name + SCALE: name for name in quantised_names(hf_config)} if fp8 else {}
    originals = aliases(family(hf_config), hf_config)
    dtypes = (*FLOATS, FP8) if fp8 else FLOATS
    found: dict[str, Place] = {}
    found_scales: dict[str, Place] = {}
    copies: dict[str, tuple[Path, Entry]] = {}
    for path, header in headers.items():
        for name, entry in header.items():
            place = Place(path, entry.begin, entry.dtype)
            if name in originals:
                copies[name] = path, entry
            elif name in canonical:
                _check(path, name, entry, canonical[name].shape, dtypes)
                found[name] = place
            elif name in scales:
                _check(path, name, entry, scale_shape(canonical[scales[name]].shape), FLOATS)
                found_scales[scales[name]] = place
            elif not name.endswith(IGNORED):
                raise UnlikeError(
                    f"{path} holds tensor {name}, which no {hf_config['model_type']} model with this config.json has."
                )
    for name in [name for name in copies if originals[name] not in found]:
        if (original := originals[name]) not in found:
            path, entry = copies.pop(name)
            _check(path, name, entry, canonical[original].shape, dtypes)
            found[original] = Place(path, entry.begin, entry.dtype)
    _check_complete(folder, hf_config, canonical, found, found_scales)
    for name, (path, entry) in copies.items():
        original = originals[name]
        _check_copy(name, path, entry, original, found[original], canonical[original].shape, thorough)
    return Stored(folder, hf_config, layout, found, found_scales)


def _check_complete(
    folder: Path,
    hf_config: Mapping[str, Any],
    canonical: Collection[str],
    found: Mapping[str, Place],
    scales: Mapping[str, Place],
) -> None:
    """Raises InputError unless every tensor is there, and scales of the FP8 ones and of no others."""
    missing = [name for name in canonical if name not in found]
    missing += [name + SCALE for name, place in found.items() if place.dtype == FP8 and name not in scales]
    if missing:
        tie = "tie_word_embeddings=false" if "tie_word_embeddings" in hf_config else "no tie_word_embeddings"
        note = f" (config.json has {tie})" if missing == [HEAD] else ""
        raise UnlikeError(
            f"{folder} does not hold tensor {missing[0]}{note}; {len(missing)} of {len(canonical)} are missing."
        )
    for name, place in scales.items():
        if found[name].dtype != FP8:
            raise InputError(
                f"{place.path} holds scales of {name}, whose dtype is {found[name].dtype} and not {FP8}: the folder "
                f"mixes two models."
            )


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


def refuse_quantised(folder: Path, hf_config: Mapping[str, Any]) -> None:
    """Raises InputError when a folder's weights are quantised: training starts from the numbers themselves."""
    scheme = hf_config.get("quantization_config")
    if scheme is None:
        return
    method = scheme.get("quant_method") if isinstance(scheme, Mapping) else scheme
    remedy, convertible = f"Name the model's release in bfloat16, of which {folder} was made.", False
    with suppress(InputError):  # FP8 of a kind that is not read
        convertible = method == QUANTISATION["quant_method"] and quantised(hf_config)
    if convertible:
        remedy = (
            f"`megatron-rl convert hf-to-megatron {folder} A` and `megatron-rl convert megatron-to-hf A B` make a "
            "model in bfloat16 of it, B."
        )
    raise InputError(
        f"{folder}/{CONFIG} has a quantization_config (quant_method={method!r}): training starts from weights that are "
        f"not quantised. {remedy}"
    )
