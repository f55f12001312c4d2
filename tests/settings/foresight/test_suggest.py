"""Layouts that fit and are sound, the fastest first."""

from collections.abc import Iterator, Sequence
from typing import Any

import pytest

from megatron_rl.actor.tuning import names
from megatron_rl.config import Config
from megatron_rl.errors import InputError
from megatron_rl.resharding import families
from megatron_rl.resharding.families.table import instances
from megatron_rl.resharding.layouts import megatron
from megatron_rl.settings.check import check
from megatron_rl.settings.foresight import suggest as suggesting
from megatron_rl.settings.foresight.forecast import foresee
from megatron_rl.settings.foresight.hardware import Hardware, named, on_cpu
from megatron_rl.settings.foresight.rules import check_hardware
from megatron_rl.settings.foresight.suggest import Options, applied, fits_asleep, suggest
from megatron_rl.system import machine
from tests.settings.foresight.shapes import QWEN3_8B, QWEN3_235B, of_8b, of_235b


@pytest.fixture(autouse=True)
def eight_gpus() -> Iterator[None]:
    """Of a node that is elsewhere."""
    with machine.standing_for((80 << 30,) * 8):
        yield


def wrong(config: Config, hf_config: dict[str, Any], on: Hardware) -> list[str]:
    return check(config, contents=False, known=hf_config).problems + check_hardware(config, on)


def none(layouts: Sequence[Options]) -> list[list[str]]:
    """As a Megatron-Core would say that takes everything."""
    return [[] for _ in layouts]


@pytest.fixture
def rows(tmp_path):
    file = tmp_path / "rows.jsonl"
    file.write_text('{"prompt": "1 + 1 =", "answer": "2"}\n')
    return str(file)


def test_suggestions_fit_and_pass_the_check(rows: str) -> None:
    config, on = of_8b(), named("h100", 1, 8)
    config.data.path = rows
    found, against = suggest(config, QWEN3_8B, on, lambda changed: wrong(changed, QWEN3_8B, on), none)
    assert 2 <= len(found) <= 5 and against == []
    times = [each.forecast.step.step for each in found if each.forecast.step]
    assert times == sorted(times) and len(times) == len(found)
    for each in found:
        changed = applied(config, each.options)
        assert wrong(changed, QWEN3_8B, on) == []
        again = foresee(changed, QWEN3_8B, on)
        assert again.fits and again.step == each.forecast.step
        assert changed.actor.sizes().world == 8
        assert all(
            f"{key}={str(value).lower()}" in each.line().split("  #")[0].split() for key, value in each.options.items()
        )
    wasteful = applied(config, found[0].options | {"actor.recompute": "full", "actor.micro_batch_tokens": 4096})
    assert foresee(wasteful, QWEN3_8B, on).step.step >= times[0]  # type: ignore[union-attr]


def test_235b(rows: str) -> None:
    """It does not fit where its states alone leave no room for engines; it does on GPUs with more memory."""
    config = of_235b()
    config.data.path = rows
    h100, h200 = named("h100", 8, 8), named("h200", 8, 8)
    assert check(config, contents=False, known=QWEN3_235B).problems == []
    assert "will probably not fit" in foresee(config, QWEN3_235B, h100).warnings()[0]
    assert suggest(config, QWEN3_235B, h100, lambda changed: [], none) == ([], [])
    with machine.standing_for((h200.memory,) * 8):
        found, _ = suggest(config, QWEN3_235B, h200, lambda changed: wrong(changed, QWEN3_235B, h200), none)
    assert found and all(each.forecast.peak <= 0.95 * h200.memory for each in found)
    layouts = [
        tuple(v for k, v in each.options.items() if k not in ("actor.recompute", "actor.micro_batch_tokens"))
        for each in found
    ]
    assert len(set(layouts)) == len(found)


def test_what_cannot_be_suggested_for() -> None:
    config = of_8b()
    with pytest.raises(InputError, match="--suggest needs GPUs"):
        suggest(config, QWEN3_8B, on_cpu(1e11), lambda changed: [], none)
    config.run.steps = 0
    with pytest.raises(InputError, match="steps of RL"):
        suggest(config, QWEN3_8B, named("h100", 1, 8), lambda changed: [], none)


