"""Violations of the rollout's options, and what the trainer's side may import."""

import subprocess
import sys
from pathlib import Path

import pytest

from megatron_rl.rollout.check import check_rollout
from megatron_rl.rollout.config import DynamicConfig, RolloutConfig, SGLangConfig
from megatron_rl.settings.rules import violations


def found(config: RolloutConfig) -> list[str]:
    return [*violations(config, "rollout.").values(), *check_rollout(config)]


def test_the_defaults_are_valid():
    assert found(RolloutConfig()) == []
    assert found(RolloutConfig(top_k=20, top_p=0.5, temperature=2.0, group_size=1, max_running=1)) == []


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("engine", "vllm"),
        ("engines", 0),
        ("prompts_per_step", 0),
        ("group_size", -1),
        ("max_new_tokens", 0),
        ("max_running", 0),
        ("threads", 0),
        ("temperature", 0.0),
        ("temperature", float("nan")),
        ("temperature", float("inf")),
        ("top_p", 0.0),
        ("top_p", 1.5),
        ("top_k", -1),
        ("staleness", -1),
    ],
)
def test_a_violation_names_its_key_and_value(key, value):
    (said,) = found(RolloutConfig(**{key: value}))
    assert said.startswith(f"rollout.{key} is {value!r}; it must be ")


@pytest.mark.parametrize(
    ("options", "dynamic", "message"),
    [
        (
            {"group_size": 1},
            {"filter": True},
            "rollout.dynamic.filter=true leaves out groups whose rewards are all equal",
        ),
        (
            {"prompts_per_step": 64},
            {"filter": True, "batch": 6, "max_batches": 10},
            "10 rounds (max_batches) of 6 prompts (batch) are 60, fewer than rollout.prompts_per_step (64)",
        ),
        ({}, {"batch": 6}, "rollout.dynamic.batch=6 does nothing without rollout.dynamic.filter=true"),
        ({}, {"max_age": 0}, "rollout.dynamic.max_age=0 does nothing without"),
        ({}, {"at_cap": "stop"}, "rollout.dynamic.at_cap=stop does nothing without"),
        ({}, {"filter": True, "max_batches": 0}, "rollout.dynamic.max_batches is 0; it must be 1 or more."),
        ({}, {"filter": True, "at_cap": "fail"}, "rollout.dynamic.at_cap is 'fail'; it must be warn, go_on or stop."),
        ({}, {"min_informative": 1.5}, "rollout.dynamic.min_informative is 1.5; it must be between 0 and 1."),
        ({}, {"alarm": "ring"}, "rollout.dynamic.alarm is 'ring'"),
        ({}, {"filter": True, "max_age": -1}, "rollout.dynamic.max_age is -1"),
    ],
)
def test_dynamic_sampling(options, dynamic, message):
    said = found(RolloutConfig(**options, dynamic=DynamicConfig(**dynamic)))
    assert message in said[0]
    assert found(RolloutConfig(dynamic=DynamicConfig(min_informative=0.2, alarm="stop"))) == []
    assert RolloutConfig(dynamic=DynamicConfig(batch=7)).round_size == 64
    assert RolloutConfig(dynamic=DynamicConfig(filter=True, batch=7)).round_size == 7


def test_all_violations_are_found_at_once():
    broken = RolloutConfig(engine="", engines=0, group_size=0, temperature=-1, top_p=2, top_k=-5, threads=-1)
    assert len(found(broken)) == 7


def test_how_many_engines_there_are():
    urls = SGLangConfig(urls="http://a:1, http://b:1")
    assert RolloutConfig(engines=3).engine_count == 3
    assert RolloutConfig(engines=3, sglang=urls).engine_count == 3  # embedded ones have no addresses
    assert RolloutConfig(engine="sglang", engines=3, sglang=urls).engine_count == 2


def test_the_trainers_side_needs_no_torch():
    code = (
        "import sys, megatron_rl.rollout.check\n"
        "import megatron_rl.rollout.embedded.client, megatron_rl.rollout.embedded.process\n"
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[2]).returncode == 0
