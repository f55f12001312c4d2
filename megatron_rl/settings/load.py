"""From a recipe and overrides to a ``Config``: every problem found is reported, not only the first."""

import dataclasses
import difflib
import functools
import typing
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from megatron_rl.algorithms.published import settled
from megatron_rl.config import Config
from megatron_rl.errors import InputError
from megatron_rl.settings.documented import TYPES
from megatron_rl.settings.recipes import recipe
from megatron_rl.settings.written import Written, read, read_value
from megatron_rl.system.processes import program

_ELSEWHERE = {  # what other trainers call it, by the last word
    "precision": ["model.dtype", "actor.fp8"],
    "bf16": ["model.dtype"],
    "learning_rate": ["actor.optimizer.lr"],
    "num_generations": ["rollout.group_size"],
    "train_batch_size": ["rollout.prompts_per_step"],
    "max_response_length": ["rollout.max_new_tokens"],
    "max_completion_length": ["rollout.max_new_tokens"],
    "max_prompt_length": ["data.max_prompt_tokens"],
    "kl_loss_coef": ["algorithm.kl_coef"],
    "total_epochs": ["run.steps"],
    "save_freq": ["run.save_every"],
    "test_freq": ["evaluation.every"],
}
RETIRED = {"algorithm.advantage": "grpo"}  # options that had one value only: runs that were written with it go on


@functools.cache
def options(cls: type = Config, prefix: str = "") -> dict[str, Any]:
    """Every option: full dotted key -> declared type. A dictionary-valued option takes any entry below its key."""
    found: dict[str, Any] = {}
    hints = typing.get_type_hints(cls)
    for field in dataclasses.fields(cls):
        key, hint = f"{prefix}{field.name}", hints[field.name]
        found |= options(hint, f"{key}.") if dataclasses.is_dataclass(hint) else {key: hint}  # type: ignore[arg-type]
    return found


def load(name: str, overrides: Sequence[str] = ()) -> tuple[Config, list[str]]:
    """The configuration of recipe ``name`` (``module.function`` or a YAML file) with ``key=value`` overrides.

    Returns it with one message per problem; what is wrong is left as the recipe had it, so that the
    rest can still be checked. Raises ``InputError`` when there is no such recipe or the file cannot be read.
    """
    problems: list[str] = []
    tree, settings = _base(name)
    for key, value in settings:
        if key == "model.path" and value.value(str):
            _take_model(tree, [other for other, _ in settings])
        _assign(tree, key, value, f"{name}: {key}", problems)
    for item in overrides:
        key, equals, text = item.partition("=")
        key = key.strip()
        if not equals or not key:
            problems.append(f"{item!r} is no override: write key=value, for example run.steps=10.")
            continue
        if key == "model.path" and text:
            _take_model(tree, overrides)
        _assign(tree, key, read_value(text), item, problems)
    return _to_object(tree), problems


def _take_model(tree: DictConfig, written: Iterable[str]) -> None:
    """A model of the user's stands in place of the recipe's random one, unless options of that are written, too."""
    if not any(other.startswith("model.architecture") for other in written):
        tree.model.architecture = {}


def settle(config: Config) -> Config:
    """The same tree, in which the algorithm's own values stand in place of null and auto."""
    config.algorithm, dynamic = settled(config.algorithm), config.rollout.dynamic
    dynamic.filter = config.algorithm.name == "dapo" if dynamic.filter is None else dynamic.filter
    return config


def to_yaml(config: Config) -> str:
    """The whole tree as YAML, which ``from_yaml`` reads back."""
    return OmegaConf.to_yaml(OmegaConf.structured(config))


def from_yaml(path: Path) -> Config:
    """The configuration in a YAML file; raises ``InputError`` naming every problem."""
    config, problems = load(str(path))
    if problems:
        raise InputError(" ".join(problems))
    return config


def _base(path: str) -> tuple[DictConfig, list[tuple[str, Written]]]:
    """The recipe's own tree, and what a YAML file sets on top of it."""
    if not path.endswith((".yaml", ".yml")):
        return _call(path), []
    content = _read(Path(path))
    named = content.pop("recipe", None)
    name = named.value(str) if named else None
    if name is not None and (not isinstance(name, str) or name.endswith((".yaml", ".yml"))):
        raise InputError(f"{path}: recipe: {name!r} must name a recipe function; `{program()} recipes` lists them.")
    return (_call(name) if name else OmegaConf.structured(Config)), list(_leaves("", content.items()))


def _call(name: str) -> DictConfig:
    try:
        return OmegaConf.structured(recipe(name))
    except OmegaConfBaseException as error:
        raise InputError(f"recipe {name}: {_first_line(error)}.") from error


def _read(path: Path) -> dict[str, Written]:
    if path.is_dir():
        raise InputError(f"{path} is a folder: give the YAML file in it that is the configuration.")
    if not path.is_file():
        raise InputError(f"The configuration file {path} does not exist.")
    try:
        written = read(path.read_text(encoding="utf-8-sig"))
        if written is None:
            return {}
        written.value(Any)  # every error of the file at once
        content = written.entries()
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise InputError(f"{path} is not valid YAML: {' '.join(str(error).split())}.") from error
    except OSError as error:
        raise InputError(f"{path} is not a configuration file: {_first_line(error)}.") from error
    if content is None:
        raise InputError(f"{path} holds no mapping; a configuration maps groups, such as run, to their options.")
    return dict(content)


def _leaves(prefix: str, tree: Iterable[tuple[str, Written]]) -> Iterator[tuple[str, Written]]:
    """A nested mapping as dotted keys, as deep as the rooms go."""
    for name, value in tree:
        key = f"{prefix}{name}"
        if _has_options(key) and (below := value.entries()) is not None:
            yield from _leaves(f"{key}.", below)
        else:
            yield key, value