def test_engines_too_large_for_a_node_are_spread() -> None:
    """470 GB of weights: 8 GPUs of 43 GB are too few, and of 86 GB enough."""
    config = of_235b()
    spread = list(suggesting._engines(config, QWEN3_235B, named("a100-40", 4, 8), 4))
    sizes = [
        tuple(each[f"rollout.{key}"] for key in ("engines", "sglang.tensor_parallel", "sglang.nodes"))
        for each in spread
    ]
    assert sizes == [(2, 16, 2), (1, 32, 4)]
    alone = list(suggesting._engines(config, QWEN3_235B, named("a100-80", 4, 8), 4))
    assert {each["rollout.sglang.nodes"] for each in alone} == {1}


def test_options_are_applied_to_a_copy() -> None:
    """Only groups that change are copied, those around them too; the given configuration stays as it was."""
    config = of_8b()
    changed = applied(config, {"rollout.sglang.tensor_parallel": 4, "rollout.engines": 2, "actor.lora.rank": 8})
    sglang = changed.rollout.sglang
    assert (sglang.tensor_parallel, sglang.colocated) == (4, True)
    assert (changed.rollout.engines, changed.actor.lora.rank) == (2, 8)
    assert config == of_8b()
    assert changed.algorithm is config.algorithm and changed.rollout.embedded is config.rollout.embedded


def test_a_check_draws_up_the_tensors_of_a_model_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    """Once for the ranks and once for what is trained: of 235B they are 36,000, for every layout that is suggested."""
    drawn = []

    def counted(*of: Any) -> Any:
        drawn.append(of)
        return instances(*of)

    for module in (families, megatron, names):
        monkeypatch.setattr(module, "instances", counted)
    with machine.standing_for((named("h200").memory,) * 8):
        check(of_235b(), contents=False, known=QWEN3_235B)
    assert len(drawn) == 2


def test_what_is_wrong_whatever_the_layout_may_stay() -> None:
    """And what is wrong with this layout may not, though another has the same fault."""
    config, on = of_8b(), named("h100", 1, 8)

    def problems(changed: Config) -> list[str]:
        of_layout = changed.actor.tensor_parallel == 1 or changed.actor.pipeline_parallel == 8
        return ["no data"] + ["no such layout"] * of_layout

    known = ["no data", "no such layout", "gone"]
    found, against = suggest(config, QWEN3_8B, on, problems, none, known=known)
    assert len(found) == 5 and against == []
    assert all(problems(applied(config, each.options)) == ["no data"] for each in found)
    assert suggest(config, QWEN3_8B, on, problems, none, known=["no such layout"]) == ([], ["no data"])


def test_megatron_core_is_asked_of_all_at_once() -> None:
    """Of a layout that it refuses another form may do."""
    config, on, asked = of_8b(), named("h100", 1, 8), list[int]()

    def refused(layouts: Sequence[Options]) -> list[list[str]]:
        asked.append(len(layouts))
        return [[] if each["actor.recompute"] == "selective" else ["not without"] for each in layouts]

    found, against = suggest(config, QWEN3_8B, on, lambda changed: [], refused)
    assert len(found) == 5 and against == [] and len(asked) == 1 and asked[0] > 50
    assert all(applied(config, each.options).actor.recompute == "selective" for each in found)
    times = [each.forecast.step.step for each in found if each.forecast.step]
    assert times == sorted(times)
    nothing = suggest(config, QWEN3_8B, on, lambda changed: [], lambda layouts: [["never"]] * len(layouts))
    assert nothing == ([], ["never"])


def test_where_none_fits_a_trainer_that_sleeps_may(rows: str) -> None:
    """Qwen3-8B on two H100: 74 GB of states a rank, and 8 GB of an engine's weights while it generates."""
    config, two = of_8b(), named("h100", 1, 2)
    config.data.path = rows
    with machine.standing_for((80 << 30,) * 2):
        assert suggest(config, QWEN3_8B, two, lambda c: wrong(c, QWEN3_8B, two), none) == ([], [])
        assert fits_asleep(config, QWEN3_8B, two)
        config.actor.asleep = True
        found, _ = suggest(config, QWEN3_8B, two, lambda c: wrong(c, QWEN3_8B, two), none)
        assert found and not fits_asleep(config, QWEN3_8B, two)  # it is so already
    config.actor.asleep, config.rollout.staleness = False, 1  # ranks and engines take no turns
    assert not fits_asleep(config, QWEN3_8B, two)
