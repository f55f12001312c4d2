import subprocess
import sys
from typing import Any

import pytest

from megatron_rl.errors import InputError
from megatron_rl.rewards.config import RewardsConfig
from megatron_rl.rewards.format import format
from megatron_rl.rewards.registry import BUILTIN, check_rewards, resolve
from megatron_rl.rewards.sample import Sample
from megatron_rl.rewards.terms import RewardError, bind, score_sample


def test_every_builtin_resolves_and_needs_no_torch():
    code = (
        "import sys\n"
        "from megatron_rl.rewards import pool, registry, worker\n"
        "print([registry.resolve(name).__name__ for name in registry.BUILTIN] == list(registry.BUILTIN))\n"
        "print('torch' in sys.modules)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.split() == ["True", "False"]


def test_a_dotted_path_is_a_reward():
    assert resolve("megatron_rl.rewards.format.format") is resolve("format") is format


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("sip_structur", ["did you mean sip_structure?", *BUILTIN]),
        ("zzz", ["is unknown", "dotted path"]),
        ("no_such_package.reward", ["is unknown", "There is no module no_such_package"]),
        ("megatron_rl.rewards.sip.sip_structre", ["megatron_rl.rewards.sip has no", "did you mean sip_structure?"]),
        ("megatron_rl.rewards.sip.STAGES", ["int", "not a function"]),
        (
            "broken_reward_module.reward",
            ["importing broken_reward_module", "ZeroDivisionError: division by zero", "module.py, line 1)"],
        ),
    ],
)
def test_names_that_are_no_reward(name, parts, tmp_path, monkeypatch):
    (tmp_path / "broken_reward_module.py").write_text("1 / 0\n")
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


def test_score_sample_adds_weighted_terms():
    config = RewardsConfig(terms={"answer_in_format": 1.0, "format": 0.2}, args={"format": {}})
    terms = bind(config)
    right = Sample("Q?", "<think>r</think><Answer>box</Answer>", "box")
    wrong = Sample("Q?", "<think>r</think><Answer>jar</Answer>", "box")
    assert score_sample(terms, right) == (1.2, {"answer_in_format/score": 1.0, "format/score": 1.0})
    assert score_sample(terms, wrong) == (0.2, {"answer_in_format/score": 0.0, "format/score": 1.0})


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("return {'score': float('nan')}", "score is nan, not a finite number"),
        ("return {'score': 1.0, 'part': float('inf')}", "part is inf"),
        ("return {'value': 1.0}", "KeyError: 'score'"),
        ("return 1.0", "TypeError"),
        ("return {'score': 'high'}", "TypeError"),
        ("raise OSError('no judge')", "OSError: no judge"),
    ],
)
def test_a_reward_without_usable_score_is_named(body, reason, tmp_path, monkeypatch):
    module = "useless_" + str(abs(hash(body)))
    (tmp_path / f"{module}.py").write_text(f"def reward(sample):\n    {body}\n")
    monkeypatch.syspath_prepend(tmp_path)
    terms = bind(RewardsConfig(terms={f"{module}.reward": 1.0}))
    with pytest.raises(RewardError) as error:
        score_sample(terms, Sample("Q?", "R", "A"))
    assert f"{module}.reward" in str(error.value)
    assert reason in str(error.value)
