"""What check says of stages without RL, beside problems, of machines that are too few, and how it prints numbers."""

import json
from pathlib import Path
from typing import Any

import pytest

from megatron_rl.cli import main
from megatron_rl.resharding.families import with_scalar_head
from tests.commands.test_check_command import answer, of_8b_here
from tests.commands.test_check_command import folder as folder  # every test is in it
from tests.settings.foresight.shapes import QWEN3_8B

HERE = "tests.commands.test_check_forecast."
THERE = ["--gpu", "h100", "--model", "8b.json"]
NEEDS_RL = "--suggest is for runs with steps of RL (run.steps)."


def rl() -> Any:
    """With a reference."""
    config = of_8b_here()
    config.algorithm.kl_coef = 0.1
    return config


def imitation() -> Any:
    """A warm start alone."""
    config = rl()
    config.run.steps, config.sft.steps, config.sft.data.path = 0, 10, "rows.jsonl"
    config.evaluation.prompts = 0
    return config


def taught() -> Any:
    """Distillation from a teacher in a folder."""
    config = of_8b_here()
    config.algorithm.name, config.algorithm.teacher = "distillation", "teacher"
    return config


@pytest.mark.parametrize("wrong", ["data.path=", "data.path=none.jsonl", "run.folder=rows.jsonl"])
def test_problems_that_memory_and_time_do_not_depend_on(capsys: pytest.CaptureFixture[str], wrong: str) -> None:
    sound = answer(capsys, HERE + "rl", *THERE)
    found = answer(capsys, HERE + "rl", wrong, *THERE, code=2)
    assert len(found["problems"]) == 1
    assert (found["forecast"], found["precision"]) == (sound["forecast"], sound["precision"])
    assert main(["check", HERE + "rl", wrong, *THERE]) == 2
    out = capsys.readouterr().out
    assert "1 problem" in out and "Apart from that it would need:" in out and "a step     " in out


def test_problems_that_they_depend_on(capsys: pytest.CaptureFixture[str]) -> None:
    for wrong in ("actor.data_parallel=16", "data.max_prompt_tokens=0", "no.such=1"):
        found = answer(capsys, HERE + "rl", "data.path=", wrong, *THERE, code=2)
        assert found["forecast"] is None and len(found["problems"]) > 1


def test_stages_without_rl(capsys: pytest.CaptureFixture[str]) -> None:
    """Neither engines, nor a reference, nor suggestions; what is found is not lost."""
    there = ["--gpu", "rtx4090", "--model", "8b.json", "actor.tensor_parallel=8", "actor.data_parallel=1"]
    there += ["actor.sequence_parallel=true"]
    found = answer(capsys, HERE + "imitation", *there, "--suggest")
    assert (found["suggestions"], found["why_none"]) == ([], NEEDS_RL)
    assert found["forecast"]["memory"]["trainer"]["reference"] == 0
    (said,) = [each for each in found["warnings"] if "probably not fit" in each]
    assert "--suggest" not in said and "Shard further (actor.tensor_parallel" in said
    assert main(["check", HERE + "imitation", *there, "--suggest"]) == 0
    out = capsys.readouterr().out
    assert "none: nothing is generated" in out and " an engine" not in out and out.splitlines()[-1] == NEEDS_RL
    assert "GB a rank and activations\n" in out


def test_why_there_is_no_layout(capsys: pytest.CaptureFixture[str]) -> None:
    few = ["launch.nodes=1", "--gpu", "l4", "--gpus", "1", "--suggest", "--model"]
    found = answer(capsys, HERE + "rl", *few, "235b.json", code=2)
    said = "No layout fits on 1 x 1 L4. Even 16 nodes would not do."
    assert (found["suggestions"], found["why_none"]) == ([], said)
    assert "and the machine has 1 GPU to give each rank one" in found["problems"][0]
    assert main(["check", HERE + "rl", *few, "235b.json"]) == 2
    assert capsys.readouterr().out.splitlines()[-1] == said
    two = ["launch.nodes=1", "--gpu", "h100", "--gpus", "2", "--suggest", "--model", "8b.json"]
    said = "No layout fits on 1 x 2 H100. With actor.asleep=true there are some: add it, and ask again."
    assert answer(capsys, HERE + "rl", *two, code=2)["why_none"] == said
    assert answer(capsys, HERE + "rl", *two, "actor.asleep=true", code=2)["suggestions"]
    enough = answer(capsys, HERE + "rl", *THERE, "--suggest")
    assert enough["suggestions"] and enough["why_none"] is None


