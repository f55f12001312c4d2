import dataclasses
import subprocess
import sys
from math import inf, nan

import numpy as np
import pytest
import torch

from megatron_rl.algorithms.check import check_algorithm
from megatron_rl.algorithms.config import AlgorithmConfig, SFTConfig
from megatron_rl.algorithms.published import PUBLISHED, settled
from megatron_rl.algorithms.registry import asked
from megatron_rl.algorithms.terms.advantages import group_advantages
from megatron_rl.algorithms.terms.aggregation import token_weights
from megatron_rl.algorithms.terms.kl import token_kl
from megatron_rl.algorithms.terms.surrogates import SURROGATES
from megatron_rl.option import allowed
from megatron_rl.settings.rules import violations

POLICY = "megatron_rl.algorithms.policy"


def found(**options) -> list[str]:
    config = AlgorithmConfig(**options)
    return [*violations(config, "algorithm.").values(), *check_algorithm(config)]


def test_the_defaults_are_valid() -> None:
    assert found() == []
    assert violations(SFTConfig()) == {}


@pytest.mark.parametrize(
    ("algorithm", "sentence"),
    [
        ({"std": "n"}, "algorithm.std is 'n'; it must be sample or population."),
        (
            {"aggregation": "token_mean"},
            "algorithm.aggregation is 'token_mean'; it must be auto, token-mean, seq-mean-token-mean, "
            "seq-mean-token-sum or seq-mean-token-sum-norm.",
        ),
        ({"kl_estimator": "k4"}, "algorithm.kl_estimator is 'k4'; it must be k1, k2, k3 or k3+."),
        ({"std_eps": -1e-6}, "algorithm.std_eps is -1e-06; it must be above 0."),
        ({"std_eps": 0.0}, "algorithm.std_eps is 0.0; it must be above 0."),
        ({"clip_low": 1.5}, "algorithm.clip_low is 1.5; it must be between 0 and 1."),
        ({"clip_high": -0.1}, "algorithm.clip_high is -0.1; it must be 0 or more."),
        ({"clip_high": inf}, "algorithm.clip_high is inf; it must be a finite number, 0 or more."),
        ({"kl_coef": -0.04}, "algorithm.kl_coef is -0.04; it must be 0 or more."),
        ({"kl_coef": nan}, "algorithm.kl_coef is nan; it must be a finite number, 0 or more."),
        ({"entropy_coef": inf}, "algorithm.entropy_coef is inf; it must be a finite number."),
        ({"correction": "tis"}, "algorithm.correction is 'tis'; it must be none, truncated or masked."),
        (
            {"correction_level": "group"},
            "algorithm.correction_level is 'group'; it must be token, sequence or geometric.",
        ),
        ({"mismatch_action": "kill"}, "algorithm.mismatch_action is 'kill'; it must be warn or stop."),
        ({"mismatch_limit": -0.1}, "algorithm.mismatch_limit is -0.1; it must be 0 or more."),
        ({"correction_low": 1.5}, "algorithm.correction_low is 1.5; it must be between 0 and 1."),
        ({"correction_high": 0.5}, "algorithm.correction_high is 0.5; it must be 1 or more."),
        (
            {"correction_low": 1.0, "correction_high": 1.0},
            "algorithm.correction_low and algorithm.correction_high are both 1.0: no importance ratio lies between "
            "them; lower the first or raise the second.",
        ),
        (
            {"correction": "truncated", "correction_level": "geometric"},
            "algorithm.correction_level=geometric only masks sequences; with algorithm.correction=truncated it must be "
            "token or sequence.",
        ),
        (
            {"correction": "masked", "bypass": True},
            "algorithm.bypass=true makes the engine's log-probs the old ones, which leaves nothing for "
            "algorithm.correction=masked to correct; set one of them to false or none.",
        ),
        ({"epochs": 0}, "algorithm.epochs is 0; it must be 1 or more."),
        (
            {"reference_ema": 0.5, "reference_every": 2, "kl_coef": 0.1},
            "algorithm.reference_ema=0.5 and algorithm.reference_every=2 are two ways of keeping the reference near "
            "the policy: set one of them to 0.",
        ),
        (
            {"reference_every": 2},
            "algorithm.reference_every=2 is for a reference policy, and there is none: set algorithm.kl_coef, or leave "
            "it at 0.",
        ),
        ({"reference_ema": 1.0, "kl_coef": 0.1}, "algorithm.reference_ema is 1.0; it must be between 0 and 0.9999999."),
        ({"minibatches": 0}, "algorithm.minibatches is 0; it must be 1 or more."),
    ],
)
def test_one_violation_is_one_sentence(algorithm: dict, sentence: str) -> None:
    assert found(**algorithm) == [sentence]


