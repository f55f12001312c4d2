"""Recipes by name, and their numbers."""

import subprocess
import sys

import pytest
from omegaconf import OmegaConf

from megatron_rl.config import Config
from megatron_rl.data.check import check_data
from megatron_rl.data.registry import held_out
from megatron_rl.errors import InputError
from megatron_rl.evaluation.check import check_evaluation
from megatron_rl.settings.recipes import all_recipes, recipe
from megatron_rl.settings.rules import violations
from megatron_rl.system import machine

NAMES = list(all_recipes())


def test_all_are_listed_with_one_line():
    listed = all_recipes()
    assert {"quickstart", "social_r1.qwen3_4b", "social_r1.qwen3_8b", "social_r1.tiny"} <= set(listed)
    for line in listed.values():
        assert 20 < len(line) < 120 and "\n" not in line


@pytest.mark.parametrize("name", NAMES)
def test_each_gives_a_whole_new_configuration(name):
    config = recipe(name)
    assert isinstance(config, Config)
    assert OmegaConf.to_object(OmegaConf.structured(config)) == config == recipe(name)
    assert recipe(name) is not config
    assert config.rollout.prompts_per_step % config.algorithm.minibatches == 0
    assert config.actor.micro_batch_tokens >= config.data.max_prompt_tokens + config.rollout.max_new_tokens


def test_unknown_names():
    with pytest.raises(InputError, match=r"recipe 'social_r1.qwen_4b' is unknown; did you mean social_r1.qwen3_4b\?"):
        recipe("social_r1.qwen_4b")
    with pytest.raises(InputError, match=r"did you mean one_shot.tiny\?$"):
        recipe("one_shot.tny")
    with pytest.raises(InputError, match=r"`.*megatron-rl recipes` lists them; it can also be the dotted path"):
        recipe("zzz")
    for name in ("one_shot", "recipes.one_shot"):
        with pytest.raises(InputError, match=r"stands for several: name one of one_shot\.\S+, .*one_shot.tiny"):
            recipe(name)


def test_a_runs_folder_is_no_recipe_but_its_configuration_is(tmp_path, monkeypatch):
    for folder in ("runs/a", "quickstart"):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "config.yaml").touch()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=r"^runs/a is a run's folder: give runs/a/config.yaml\.$"):
        recipe("runs/a")
    assert recipe("quickstart").run.name == "quickstart"


MINE = """
from megatron_rl.config import Config, RunConfig

def mine() -> Config:
    return Config(run=RunConfig(name="mine"))

def wrong() -> Config:
    return {}

def fails() -> Config:
    return Config(run=RunConfig(nam="mine"))

class Family:
    @staticmethod
    def small() -> Config:
        return mine()
"""


def test_any_function_is_a_recipe(tmp_path, monkeypatch):
    """In the current folder, which is not where Python looks by itself."""
    (tmp_path / "my_package").mkdir()
    (tmp_path / "my_package" / "own_recipes.py").write_text(MINE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path])
    assert recipe("my_package.own_recipes.mine").run.name == "mine"
    assert recipe("my_package.own_recipes.Family.small").run.name == "mine"
    for name, said in {
        "own_recipes.mine": "There is no module own_recipes",
        "my_package.own_recipes.mnie": "my_package.own_recipes has no mnie; did you mean mine?",
        "my_package.own_recipe.mine": "my_package has no own_recipe",
        "my_package.own_recipes.Family.smal": "my_package.own_recipes.Family has no smal; did you mean small?",
        "my_package.own_recipes.__name__": "is a str, not a function",
        "my_package.own_recipes.wrong": "returns a dict; a recipe returns a megatron_rl.config.Config.",
        "my_package.own_recipes.fails": "fails with TypeError: RunConfig.__init__() got an unexpected keyword argument "
        f"'nam' ({tmp_path}/my_package/own_recipes.py, line 11).",
    }.items():
        with pytest.raises(InputError) as error:
            recipe(name)
        assert said in str(error.value) and repr(name) in str(error.value)


@pytest.mark.parametrize(("gpus", "ranks"), [(0, 2), (1, 1), (2, 2), (8, 2)])
def test_quickstart_fits_the_machine(gpus, ranks, monkeypatch):
    monkeypatch.setattr(machine, "gpus", lambda: (80 << 30,) * gpus)
    assert recipe("quickstart").actor.tensor_parallel == ranks