def test_numbers_are_written_out(capsys: pytest.CaptureFixture[str]) -> None:
    there = ["--gpu", "b200", "--model", "8b.json", "--tokens", "1e8", "rollout.prompts_per_step=65536", "--suggest"]
    assert main(["check", HERE + "rl", *there]) == 0
    out = capsys.readouterr().out
    assert "e+0" not in out and "53 % of 2,250 TFLOP/s" in out and "--tokens 100000000 counts as" in out
    assert " s a step (" in out


def test_a_flag_is_given_once(capsys: pytest.CaptureFixture[str]) -> None:
    for flag, one, other in (("--gpu", "h100", "b200"), ("--model", "a", "b"), ("--tokens", "1.0", "2.0")):
        with pytest.raises(SystemExit, match="2"):
            main(["check", HERE + "rl", flag, one, flag, other])
        assert f"{flag} is given twice, {one} and {other}: give one." in capsys.readouterr().err


def test_a_teacher_elsewhere_is_known_by_its_config_json(capsys: pytest.CaptureFixture[str], folder: Path) -> None:
    found = answer(capsys, HERE + "taught", *THERE, code=2)
    (said,) = [each for each in found["problems"] if "teacher" in each]
    assert said.endswith("Of a model that is elsewhere a folder with its config.json will do.")
    (folder / "teacher").mkdir()
    (folder / "teacher/config.json").write_text(json.dumps(QWEN3_8B))
    found = answer(capsys, HERE + "taught", *THERE)
    assert found["forecast"]["memory"]["trainer"]["beside"] > 16e9


def test_models_beside_one_that_is_elsewhere_are_compared_with_it(
    capsys: pytest.CaptureFixture[str], folder: Path
) -> None:
    """With the model of --model, not with that of model.path; of each config.json is enough."""
    (folder / "teacher").mkdir()
    (folder / "teacher/config.json").write_text(json.dumps(QWEN3_8B | {"vocab_size": 1000}))
    (said,) = answer(capsys, HERE + "taught", *THERE, code=2)["problems"]
    assert said.startswith("algorithm.teacher=teacher has vocab_size=1000, and the model that is trained has 151936: ")
    ppo = ("algorithm.name=ppo", "critic.path=teacher", *THERE)
    (said,) = answer(capsys, HERE + "rl", *ppo, code=2)["problems"]
    assert said.startswith("critic.path: teacher has vocab_size=1000, and the policy 151936")
    pairs = ("preference.steps=1", "preference.data.path=rows.jsonl", "preference.reference=teacher", *THERE)
    (said,) = answer(capsys, HERE + "rl", *pairs, code=2)["problems"]
    assert said.startswith("preference.reference=teacher has other weights than the model that is trained (qwen3 and")
    (folder / "teacher/config.json").write_text(json.dumps(QWEN3_8B))
    for options in (ppo, pairs):
        answer(capsys, HERE + "rl", *["b200" if word == "h100" else word for word in options])
    (folder / "teacher/config.json").write_text(json.dumps(with_scalar_head(QWEN3_8B)))
    (said,) = answer(capsys, HERE + "taught", *THERE, code=2)["problems"]
    assert said.startswith("algorithm.teacher: teacher is a model with a scalar head")


def test_a_step_that_takes_a_day_on_a_cpu(capsys: pytest.CaptureFixture[str]) -> None:
    cpu = ["--gpu", "cpu", "--model", "8b.json"]
    (said,) = [each for each in answer(capsys, HERE + "rl", *cpu)["warnings"] if "on a CPU" in each]
    assert said.startswith("A step is predicted to take ")
