import subprocess
import sys
from functools import partial
from typing import Any

import pytest

from megatron_rl.errors import InputError
from megatron_rl.rewards.config import RewardsConfig
from megatron_rl.rewards.registry import BUILTIN, check_report, check_rewards, resolve
from megatron_rl.rewards.terms.style.format import format


def test_every_builtin_resolves_and_needs_no_torch():
    code = (
        "import sys\n"
        "from megatron_rl.rewards import registry\nfrom megatron_rl.rewards.workers import pool, worker\n"
        "print([registry.resolve(name).__name__ for name in registry.BUILTIN] == list(registry.BUILTIN))\n"
        "print('torch' in sys.modules)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.split() == ["True", "False"]


def test_a_dotted_path_is_a_reward():
    assert resolve("megatron_rl.rewards.terms.style.format.format") is resolve("format") is format


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("sip_structur", ["did you mean sip_structure?", *BUILTIN]),
        ("zzz", ["is unknown", "dotted path"]),
        ("no_such_package.reward", ["is unknown", "There is no module no_such_package"]),
        (
            "megatron_rl.rewards.terms.social.sip.sip_structre",
            ["megatron_rl.rewards.terms.social.sip has no", "did you mean sip_structure?"],
        ),
        ("megatron_rl.rewards.terms.social.sip.STAGES", ["int", "not a function"]),
        (
            "broken_reward_module.reward",
            ["importing broken_reward_module", "ZeroDivisionError: division by zero", "module.py, line 1)"],
        ),
        ("leaving_reward_module.reward", ["importing leaving_reward_module", "SystemExit: 3"]),
    ],
)
def test_names_that_are_no_reward(name, parts, tmp_path, monkeypatch):
    (tmp_path / "broken_reward_module.py").write_text("1 / 0\n")
    (tmp_path / "leaving_reward_module.py").write_text("import sys; sys.exit(3)\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(InputError) as error:
        resolve(name)
    assert all(part in str(error.value) for part in ["rewards.terms", repr(name), *parts])


def test_a_good_configuration_has_no_violation():
    args: dict[str, dict[str, Any]] = {"social_r1": {"variant": "no_length"}, "length_window": {"l_max": 2500}}
    terms = {"social_r1": 1.0, "length_window": 0.5, "format": 0.0}
    assert check_rewards(RewardsConfig(terms=terms, args=args)) == []


def test_every_violation_is_found_at_once():
    config = RewardsConfig(
        terms={"formt": 1.0, "social_r1": float("nan"), "length_window": 1.0, "format": 1.0},
        args={
            "social_r1": {"variant": "fulll"},
            "length_window": {"l_mni": 3},
            "format": {"x": 1},
            "sip": {},
        },
    )
    expected = [
        "'formt' is unknown; did you mean format?",
        "rewards.terms.social_r1 is nan",
        "rewards.args.social_r1.variant is 'fulll'; it must be full or outcome or structure or content or no_length.",
        "rewards.args.length_window: got an unexpected keyword argument 'l_mni'; did you mean l_min?",
        "rewards.args.format: got an unexpected keyword argument 'x'; format takes no arguments.",
        "rewards.args names 'sip', which is not in rewards.terms",
    ]
    found = check_rewards(config)
    assert len(found) == len(expected)
    assert all(part in sentence for part, sentence in zip(expected, found, strict=True))


def test_no_reward_at_all():
    assert "rewards.terms is empty" in check_rewards(RewardsConfig())[0]
    assert "weight 0" in check_rewards(RewardsConfig(terms={"format": 0.0}))[0]


@pytest.mark.parametrize(("value", "fits"), [("wide", False), (True, False), (3, True), (3.5, True), (None, False)])
def test_argument_types(value, fits):
    config = RewardsConfig(terms={"length_window": 1.0}, args={"length_window": {"l_min": value}})
    assert check_rewards(config) == (
        [] if fits else [f"rewards.args.length_window.l_min is {value!r}; it must be a number."]
    )


FOREIGN = """
async def later(sample): ...
def verl(data_source, solution_str, ground_truth, extra_info=None): ...
def nothing(): ...
def trl(completions, **kwargs): ...
class Judge:
    def __call__(self, sample, strict: bool = False): ...
judge = Judge()
"""


@pytest.mark.parametrize(
    ("name", "args", "reason"),
    [
        ("later", {}, None),  # many run at a time
        ("verl", {}, "called as verl(sample), but: missing a required argument: 'solution_str'. A reward takes one"),
        ("verl", {"solution_str": "x"}, "called as verl(sample, solution_str='x'), but: missing a required argument"),
        ("nothing", {}, "called as nothing(sample), but: too many positional arguments."),
        ("trl", {}, None),  # it could be called; on a row it shows what it returns
        ("judge", {"strict": True}, None),
    ],
)
def test_functions_made_for_other_trainers(name, args, reason, tmp_path, monkeypatch):
    (tmp_path / "foreign_rewards.py").write_text(FOREIGN)
    monkeypatch.syspath_prepend(tmp_path)
    path = f"foreign_rewards.{name}"
    found = check_rewards(RewardsConfig(terms={path: 1.0}, args={path: args}))
    if reason is None:
        assert found == []
    else:
        assert len(found) == 1 and f"rewards.terms names {path!r}, {reason}" in found[0]


class Task:
    def report(self, sample):
        return {"correct": 1.0}


def test_a_report_must_be_importable_by_the_workers():
    assert check_report(format) == check_report(partial(format)) == []
    for report, reason in (
        (Task().report, "Task.report, is called in the reward workers, but is a method"),
        (lambda sample: {"correct": 1.0}, "cannot be sent to them"),
        (eval("lambda sample: 1", {"__name__": "__main__"}), "is in no module that they can import"),
    ):
        (found,) = check_report(report)
        assert reason in found
        assert found.endswith("a function of the task's module, def report(sample: Sample) -> dict[str, float].")
