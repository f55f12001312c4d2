"""What the tokenizer and the rows of the data show, looked at by a process of its own, for they bring torch along.

``python -m megatron_rl.settings.contents PART [BYTES ...]`` reads a configuration as YAML from standard input and
prints what it found as one line of JSON. PART: ``rows``, or ``all``: Megatron-Core's configurations as well. With
``configurations``, these alone, it reads a list: one as YAML, and options to change, each for an answer of its own.
BYTES: the memory of each GPU of a machine that is elsewhere.
"""

import contextlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from megatron_rl.config import Config
from megatron_rl.data.task import HELD_OUT, TRAINED_ON, UNBOUNDED, Example
from megatron_rl.errors import InputError
from megatron_rl.settings.footprint import read_config
from megatron_rl.settings.foresight.suggest import Options, applied
from megatron_rl.settings.load import from_yaml, to_yaml
from megatron_rl.settings.model import has_tokenizer
from megatron_rl.system import machine, scratch
from megatron_rl.system.processes import UTF8

_PROMPT = "tokens of a prompt"  # among the notes of a child process
_MEASURED = 64  # prompts


class Looked(NamedTuple):
    """What was found."""

    problems: list[str]  # what is wrong, a sentence or two each
    notes: dict[str, int]  # what the task says of its rows: a text -> how many
    warnings: list[str]
    prompt: float  # tokens of a training prompt in the mean, of some; 0: not known


def look(config: Config, configurations: bool = True) -> Looked:
    """``configurations``: ask Megatron-Core of ``actor.megatron`` as well, of which its own check has found nothing."""
    return Looked(*_answer("all" if configurations else "rows", to_yaml(config)))


def ask_megatron(config: Config, hf_config: Mapping[str, Any], layouts: Sequence[Options] = ({},)) -> list[list[str]]:
    """What Megatron-Core says of the configurations of a model of this config.json, whose folder is not needed.

    ``layouts``: options that are changed, each an answer of its own."""
    alone = replace(config.model, path="", architecture=dict(hf_config))
    given = [to_yaml(replace(config, model=alone)), *map(dict, layouts)]
    found: list[list[str]] = _answer("configurations", json.dumps(given)) if layouts else []
    return found


