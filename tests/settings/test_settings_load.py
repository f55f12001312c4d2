"""From recipes and overrides to a configuration: values, and every problem with its nearest key."""

import sys
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from megatron_rl.config import Config
from megatron_rl.errors import InputError
from megatron_rl.settings.documented import documented, groups
from megatron_rl.settings.load import _ELSEWHERE, from_yaml, load, options, settle, to_yaml
from megatron_rl.settings.recipes import recipe


@pytest.fixture
def base(tmp_path: Path) -> str:
    file = tmp_path / "base.yaml"
    file.write_text("run: {name: base}\nrewards: {terms: {format: 0.2}, args: {format: {strict: true}}}\n")
    return str(file)


@pytest.mark.parametrize(
    ("override", "room", "value"),
    [
        ("run.steps=7", lambda c: c.run.steps, 7),
        ("run.name=1.50", lambda c: c.run.name, "1.50"),  # text stays as it was typed
        ("run.name=on", lambda c: c.run.name, "on"),
        ("data.path=", lambda c: c.data.path, ""),
        ("data.path=a=b", lambda c: c.data.path, "a=b"),
        ("actor.optimizer.lr=1e-6", lambda c: c.actor.optimizer.lr, 1e-6),
        ("rollout.temperature=2", lambda c: c.rollout.temperature, 2.0),
        ("actor.packing=false", lambda c: c.actor.packing, False),
        (
            "actor={tensor_parallel: 4, packing: false}",
            lambda c: (c.actor.tensor_parallel, c.actor.packing),
            (4, False),
        ),
        ("rewards.terms.format=0.5", lambda c: c.rewards.terms, {"format": 0.5}),
        ("rewards.terms.my.own.reward=1", lambda c: c.rewards.terms, {"format": 0.2, "my.own.reward": 1.0}),
        ("rewards.terms.format=null", lambda c: c.rewards.terms, {}),
        ("rewards.args.format.tag=a", lambda c: c.rewards.args, {"format": {"strict": True, "tag": "a"}}),
        ("rewards.args.my.reward.k=[1, 2]", lambda c: c.rewards.args["my.reward"], {"k": [1, 2]}),
        ("model.architecture.rope.theta=1e4", lambda c: c.model.architecture, {"rope": {"theta": 1e4}}),
        ("model.architecture.rope_scaling=null", lambda c: c.model.architecture, {"rope_scaling": None}),
        ("data.path=[", lambda c: c.data.path, "["),
        ("run.name=0123", lambda c: c.run.name, "0123"),
        ("run.name=null", lambda c: c.run.name, "null"),
        ("data.columns.answer=1", lambda c: c.data.columns, {"answer": "1"}),
        ("data.columns.answer=on", lambda c: c.data.columns, {"answer": "on"}),
        ("data.columns={answer: 012, 1: off}", lambda c: c.data.columns, {"answer": "012", "1": "off"}),
        ("data.columns.answer=null", lambda c: c.data.columns, {}),
        ("data.columns.answer='null'", lambda c: c.data.columns, {"answer": "null"}),
        ("run.seed=010", lambda c: c.run.seed, 10),
        ("run.seed=1_000", lambda c: c.run.seed, 1000),
        ("actor.packing=off", lambda c: c.actor.packing, False),
        ("model.architecture.sign=-1", lambda c: c.model.architecture, {"sign": -1}),
        ("model.architecture.small=1.5e-3", lambda c: c.model.architecture, {"small": 1.5e-3}),
        ("model.architecture.date=20241126_0930", lambda c: c.model.architecture, {"date": "20241126_0930"}),
        ("model.architecture.ratio=12:30", lambda c: c.model.architecture, {"ratio": "12:30"}),
        ("actor.freeze=*.mlp.*, model.layers.[0-3].*", lambda c: c.actor.freeze, ["*.mlp.*", "model.layers.[0-3].*"]),
        ("actor.freeze=[lm_head.*, '!a.[0-9]']", lambda c: c.actor.freeze, ["lm_head.*", "!a.[0-9]"]),
        ("actor.freeze=", lambda c: c.actor.freeze, []),
        ("actor.freeze=!*.{2-3}.*", lambda c: c.actor.freeze, ["!*.{2-3}.*"]),
        ("actor.lora={rank: 4, targets: q_proj}", lambda c: (c.actor.lora.rank, c.actor.lora.targets), (4, ["q_proj"])),
        ("actor.lora.targets=[q_proj, 012]", lambda c: c.actor.lora.targets, ["q_proj", "012"]),
        ("data.columns.question=QUESTION", lambda c: c.data.columns, {"question": "QUESTION"}),
    ],
)
def test_override(base: str, override: str, room, value: object) -> None:
    config, problems = load(base, [override])
    assert problems == []
    assert isinstance(config, Config)
    assert room(config) == value
    assert type(room(config)) is type(value)


