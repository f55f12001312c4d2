"""What a folder is that was given as a Hugging Face model folder and is none. No torch."""

from pathlib import Path

from megatron_rl.resharding.folders.torch_dist.reader import is_torch_dist
from megatron_rl.system.files import leads_nowhere

_SNAPSHOTS = "snapshots"  # of the hub's cache: models--owner--name/snapshots/commit
_RUN = ("checkpoints", "hf")  # of a run: its checkpoints, and the policy that it has trained
_SHOWN = 4  # of the checkpoints in a folder
_LATEST = "latest_checkpointed_iteration.txt"  # of Megatron's: the folders of its checkpoints are beside it


def mistaken(folder: Path) -> str:
    """What the path is instead, and what to do about it, in a sentence or two."""
    if folder.is_file():
        return f"{folder} is a file: name the model's folder (config.json, *.safetensors and tokenizer files)."
    if not folder.is_dir():
        return (
            f"There is no such folder as {folder}: give a local Hugging Face folder (config.json, *.safetensors and "
            "tokenizer files); `hf download` fetches one."
        )
    if (folder / "adapter_config.json").is_file():
        return (
            f"{folder} holds a LoRA adapter (adapter_config.json) and not a model: merge it into its base model (peft: "
            "merge_and_unload, then save_pretrained), and name the folder of the result."
        )
    return _checkpoint(folder) or _elsewhere(folder) or _other_format(folder)


def _checkpoint(folder: Path) -> str:
    """Megatron's."""
    found = folder
    if (folder / _LATEST).is_file():
        found = max(folder.glob("iter_*"), default=folder)
    elif not is_torch_dist(folder):
        return ""
    if not is_torch_dist(found):
        return f"{folder} is a Megatron checkpoint of another format than torch_dist, the only one that is read."
    model = "" if (found / "huggingface").is_dir() else " --model THE_HUGGING_FACE_FOLDER_IT_WAS_MADE_FROM"
    return (
        f"{folder} is a Megatron checkpoint: `megatron-rl convert megatron-to-hf {found} NEW_FOLDER{model}` makes a "
        "Hugging Face model of it."
    )


def _elsewhere(folder: Path) -> str:
    """The model is in a folder inside of this one."""
    if (folder / _SNAPSHOTS).is_dir():
        inner = sorted((folder / _SNAPSHOTS).iterdir())
        main = folder / "refs" / "main"
        if main.is_file():
            named = folder / _SNAPSHOTS / main.read_text(encoding="utf-8", errors="replace").strip()
            inner = [named] if named in inner else inner
        where = f"name {' or '.join(map(str, inner[:3]))}" if inner else "it is empty; fetch the model again"
        return f"{folder} is a folder of the hub's cache, which has the model in {_SNAPSHOTS}/: {where}."
    inner = sorted(path.parent for path in folder.glob("*/config.json"))
    if inner:
        trained = folder / _RUN[1]
        more = f" or another of {len(inner)}" if len(inner) > 1 else ""
        meant = f"{trained}, the policy that was trained," if trained in inner else f"{inner[-1]}"
        return f"{folder} is no model itself, but {meant} is one: name that folder{more}."
    return checkpoints(folder).lstrip()


def checkpoints(folder: Path) -> str:
    """The Megatron checkpoints inside a folder, or inside a run's, in a sentence after a space; "" without any."""
    for place in (folder, folder / _RUN[0]):
        inner = sorted(path for path in place.glob("*/") if is_torch_dist(path))
        if inner:
            there = ", ".join(path.name for path in inner[-_SHOWN:])
            more = f", and {len(inner) - _SHOWN} more" if len(inner) > _SHOWN else ""
            return f" {place} has checkpoints in it ({there}{more}): name one of them, such as {inner[-1]}."
    return ""


def _other_format(folder: Path) -> str:
    """Weights of another kind, or none."""
    if broken := leads_nowhere(folder, "config.json", "*.safetensors", "*.index.json"):
        return broken
    if any((folder / name).is_file() for name in ("model.safetensors", "model.safetensors.index.json")):
        return f"{folder} has weights: fetch the model's config.json, too."
    names = sorted(path.name for path in folder.iterdir() if path.is_file())
    stray = [name for name in names if name.endswith(".safetensors")]
    if len(stray) == 1:
        return (
            f"{folder} has {stray[0]}, and neither model.safetensors nor an index: rename it to model.safetensors if "
            "it is the whole model, or fetch the missing files."
        )
    if stray:
        return (
            f"{folder} has {', '.join(stray[:3])}, but no index (model.safetensors.index.json): fetch it, or save the "
            "model again."
        )
    if gguf := [name for name in names if name.endswith(".gguf")]:
        return (
            f"{folder} has {gguf[0]}: GGUF files are for inference with llama.cpp. Fetch the model's original release "
            "with *.safetensors."
        )
    if other := [name for name in names if name.endswith((".bin", ".pt", ".pth"))]:
        return (
            f"{folder} has {other[0]} and no *.safetensors: load the model with transformers and save it again "
            "(save_pretrained), which writes them."
        )
    return f"{folder} holds no weights (*.safetensors): fetch the model again."
