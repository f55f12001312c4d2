"""What ``check`` warns of: what works, but surely not as it was meant."""

import json
from pathlib import Path

import pytest

from megatron_rl.data.tasks.false_belief import write_tokenizer
from megatron_rl.settings.check import check
from megatron_rl.settings.fit import warnings
from megatron_rl.settings.recipes import all_recipes, recipe
from megatron_rl.system import machine
from tests.resharding.folders.test_hf import write_folder
from tests.resharding.reference import hf_tensors
from tests.settings.test_settings_check import LLAMA, quickstart

pytestmark = pytest.mark.usefixtures("forked_look")


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (
            ["preference.data.path=pairs.jsonl"],
            "preference.data.path=pairs.jsonl does nothing without preference.steps",
        ),
        (["sft.steps=0", "sft.data.path=rows.jsonl"], "sft.data.path=rows.jsonl does nothing without sft.steps"),
        (["actor.lora.alpha=5"], "actor.lora.alpha does nothing without actor.lora.rank"),
        (["rollout.top_k=1"], "rollout.top_k=1 draws the most probable token alone"),
        (
            ["run.steps=5", "actor.optimizer.warmup_steps=20", "actor.optimizer.lr=0.001"],
            "actor.optimizer.warmup_steps=20 is more than the 10 updates that there are: the rate ends at 0.0005",
        ),
        (["sft.steps=10"], "sft_optimizer.warmup_steps=20 is more than the 10 updates"),
        (["actor.lora.alpha=5", "actor.lora.rank=4"], ""),
        (["data.curriculum.until=0.5"], "data.curriculum.until does nothing without data.curriculum.by=column: set it"),
        (["data.curriculum.by=accuracy", "data.curriculum.high=0.8"], ""),
        (["data.curriculum.low=0.2"], "data.curriculum.low does nothing without data.curriculum.by=accuracy"),
        (["data.split=dev"], ""),
        (["algorithm.correction_high=5"], "algorithm.correction_high does nothing without algorithm.correction"),
        (["run.steps=10", "actor.optimizer.warmup_steps=20"], ""),
    ],
)
def test_options_that_nobody_may_have_meant(tmp_path: Path, overrides: list[str], said: str) -> None:
    found = check(quickstart(tmp_path, *overrides), contents=False)
    assert found.problems == [] and len(found.warnings) == bool(said)
    assert all(warning.startswith(said) for warning in found.warnings)


def test_many_ranks_for_the_cores_of_a_machine_without_gpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = quickstart(tmp_path, "actor.data_parallel=16")
    monkeypatch.setattr(machine, "cores", lambda: 9)
    assert config.actor.sizes().world == 32 and warnings(config) == []
    monkeypatch.setattr(machine, "cores", lambda: 8)
    (said,) = warnings(config)
    assert said.startswith("33 ranks and engines would share 8 cores of this machine, which has no GPU: they will wait")
    config.launch.nodes = 2
    assert warnings(config) == []


def test_what_the_other_engine_would_use(tmp_path: Path) -> None:
    (said,) = warnings(quickstart(tmp_path, "rollout.engine=sglang"))
    assert said.startswith("rollout.embedded.true_on_policy does nothing without rollout.engine=embedded: set it")


def test_a_recipe_sets_nothing_that_nothing_uses() -> None:
    for name in all_recipes():
        assert not [said for said in warnings(recipe(name)) if "does nothing" in said], name


def test_held_out_rows_that_are_trained_on_are_warned_of(tmp_path: Path) -> None:
    rows = [json.dumps({"prompt": " ".join(["Sally"] * (number + 1)), "answer": "box"}) for number in range(6)]
    for name, kept in (("train", rows[:4]), ("test", rows[2:])):
        (tmp_path / f"{name}.jsonl").write_text("\n".join(kept))
    paths = [f"data.path={tmp_path}/train.jsonl", f"data.eval_path={tmp_path}/test.jsonl"]
    language = LLAMA | {"vocab_size": 80}
    write_folder(tmp_path / "model", hf_tensors(language, tags=False), language)
    write_tokenizer(tmp_path / "model")
    own = [f"model.path={tmp_path}/model", "actor.tensor_parallel=1", "data.task=prompt_answer", "data.prompt=raw"]
    own += ["sft.steps=0", "rewards.terms={exact_answer: 1}"]
    config = quickstart(tmp_path, *own, *paths)
    config.model.architecture = {}
    found = check(config)
    assert found.problems == []
    assert [w for w in found.warnings if w.startswith("2 of the 4 held-out rows are trained on too")]