@pytest.mark.parametrize(
    ("override", "parts"),
    [
        (
            "actor.tensr_parallel=2",
            [
                "actor.tensr_parallel=2",
                "did you mean actor.tensor_parallel?",
                "data_parallel",
            ],
        ),
        ("actor.optimizer.beta=2", ["did you mean actor.optimizer.beta2?", "actor.optimizer has lr, beta1, beta2"]),
        (
            "tensor_parallel=2",
            ["did you mean actor.tensor_parallel or rollout.sglang.", "run, launch, model, data"],
        ),
        (
            "optimizer.lr=1",
            ["did you mean actor.optimizer.lr or critic.optimizer.lr or sft_optimizer.lr or pref"],
        ),
        ("lr=3", ["actor.optimizer.lr", "sft_optimizer.lr"]),
        ("runn.steps=3", ["did you mean run.steps?"]),
        ("run.steps=1.5", ["run.steps=1.5", "a whole number", "1.5"]),
        ("run.steps=", ["a whole number", "''"]),
        ("actor.optimizer.lr=fast", ["a number", "'fast'"]),
        ("actor.packing=maybe", ["true or false", "'maybe'"]),
        ("actor.tensor_parallel=true", ["a whole number", "True"]),
        ("rewards.terms.format=high", ["rewards.terms", "names with numbers", "'high'"]),
        ("rewards.terms=1", ["names with numbers"]),
        ("rewards.args.format=1", ["names with keyword arguments"]),
        ("data.columns=1", ["names with text"]),
        ("data.columns={a: {b: c}}", ["names with text"]),
        ("run.steps=12:30", ["a whole number", "'12:30'"]),
        ("actor=2", ["actor holds several options", "tensor_parallel"]),
        ("run.steps", ["'run.steps' is no override", "key=value"]),
        ("=3", ["'=3' is no override"]),
        ("run.steps=[", ["not valid YAML"]),
        ("run.folder=${run.name}", ["references", "write the value itself"]),
    ],
)
def test_problem(base: str, override: str, parts: list[str]) -> None:
    config, problems = load(base, [override])
    assert len(problems) == 1
    for part in parts:
        assert part in problems[0]
    assert config == load(base)[0]  # what is wrong changes nothing


def test_all_problems_at_once_and_the_rest_applies(base: str) -> None:
    config, problems = load(base, ["actor.tensr=2", "run.steps=x", "nonsense", "run.seed=5", "rewards.terms.a=b"])
    assert [p.split(":")[0].split(" ")[0] for p in problems] == [
        "actor.tensr=2",
        "run.steps=x",
        "'nonsense'",
        "rewards.terms.a=b",
    ]
    assert config.run.seed == 5