def test_all_violations_are_listed_at_once() -> None:
    broken = found(std="n", kl_coef=-1.0, epochs=0, correction="masked", bypass=True)
    assert [sentence.split(" is ")[0].split("=")[0] for sentence in broken] == [
        "algorithm.std",
        "algorithm.kl_coef",
        "algorithm.epochs",
        "algorithm.bypass",
    ]


def test_an_entropy_penalty_is_allowed() -> None:
    assert found(entropy_coef=-0.001) == []


def test_the_warm_start() -> None:
    assert [*violations(SFTConfig(steps=-1, batch_size=0, prompt_weight=-0.1), "sft.").values()] == [
        "sft.steps is -1; it must be 0 or more.",
        "sft.batch_size is 0; it must be 1 or more.",
        "sft.prompt_weight is -0.1; it must be 0 or more.",
    ]


def test_every_allowed_name_is_implemented() -> None:
    choices = {field.name: allowed(field).choices for field in dataclasses.fields(AlgorithmConfig)}
    for std in choices["std"]:
        assert group_advantages(np.array([[1.0, 0.0]]), std)[0, 0] > 0
    weights = {mode: token_weights([2], mode, 4).item() for mode in choices["aggregation"] if mode != "auto"}
    assert weights == {
        "token-mean": 0.5, "seq-mean-token-mean": 0.5, "seq-mean-token-sum": 1.0, "seq-mean-token-sum-norm": 0.25
    }  # fmt: skip
    assert {*choices["surrogate"]} == {"auto", *SURROGATES}
    for estimator in choices["kl_estimator"]:
        assert token_kl(torch.ones(1), torch.zeros(1), estimator).item() > 0


def test_checking_imports_no_torch() -> None:
    code = "import sys, megatron_rl.algorithms.check; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_surrogate_of_another_algorithm_brings_its_own_bounds() -> None:
    """Given ones stay, and settling twice changes nothing."""
    bounds = {
        (name, surrogate): (found.clip_low, found.clip_high)
        for name in ("grpo", "dapo", "gspo")
        for surrogate in ("auto", "clip", "gspo", "cispo")
        for found in [settled(settled(AlgorithmConfig(name=name, surrogate=surrogate)))]
    }
    assert bounds["grpo", "gspo"] == bounds["gspo", "auto"] == bounds["dapo", "gspo"] == (3e-4, 4e-4)
    assert bounds["grpo", "cispo"] == (1.0, 4.0) and bounds["dapo", "auto"] == (0.2, 0.28)
    assert bounds["grpo", "auto"] == bounds["gspo", "clip"] == (0.2, 0.2)
    assert settled(AlgorithmConfig(surrogate="gspo", clip_high=0.1)).clip_high == 0.1


def test_masked_completions_and_a_kl_in_the_reward() -> None:
    (said,) = found(name="rloo", kl_coef=0.1, truncated="mask")
    assert said.startswith("algorithm.truncated=mask leaves out the KL")
    assert found(name="rloo", truncated="mask") == found(name="reinforce_pp", kl_coef=0.1, truncated="mask") == []


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("types.SimpleNamespace", "fails with TypeError"),
        ("builtins.id", "makes a int without needs, credit, loss."),
        ("json.dumps", "fails with TypeError"),
        (f"{POLICY}.distillation.Distillation", "learns from a teacher: set algorithm.teacher"),
    ],
)
def test_a_class_of_ones_own_is_made(name: str, part: str) -> None:
    (said,) = found(name=name)
    assert part in said and name in said


def test_what_is_asked_is_what_the_classes_ask() -> None:
    """The table knows it without torch."""
    for name, published in PUBLISHED.items():
        config = AlgorithmConfig(name=name)
        assert asked(config) == asked(dataclasses.replace(config, name=published.path)), name