def test_quickstart():
    config = recipe("quickstart")
    assert check_data(config.data) == check_evaluation(config.evaluation, held_out(config.data)) == []
    assert (config.run.steps, config.rollout.prompts_per_step, config.rollout.group_size) == (40, 16, 8)
    assert (config.sft.steps, config.sft.batch_size, config.sft.prompt_weight) == (600, 32, 0.1)
    assert config.model.dtype == "float32"
    assert config.algorithm.minibatches * config.algorithm.epochs == 2
    assert config.rewards.terms == {"answer_in_format": 1.0, "format": 0.2}
    assert config.rollout.max_new_tokens >= 44


@pytest.mark.parametrize("name", ["social_r1.qwen3_4b", "social_r1.qwen3_8b", "social_r1.baseline_outcome"])
def test_social_r1_follows_the_model_card(name):
    config = recipe(name)
    assert config.run.steps == 600
    assert config.actor.optimizer.lr == 5e-7
    assert (config.algorithm.kl_coef, config.algorithm.kl_estimator, config.algorithm.entropy_coef) == (0.04, "k3", 0.0)
    assert (config.algorithm.correction, config.algorithm.correction_level) == ("truncated", "token")
    assert (config.algorithm.correction_low, config.algorithm.correction_high) == (0.0, 2.0)
    assert config.rollout.group_size == 5
    assert config.rollout.prompts_per_step == 64
    assert config.rollout.prompts_per_step // config.algorithm.minibatches == 16
    assert (config.data.max_prompt_tokens, config.rollout.max_new_tokens) == (1024, 3072)
    assert config.rewards.terms == {"social_r1": 1.0, "social_monitors": 0.0}
    actor = config.actor
    world = actor.tensor_parallel * actor.pipeline_parallel * actor.context_parallel * actor.data_parallel
    assert world == 8
    assert (config.rollout.engine, config.rollout.engines, config.rollout.sglang.colocated) == ("sglang", 8, True)
    assert violations(config) == {}
    assert 8 % actor.tensor_parallel == 0  # Qwen3-4B and 8B have 32 heads and 8 KV heads


def test_tiny_needs_only_the_two_paths(tmp_path):
    config = recipe("social_r1.tiny_rows")
    assert config.model.path == config.data.path == "" and config.rollout.engine == "embedded"
    (tmp_path / "rows.jsonl").write_text("{}")
    config.data.path = str(tmp_path / "rows.jsonl")
    assert check_data(config.data) == check_evaluation(config.evaluation, held_out(config.data)) == []
    assert config.rewards.terms == {"social_r1": 1.0, "social_monitors": 0.0} and config.model.dtype == "float32"


@pytest.mark.parametrize("name", ["qwen2_5_14b", "qwen2_5_14b_node", "qwen2_5_32b"])
def test_temporal_clue_follows_the_published_settings(name):
    config = recipe(f"temporal_clue.{name}")
    optimizer, algorithm = config.actor.optimizer, config.algorithm
    assert (config.rollout.prompts_per_step, config.rollout.group_size, config.rollout.max_new_tokens) == (32, 50, 8192)
    assert (optimizer.lr, optimizer.beta1, optimizer.beta2, optimizer.weight_decay) == (6e-6, 0.9, 0.99, 0.1)
    assert (algorithm.std, algorithm.std_eps, algorithm.kl_coef, algorithm.entropy_coef) == ("population", 1e-6, 0, 0)
    assert (algorithm.aggregation, algorithm.bypass) == ("seq-mean-token-mean", True)
    assert config.actor.micro_batch_tokens == 16384
    actor = config.actor
    assert config.rollout.engines * config.rollout.sglang.tensor_parallel == actor.tensor_parallel * actor.data_parallel
    assert actor.tensor_parallel * actor.data_parallel == (4 if name == "qwen2_5_14b" else 8)
    assert violations(config) == {}


def test_temporal_clue_variants():
    strict, few = recipe("temporal_clue.strictly_on_policy"), recipe("temporal_clue.sixteen_puzzles")
    assert strict.algorithm.minibatches * strict.algorithm.epochs == 1
    assert (few.data.repeat_to_batch, few.rollout.prompts_per_step, few.data.shuffle) == (16, 16, False)
    assert recipe("temporal_clue.easy_to_hard").data.curriculum.column == "num_clues"
    tiny = recipe("temporal_clue.tiny")
    assert check_data(tiny.data) == [] and tiny.data.path == "" and tiny.run.steps == 20


def test_recipes_and_checks_import_no_torch():
    code = (
        "import sys, megatron_rl.settings.recipes as recipes, megatron_rl.data.check, megatron_rl.evaluation.check\n"
        "recipes.all_recipes()\n"
        "assert not {'torch', 'transformers', 'datasets'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=__file__.rsplit("/tests/", 1)[0])