def test_yaml_on_top_of_a_recipe(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(
        "recipe: quickstart\nrun: {steps: 3, nam: x}\nrewards:\n  terms: {format: 0.5}\nactor.optimizer.lr: 0.1\n"
    )
    config, problems = load(str(file), ["run.seed=9"])
    quickstart = recipe("quickstart")
    assert (config.run.steps, config.run.seed, config.actor.optimizer.lr) == (3, 9, 0.1)
    assert config.rewards.terms == quickstart.rewards.terms | {"format": 0.5}
    assert config.sft == quickstart.sft
    assert len(problems) == 1
    assert f"{file}: run.nam: there is no option run.nam; did you mean run.name?" in problems[0]


def test_a_text_option_of_a_file_is_what_is_written(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(
        """
run: {name: 20241126_0930, folder: 0x1F, seed: 010, keep: 3}
data: {path: , eval_path: 2024-11-26, columns: {answer: on, 1: 1.50}}
tracking: {wandb: off, tensorboard: off}
model: {architecture: {vocab_size: 10, rope_theta: 1e4, tied: yes, name: 007, list: [1, a, null]}}
"""
    )
    config, problems = load(str(file))
    assert problems == []
    assert (config.run.name, config.run.folder, config.run.seed, config.run.keep) == ("20241126_0930", "0x1F", 10, 3)
    assert (config.data.path, config.data.eval_path) == ("", "2024-11-26")
    assert config.data.columns == {"answer": "on", "1": "1.50"}
    assert (config.tracking.wandb, config.tracking.tensorboard) == ("off", False)
    assert config.model.architecture == {
        "vocab_size": 10,
        "rope_theta": 1e4,
        "tied": True,
        "name": "007",
        "list": [1, "a", None],
    }


def test_parts_of_a_file_may_be_used_again(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(
        "sft_optimizer: &adam {lr: 1e-3, beta2: 0.95}\nactor: {optimizer: {<<: *adam, lr: 1e-4}, threads: 2}\n"
        "data: {path: &file q.jsonl, eval_path: *file}\n"
    )
    config, problems = load(str(file))
    assert problems == []
    assert (config.sft_optimizer.lr, config.actor.optimizer.lr, config.actor.optimizer.beta2) == (1e-3, 1e-4, 0.95)
    assert config.data.eval_path == "q.jsonl"


def test_an_empty_file_is_the_defaults(tmp_path: Path) -> None:
    file = tmp_path / "empty.yaml"
    file.write_text("# nothing\n")
    assert load(str(file)) == (settle(Config()), [])
    assert load(str(file), ["algorithm.name=dapo"])[0].rollout.dynamic.filter is True
    assert load(str(file), ["algorithm.name=dapo", "rollout.dynamic.filter=false"])[0].rollout.dynamic.filter is False


@pytest.mark.parametrize(
    ("content", "part"),
    [
        ("run: [", "not valid YAML"),
        ("- a", "mapping"),
        ("recipe: quickstrat", "quickstart"),
        ("recipe: other.yaml", "must name a recipe function"),
        ("run: {a: 1}\nrun: {b: 2}", "duplicate key"),
        ("run: {steps: 1, steps: 2}", "duplicate key"),
        ("model: {architecture: &a {b: *a}}", "contains itself"),
        ("run: {steps: !python/name:os.system 1}", "could not determine a constructor"),
        ("run: {[steps]: 1}", "a key that is no text"),
        ("run: {steps: 1}\n---\nrun: {steps: 2}", "single document"),
    ],
)
def test_unreadable_file(tmp_path: Path, content: str, part: str) -> None:
    file = tmp_path / "bad.yaml"
    file.write_text(content)
    with pytest.raises(InputError, match=part):
        load(str(file))
    with pytest.raises(InputError, match=r"missing\.yaml does not exist"):
        load(str(tmp_path / "missing.yaml"))
    (tmp_path / "folder.yaml").mkdir()
    with pytest.raises(InputError, match=r"folder\.yaml is a folder: give the YAML file in it"):
        load(str(tmp_path / "folder.yaml"))


text = st.text(st.characters(exclude_categories=["Cs", "Cc"], exclude_characters="$"), max_size=20)
values = st.one_of(st.booleans(), st.integers(-(2**40), 2**40), st.floats(allow_nan=False), text, st.none())


@example(name="", seed=0, lr=0.0, terms={"a.b": 1.0}, architecture={"a.b": {".": None}, "": {}})
@settings(deadline=None, max_examples=15)
@given(
    name=text,
    seed=st.integers(0, 2**62),
    lr=st.floats(0, 1),
    terms=st.dictionaries(text.filter(bool), st.floats(-1e300, 1e300)),
    architecture=st.dictionaries(text.filter(bool), st.one_of(values, st.dictionaries(text.filter(bool), values))),
)
def test_yaml_round_trip(tmp_path_factory, name: str, seed: int, lr: float, terms: dict, architecture: dict) -> None:
    config = settle(Config())
    config.run.name, config.run.seed, config.actor.optimizer.lr = name, seed, lr
    config.rewards.terms, config.model.architecture = terms, architecture
    file = tmp_path_factory.getbasetemp() / "round_trip.yaml"
    file.write_text(to_yaml(config), encoding="utf-8")
    assert from_yaml(file) == config


def test_no_text_is_said_to_be_none(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("run: {name: null, folder: 'null'}")
    config, (said,) = load(str(file))
    assert "run.name takes text, not None" in said
    assert (config.run.name, config.run.folder) == ("run", "null")


def test_every_option_is_documented() -> None:
    lines = documented()
    assert [line.key for line in lines] == list(options())
    assert [line.key for line in lines if not line.text] == []
    known = {line.key: line for line in lines}
    assert known["actor.packing"].default == "true" and known["actor.packing"].type == "true or false"
    assert known["run.resume"].choices == ("auto", "never")
    assert known["rollout.top_p"].range == "above 0 and at most 1"
    assert {line.key.rpartition(".")[0] for line in lines} == {name for name in groups() if groups()[name]}


def test_the_configuration_imports_no_torch() -> None:
    import subprocess

    code = "import sys, megatron_rl.settings.load as load; load.load('quickstart'); sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_tasks_of_a_mixture_are_set_one_by_one() -> None:
    config, problems = load(
        "quickstart", ["data.mixture={a: {limit: 4}}", "data.mixture.b.weight=2", "data.mixture.a.curriculum.by=column"]
    )
    assert problems == []
    assert config.data.mixture == {"a": {"limit": 4, "curriculum": {"by": "column"}}, "b": {"weight": 2}}


def test_null_empties_a_mapping() -> None:
    config, problems = load("quickstart", ["model.architecture=null", "rewards.terms=null", "rewards.terms.format=1"])
    assert (config.model.architecture, config.rewards.terms, problems) == ({}, {"format": 1.0}, [])


def test_a_run_of_an_earlier_version_is_read(tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    file.write_text("algorithm: {advantage: grpo, std: population}")
    assert from_yaml(file).algorithm.std == "population"
    _, (said,) = load(str(file), ["algorithm.advantage=rloo"])
    assert said.startswith("algorithm.advantage=rloo: there is no option algorithm.advantage; did you mean")


@pytest.mark.parametrize(
    ("model", "path", "random"),
    [
        ("{path: mine}", "mine", False),
        ("{path: ''}", "", True),
        ("{path: mine, architecture: {vocab_size: 7}}", "mine", True),  # both are written: check says so
        ("{dtype: float32}", "", True),
    ],
)
def test_a_model_in_a_file_stands_in_place_of_the_recipes_random_one(
    tmp_path: Path, model: str, path: str, random: bool
) -> None:
    """As one on the command line does."""
    (tmp_path / "a.yaml").write_text(f"recipe: quickstart\nmodel: {model}\n")
    config, problems = load(str(tmp_path / "a.yaml"))
    assert problems == [] and config.model.path == path and bool(config.model.architecture) is random


def test_names_that_other_trainers_use_are_understood() -> None:
    for name, meant in _ELSEWHERE.items():
        assert set(meant) <= options().keys() and not any(key.rpartition(".")[2] == name for key in options()), name
        _, (said,) = load("quickstart", [f"actor.{name}=1"])
        assert f"there is no option actor.{name}; did you mean {' or '.join(meant)}?" in said