def _has_options(key: str) -> bool:
    return key in _groups()


@functools.cache
def _groups() -> frozenset[str]:
    """What options are grouped by: their dotted keys without the last word, or the last few."""
    return frozenset(option[:at] for option in options() for at, sign in enumerate(option) if sign == ".")


def _option(key: str) -> str | None:
    """The option that a dotted key sets, itself or an entry of."""
    if key in options():
        return key
    starts = (key[:at] for at, sign in enumerate(key) if sign == ".")
    return next((start for start in starts if _is_dict(options().get(start))), None)


def _assign(tree: DictConfig, key: str, written: Written, said: str, problems: list[str]) -> None:
    """Set one option, or one entry of a dictionary-valued one; ``said`` is how the user wrote it."""
    if _has_options(key):
        if (entries := written.entries()) is not None:
            for name, below in _leaves(f"{key}.", entries):
                _assign(tree, name, below, said, problems)
        else:
            problems.append(f"{said}: {key} holds several options; set one of them: {_siblings(f'{key}.')}.")
        return
    option = _option(key)
    if key in RETIRED and written.value(str) == RETIRED[key]:
        return
    if option is None:
        problems.append(_unknown(key, said))
        return
    hint, entry = options()[option], key[len(option) + 1 :]
    try:
        value = written.entry(_entry_hint(hint)) if entry else written.value(hint)
    except (yaml.YAMLError, ValueError):
        problems.append(f"{said}: the value is not valid YAML; quote it.")
        return
    if "${" in str(value):
        problems.append(f"{said}: references to other options (${{…}}) are not resolved; write the value itself.")
        return
    try:
        if _is_dict(hint):
            _assign_entries(tree, option, hint, _entry(hint, entry, value) if entry else value)
        else:
            OmegaConf.update(tree, option, value)
    except (OmegaConfBaseException, TypeError):
        problems.append(f"{said}: {option} takes {TYPES[hint]}, not {value!r}.")


def _assign_entries(tree: DictConfig, option: str, hint: Any, entries: Any) -> None:
    """Merge ``entries`` into a dictionary-valued option; a null removes a name, null alone all of them.

    TypeError for a wrong type.
    """
    held: dict[str, Any] = OmegaConf.to_container(OmegaConf.select(tree, option))  # type: ignore[assignment]
    if entries is None:
        entries, held = {}, {}
    if not isinstance(entries, dict):
        raise TypeError
    inner = typing.get_args(hint)[1]
    for name, value in entries.items():
        name = str(name)
        if inner is Any:
            _merge(held, {name: value})
        elif value is None:
            held.pop(name, None)
        elif inner is float and isinstance(value, int | float) and not isinstance(value, bool):
            held[name] = float(value)
        elif inner is str and isinstance(value, str):
            held[name] = value
        elif _is_dict(inner) and isinstance(value, dict):
            held[name] = {**held.get(name, {}), **value}
        else:
            raise TypeError
    OmegaConf.update(tree, option, held, merge=False)


def _entry(hint: Any, path: str, value: Any) -> dict[str, Any]:
    """What a dotted key below a dictionary-valued option means. A reward's name may itself be a dotted path."""
    inner = typing.get_args(hint)[1]
    if inner is Any:
        first, _, rest = path.partition(".")
        return {first: _entry(hint, rest, value) if rest else value}
    if _is_dict(inner) and not isinstance(value, dict) and value is not None:
        name, _, argument = path.rpartition(".")
        return {name: {argument: value}} if name else {path: value}
    return {path: value}


def _entry_hint(hint: Any) -> Any:
    """The type of what a dotted key below a dictionary-valued option is set to."""
    inner = typing.get_args(hint)[1]
    return Any if _is_dict(inner) else inner


def _merge(into: dict[str, Any], new: dict[str, Any]) -> None:
    for key, value in new.items():
        if isinstance(value, dict) and isinstance(into.get(key), dict):
            _merge(into[key], value)
        else:
            into[key] = value


def _is_dict(hint: Any) -> bool:
    return typing.get_origin(hint) is dict


def _unknown(key: str, said: str) -> str:
    last = key.rpartition(".")[2]
    same_name = [option for option in options() if option.rpartition(".")[2] == last]
    count = 3 if same_name and key == last else 1  # a bare name may mean any of its namesakes
    group = key.rpartition(".")[0]
    beside = [option for option in options() if group and option.rpartition(".")[0] == group]
    alike = difflib.get_close_matches(key, beside, 1, 0.9)  # a slip in one of its group's names
    ending = sorted((o for o in same_name if key != last and o.endswith(key)), key=_beside_rl)  # its room was left out
    near = ending or alike or _ELSEWHERE.get(last) or difflib.get_close_matches(key, same_name or options(), count, 0.0)
    nearest = " or ".join(near)
    group = key
    while group and not _has_options(group):
        group = group.rpartition(".")[0]
    if group:
        return f"{said}: there is no option {key}; did you mean {nearest}? {group} has {_siblings(f'{group}.')}."
    rooms = dict.fromkeys(option.partition(".")[0] for option in options())
    return f"{said}: there is no option {key}; did you mean {nearest}? Options are grouped as {', '.join(rooms)}."


def _beside_rl(key: str) -> bool:
    return not key.startswith(("actor.", "rollout.", "algorithm."))


def _siblings(prefix: str) -> str:
    return ", ".join(option[len(prefix) :] for option in options() if option.startswith(prefix))


def _to_object(tree: DictConfig) -> Config:
    config = OmegaConf.to_object(tree)
    assert isinstance(config, Config)
    return settle(config)


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