def _answer(part: str, given: str) -> Any:
    command = [sys.executable, "-m", "megatron_rl.settings.contents", part]
    if machine.elsewhere():
        command += map(str, machine.gpus())
    with scratch.made() as folder:
        env = {**os.environ, **UTF8, **scratch.temporary(folder), **scratch.caches(folder)}
        done = subprocess.run(command, input=given, capture_output=True, encoding="utf-8", env=env)
    if done.returncode < 0:
        raise InputError(
            f"Looking at the tokenizer and the data was ended by signal {-done.returncode}; where it is 9, memory has "
            "most often run out: free some, or take less of the data (data.limit)."
        )
    if done.returncode != 0:
        raise RuntimeError(f"looking at the tokenizer and the data failed:\n{done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


def _look(config: Config, made: str) -> tuple[list[str], dict[str, int]]:
    """Raises InputError for the tokenizer and the data; what goes wrong when the rewards are called, and the notes,
    among them _PROMPT."""
    from megatron_rl.data.files import is_local
    from megatron_rl.data.order.mixed import make_prompts
    from megatron_rl.data.order.mixture import parts
    from megatron_rl.data.registry import make_task, require_targets, write_tokenizer
    from megatron_rl.data.sets.pairs import task_pairs
    from megatron_rl.data.task import sample_of
    from megatron_rl.data.tokenizer import check_vocabulary, end_tokens, load_tokenizer, make_encoder, require_encodable
    from megatron_rl.resharding.folders.check import transformers_config
    from megatron_rl.rewards.workers.trial import try_rewards
    from megatron_rl.rollout.strategies.hinted import require_steps

    folder = config.model.path
    if not folder:  # a model with random weights takes the task's own tokenizer
        folder = made
        write_tokenizer(config.data, folder)
    tokenizer = load_tokenizer(folder)
    tokenizer.name_or_path = config.model.path or f"of data.task={config.data.task}"  # as messages name it
    check_vocabulary(tokenizer, read_config(config.model))
    if config.model.path:
        end_tokens(folder, tokenizer)
    transformers_config(config.model.path or config.model.architecture)
    there = machine.elsewhere() and not has_tokenizer(config.algorithm.teacher)
    if config.algorithm.teacher and config.run.steps and not there:
        teacher = load_tokenizer(config.algorithm.teacher)
        if teacher.get_vocab() != tokenizer.get_vocab():
            raise InputError(
                f"algorithm.teacher={config.algorithm.teacher} has another tokenizer than the model that is trained, "
                "and its log-probs are of other tokens: give a teacher with the same vocabulary."
            )
    notes = _sets(config, tokenizer) | _suites(config, tokenizer)
    if not config.asks():
        return [], notes
    paths = [path for data in parts(config.data).values() for path in (data.path, data.eval_path)]
    if not all(is_local(path) for path in paths if path):
        return [], notes
    try:
        task = make_task(config.data, config.run.seed, tokenizer)
    except InputError as error:
        return [str(error), *_without_template(config, tokenizer)], notes
    targets = config.sft.steps and not config.sft.data.path
    if targets:
        require_targets(task)
    if config.preference.steps and not config.preference.data.path:
        task_pairs(task, config.data.task, tokenizer)
    if not len(task.train) and (config.run.steps or targets):
        return [f"data.task={config.data.task} has no training examples, and run.steps or sft.steps asks for some."], {}
    if len(task.train):
        make_prompts(config.data, task, config.run.seed, config.run.steps)
        notes[_PROMPT] = _mean_length(task.train, make_encoder(tokenizer))
    if config.run.steps and config.rollout.strategy == "hinted":
        require_steps(task.train, make_encoder(tokenizer), config.data.max_prompt_tokens)
    if config.run.steps and (unknown := _without_rows(config.algorithm.kl_coefs, task.train)):
        return [unknown], {}
    example = (task.train if len(task.train) else task.heldout)[0]
    made_of = (example.prompt, example.target)  # of a task that generates its examples; of a file all are known by now
    require_encodable(tokenizer, ((f"what data.task={config.data.task} asks", text) for text in made_of))
    response = example.target.removesuffix(tokenizer.eos_token).rstrip() or str(example.answer)
    notes |= getattr(task, "notes", {})
    if not config.scores():
        return [], notes
    broken = try_rewards(config.rewards, sample_of(example, response), task.report)
    return broken, notes


def _configurations(config: Config, elsewhere: tuple[int, ...]) -> list[str]:
    """Make Megatron-Core's configurations, which refuse fields that do not go together; says what they say.

    ``elsewhere``: GPUs that are not here, beside which Transformer Engine is taken for granted.
    """
    import torch

    from megatron_rl.actor.megatron.assumed import assumed_transformer_engine
    from megatron_rl.actor.model import transformer_config
    from megatron_rl.actor.optimizer import optimizer_config, reduction_config
    from megatron_rl.resharding.families.architecture import read_architecture

    arch, actor, dtype = read_architecture(read_config(config.model)), config.actor, getattr(torch, config.model.dtype)
    try:
        with assumed_transformer_engine() if elsewhere else contextlib.nullcontext():
            transformer_config(arch, actor, dtype, dtype == torch.bfloat16 if elsewhere else None)
            reduction_config(actor)
            optimizer_config(actor.optimizer, actor, dtype)
    except InputError as error:
        return [str(error)]
    return []


def _without_template(config: Config, tokenizer: Any) -> list[str]:
    """What hints lack where data.template cannot be used, told with a template that any file takes."""
    from megatron_rl.data.files import read_table
    from megatron_rl.data.registry import make_task
    from megatron_rl.data.tokenizer import make_encoder
    from megatron_rl.rollout.strategies.hinted import require_steps

    data = config.data
    if config.rollout.strategy != "hinted" or not (config.run.steps and data.template and data.path):
        return []
    column = read_table(data.path, data.split, 1, data.subset).columns[0]
    try:
        task = make_task(replace(data, template=f"{{{column}}}"), config.run.seed, tokenizer)
        require_steps(task.train, make_encoder(tokenizer), data.max_prompt_tokens)
    except InputError as error:
        return [str(error)]
    return []


def _sets(config: Config, tokenizer: Any) -> dict[str, int]:
    """Read the rows that stages have of their own; raises InputError. How many were left out, and why."""
    from megatron_rl.data.sets.conversations import read_conversations
    from megatron_rl.data.sets.pairs import read_pairs

    notes: dict[str, int] = {}
    if config.sft.steps and Path(config.sft.data.path).is_file():  # check has spoken of a file that is missing
        notes |= read_conversations(config.sft.data, config.data, tokenizer, "sft.data").notes
    for key, of in (("preference.data", config.preference), ("reward_model.data", config.reward_model)):
        if of.steps and Path(of.data.path).is_file():
            notes |= read_pairs(of.data, config.data, tokenizer, key).notes
    return notes


def _suites(config: Config, tokenizer: Any) -> dict[str, int]:
    """Make the suites whose data are here; raises InputError. How many questions each has."""
    from megatron_rl.data.files import is_local
    from megatron_rl.evaluation.registry import card, make_suite, suite_config

    notes: dict[str, int] = {}
    for name, options in config.evaluation.suites.items():
        suite, wrong = suite_config(name, options)
        path = suite.path or ("" if wrong else card(name).hub)
        if not wrong and (not path or is_local(path)):  # of others check has spoken, or the hub is to be asked
            notes[f"questions of the suite {name}"] = len(make_suite(name, suite, tokenizer, config.run.seed).items)
    return notes


def _seen(notes: Mapping[str, int]) -> list[str]:
    """A warning of held-out rows that are trained on, of each part of a mixture."""
    counted = f"{HELD_OUT} {TRAINED_ON}"
    return [
        f"{seen:,} of the {notes[HELD_OUT + what.removeprefix(counted)]:,} {HELD_OUT}{what.removeprefix(counted)} are "
        "trained on too (data.eval_path and data.path): their accuracy will tell what was learnt by heart."
        for what, seen in notes.items()
        if what.startswith(counted)
    ]


def _trained_on(config: Config) -> list[str]:
    """Warnings of suites whose questions are trained on. Prompts are plain: what is trained on is no chat yet."""
    from megatron_rl.data.files import is_local
    from megatron_rl.data.order.mixture import parts
    from megatron_rl.data.prepared import AnyText
    from megatron_rl.evaluation.estimates.trained_on import warnings
    from megatron_rl.evaluation.registry import card, make_suite, suite_config

    suites = {}
    for name, options in config.evaluation.suites.items():
        suite, wrong = suite_config(name, options)
        if not wrong:
            here = suite.path and is_local(suite.path)
            made = make_suite(name, replace(suite, prompt="plain"), AnyText(), config.run.seed) if here else None
            suites[name] = card(name), suite, made
    sets = {
        "sft.data.path": (config.sft.steps, config.sft.data.path),
        "preference.data.path": (config.preference.steps, config.preference.data.path),
        "reward_model.data.path": (config.reward_model.steps, config.reward_model.data.path),
    }
    trained = {key: path for key, (steps, path) in sets.items() if steps and path}
    if config.asks():
        for part, data in parts(config.data).items():
            trained |= {f"data.mixture.{part}.path" if part else "data.path": data.path} if data.path else {}
    return warnings(suites, trained)


def _mean_length(train: Sequence[Example], encode: Callable[[str], Sequence[int]]) -> int:
    """Tokens of a prompt in the mean of some of them: of a file spread over it, of a generator the first."""
    step = 1 if len(train) == UNBOUNDED else max(len(train) // _MEASURED, 1)
    lengths = [len(encode(train[step * index].prompt)) for index in range(min(len(train), _MEASURED))]
    return round(sum(lengths) / len(lengths))


def _without_rows(kl_coefs: Mapping[str, float], train: Sequence[Example]) -> str:
    """A sentence about a data source of algorithm.kl_coefs that no training example has; of a generator, the first."""
    count = 100 if len(train) == UNBOUNDED else len(train)
    known = {train[index].data_source for index in range(count)} if kl_coefs else set()
    lost = next((source for source in kl_coefs if source not in known), None)
    if lost is None:
        return ""
    there = ", ".join(sorted(known))
    return f"algorithm.kl_coefs.{lost}: no training example is of this data source; there is {there}."


def main() -> None:
    """Print what was found."""
    part, elsewhere = sys.argv[1], tuple(map(int, sys.argv[2:]))
    sys.stdin.reconfigure(encoding="utf-8")  # type: ignore[union-attr]
    given = sys.stdin.read()
    if part == "configurations":
        text, *layouts = json.loads(given)
        config = _read(text)
        found: Any = [_configurations(applied(config, layout), elsewhere) for layout in layouts]
    else:
        found = _contents(given, part, elsewhere)
    print(f"\n{json.dumps(found)}")


def _read(text: str) -> Config:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "config.yaml"
        file.write_text(text, encoding="utf-8")
        return from_yaml(file)


def _contents(given: str, part: str, elsewhere: tuple[int, ...]) -> Looked:
    problems: list[str] = []
    notes: dict[str, int] = {}
    warnings: list[str] = []
    try:
        config = _read(given)
        if part == "all" and config.actor.megatron:
            problems += _configurations(config, elsewhere)
        with tempfile.TemporaryDirectory() as made:
            wrong, notes = _look(config, made)
        problems += wrong
        warnings = [] if problems else _seen(notes) + _trained_on(config)
    except InputError as error:
        problems.append(str(error))
    prompt = notes.pop(_PROMPT, 0)
    return Looked(problems, notes, warnings, prompt)


if __name__ == "__main__":
    main()
