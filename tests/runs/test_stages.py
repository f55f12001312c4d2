"""Runs through several stages: killed in the middle of each and continued, and runs that generate nothing."""

import contextlib
import hashlib
import json
import os
import random
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from transformers import AutoModelForCausalLM

from megatron_rl.actor.checkpoint_folder import all_checkpoints, latest, read_state
from megatron_rl.actor.config import ModelConfig
from megatron_rl.data.config import DataConfig
from megatron_rl.data.tasks.false_belief import draw_story
from megatron_rl.data.tokenizer import load_tokenizer
from megatron_rl.launch.initial_model import write_initial_model
from megatron_rl.resharding.folders.fingerprint import fingerprint
from megatron_rl.tracking.names import find
from megatron_rl.tracking.run_folder import RunFolder
from tests.conftest import PATIENCE, ROOT
from tests.runs.gate import UNHURRIED

SMALL = [
    *UNHURRIED,
    *("run.resume=auto", "run.save_every=2", "run.keep=50", "evaluation.every=0", "tracking.wandb=off"),
    *("tracking.tensorboard=false", "sft_optimizer.warmup_steps=2", "actor.tensor_parallel=1"),
    *("preference.batch_size=4", "preference_optimizer.lr=1e-3", "sft.batch_size=8"),
]
CHAIN = [
    *("sft.steps=4", "preference.steps=4", "run.steps=4", "evaluation.prompts=6", "evaluation.greedy=false"),
    *("rollout.prompts_per_step=4", "rollout.group_size=4", "rollout.max_new_tokens=16"),
    "algorithm.entropy_coef=0.01",  # after so few steps no completion is worth anything
]
STAGES = ("sft", "preference", "rl")


def start(folder: Path, name: str, *overrides: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "megatron_rl.cli", "train", "quickstart", f"run.folder={folder}"]
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    pipes: dict[str, Any] = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    return subprocess.Popen([*command, f"run.name={name}", *SMALL, *overrides], env=env, **pipes)


def finish(process: subprocess.Popen[str]) -> str:
    out, error = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, error
    return out


def rows(run: RunFolder) -> list[dict[str, Any]]:
    """The recorded numbers, without those that a clock gave."""
    clocked = ("time/", "tokens_per_second", "mfu", "timestamp", "memory/")
    lines = run.metrics_file.read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if not k.startswith(clocked)} for line in lines]


def hashes(folder: Path) -> dict[str, str]:
    return {f.name: hashlib.sha256(f.read_bytes()).hexdigest() for f in folder.iterdir()}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Rows to imitate and to compare, of stories: the right place, or the wrong one; the options that name them."""
    folder, found = tmp_path_factory.mktemp("data"), []
    files = {"sft": folder / "right.jsonl", "preference": folder / "pairs.jsonl"}
    for i in range(24):
        story = draw_story(random.Random(i), heldout=False)
        right, wrong = story.answer, story.end if story.answer == story.start else story.start
        prompt = {"raw_prompt": f"<bos> {story.text} {story.question} <sep>"}
        pair = {"chosen": story.completion(right), "rejected": story.completion(wrong)}
        found.append((prompt | {"target": story.completion(right)}, prompt | pair))
    for file, part in zip(files.values(), zip(*found, strict=True), strict=True):
        file.write_text("".join(json.dumps(row) + "\n" for row in part))
    return [f"{stage}.data.path={file}" for stage, file in files.items()]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, data: list[str]) -> RunFolder:
    """A run through the whole chain, not interrupted."""
    folder = tmp_path_factory.mktemp("runs")
    finish(start(folder, "whole", *CHAIN, *data))
    return RunFolder(folder / "whole")


def test_a_chain_runs_in_order_and_each_stage_is_measured_to_the_one_before(whole: RunFolder) -> None:
    recorded = rows(whole)
    done = [(stage, step) for stage in STAGES for step in range(1, 5)]
    assert [(r["stage"], r["step"]) for r in recorded if r["stage"] != "eval"] == done
    names = [checkpoint.name for checkpoint in all_checkpoints(whole.checkpoints)]
    assert names == [
        *("step-0-000002", "step-0-000004", "step-05-000000", "step-05-000002", "step-05-000004"),
        *("step-1-000000", "step-1-000002", "step-1-000004"),
    ]
    states = {c.name: read_state(c) for c in all_checkpoints(whole.checkpoints)}
    assert [states[name]["stage"] for name in names] == ["sft"] * 2 + ["preference"] * 3 + ["rl"] * 3
    assert states["step-05-000002"]["reference"]["folder"] == "warm_start"
    assert states["step-1-000002"]["reference"]["folder"] == "after_preference"
    assert list(states["step-1-000004"]["evaluations"]) == ["before", "after SFT", "after preference", "after RL"]
    first = next(r for r in recorded if r["stage"] == "preference")
    assert first["loss"] == pytest.approx(0.693147, abs=1e-6) and first["pair_margin"] == 0  # it is the reference
    exported = json.loads((whole.export / "megatron_rl.json").read_text())
    assert exported == {"stage": "rl", "step": 4, "version": 6, "weights": fingerprint(whole.export)}
    folders = (whole.initial_model, whole.warm_start, whole.left_by("preference"), whole.export)
    assert len({fingerprint(folder) for folder in folders}) == 4
    assert {name for row in recorded for name in row if find(name) is None} == set()


def test_killed_in_the_middle_of_each_stage_it_continues_bit_identically(whole: RunFolder, data: list[str]) -> None:
    run = RunFolder(whole.path.with_name("killed"))
    for stage in STAGES:
        process = start(run.path.parent, run.path.name, *CHAIN, *data)
        while not run.metrics_file.exists() or f'"stage": "{stage}", "step": 3,' not in run.metrics_file.read_text():
            assert process.poll() is None, process.communicate()
            time.sleep(0.01)
        family = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
        for member in family:
            with contextlib.suppress(psutil.NoSuchProcess):  # ended with its parent
                member.kill()
        process.communicate(timeout=PATIENCE)
        psutil.wait_procs(family, timeout=PATIENCE)
        # as if the machine had stopped right there: what was done after the last checkpoint in the middle is lost
        for checkpoint in all_checkpoints(run.checkpoints):
            state = read_state(checkpoint)
            if (STAGES.index(state["stage"]), state["step"]) > (STAGES.index(stage), 2):
                shutil.rmtree(checkpoint)
        newest = latest(run.checkpoints)
        assert newest is not None
        assert (read_state(newest)["stage"], read_state(newest)["step"]) == (stage, 2)
    finish(start(run.path.parent, run.path.name, *CHAIN, *data))
    assert rows(run) == rows(whole)
    assert run.completions_file.read_bytes() == whole.completions_file.read_bytes()
    for name in ("warm_start", "after_preference", "hf"):
        assert hashes(run.path / name) == hashes(whole.path / name)
    assert len(run.manifest()["attempts"]) == 4


def test_without_generation_there_are_neither_engines_nor_rewards(tmp_path: Path, data: list[str]) -> None:
    """Two stages of rows alone; what they leave is what the chain has made, and RL goes on from it later."""
    alone = ["sft.steps=2", "preference.steps=2", "preference.loss=cdpo", "run.steps=0", "evaluation.prompts=0"]
    alone += [*data, "rewards.terms={}"]
    process = start(tmp_path, "alone", *alone)
    run, seen = RunFolder(tmp_path / "alone"), set()
    process.communicate(timeout=PATIENCE)
    assert process.returncode == 2 and not run.path.exists()  # there are no such models: nothing was started
    finish(start(tmp_path, "alone", *alone[:2], "run.steps=0", "evaluation.prompts=0", *data))
    shutil.copytree(run.initial_model, tmp_path / "model")
    models = [f"preference.{role}={tmp_path / 'model'}" for role in ("positive", "negative")]
    process = start(tmp_path, "critical", *alone, *models)
    while process.poll() is None:
        family = psutil.Process(process.pid).children(recursive=True) if psutil.pid_exists(process.pid) else []
        for member in family:
            try:
                seen.add(" ".join(member.cmdline()))
            except psutil.Error:
                continue
        time.sleep(0.02)
    out = finish(process)
    assert "1 trainer rank. Logs" in out and "weight swap" not in out
    assert any("megatron_rl.train" in command for command in seen)
    others = ("megatron_rl.rollout", "megatron_rl.rewards")  # modules: what has just been forked has our own options
    assert not any(module in command for command in seen for module in others)
    for name, step in (("alone", 2), ("critical", 2)):
        folder = RunFolder(tmp_path / name)
        assert [r["stage"] for r in rows(folder)] == ["sft"] * 2 + ["preference"] * 2
        exported = json.loads((folder.export / "megatron_rl.json").read_text())
        assert (exported["stage"], exported["step"]) == ("preference", step)
        assert not folder.left_by("preference").exists()
    critical = rows(RunFolder(tmp_path / "critical"))[-1]["critical"]
    assert 0.9 < critical < 1  # two equal models of random weights: 1 less the probability of a token
    again = finish(start(tmp_path, "alone", *alone[:2], "run.steps=0", "evaluation.prompts=0", *data))
    assert "is complete: 2 steps of preference. For more steps set preference.steps above 2" in again
    longer = [*alone[:2], *CHAIN[2:], "run.steps=1", "evaluation.prompts=0", *data]
    assert "1 engine" in finish(start(tmp_path, "alone", *longer))
    assert [(r["stage"], r["step"]) for r in rows(run)][-1] == ("rl", 1)
    assert run.exported() == ("rl", 1)
    assert fingerprint(run.left_by("preference")) not in (fingerprint(run.export), fingerprint(run.warm_start))


def test_rows_that_changed_since_the_run_began_are_found(whole: RunFolder, data: list[str], tmp_path: Path) -> None:
    pairs = tmp_path / "pairs.jsonl"
    lines = Path(data[1].partition("=")[2]).read_text().splitlines()
    pairs.write_text("\n".join(lines[1:]))
    run = RunFolder(whole.path.with_name("changed"))
    shutil.copytree(whole.path, run.path, symlinks=True)
    for checkpoint in all_checkpoints(run.checkpoints):
        if read_state(checkpoint)["stage"] == "rl" or read_state(checkpoint)["step"] > 2:
            shutil.rmtree(checkpoint)
    process = start(run.path.parent, run.path.name, *CHAIN, data[0], f"preference.data.path={pairs}")
    _, error = process.communicate(timeout=PATIENCE)
    assert process.returncode == 2 and "The data of preference.data changed since the run began" in error


def test_distillation_measures_a_teacher_of_another_architecture(tmp_path: Path) -> None:
    """The reverse KL of the first step is transformers', of the very completions that the run has recorded."""
    teacher = tmp_path / "teacher"
    llama = {
        "model_type": "llama",
        "vocab_size": 77,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
    }
    llama |= {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "initializer_range": 0.2}
    write_initial_model(ModelConfig(architecture=llama, dtype="float32"), DataConfig(task="false_belief"), 5, teacher)
    options = ["sft.steps=0", "run.steps=2", "evaluation.prompts=0", "algorithm.kl_coef=0", "algorithm.epochs=1"]
    options += ["model.architecture.vocab_size=77", "actor.tensor_parallel=2", "tracking.completions=16"]
    options += ["algorithm.name=distillation", *CHAIN[-4:]]
    process = start(tmp_path, "distilled", *options)
    _, error = process.communicate(timeout=PATIENCE)
    assert process.returncode == 2 and "set algorithm.teacher" in error
    finish(start(tmp_path, "distilled", *options, f"algorithm.teacher={teacher}"))
    run = RunFolder(tmp_path / "distilled")
    tokenizer = load_tokenizer(run.initial_model)
    models = [AutoModelForCausalLM.from_pretrained(folder).float() for folder in (run.initial_model, teacher)]
    total = count = 0
    for line in run.completions_file.read_text().splitlines():
        row = json.loads(line)
        if row["step"] != 1:
            continue
        given = tokenizer(row["prompt"], add_special_tokens=False).input_ids
        reply = tokenizer(row["response"], add_special_tokens=False).input_ids
        reply += [tokenizer.eos_token_id] if row["finish_reason"] == "stop" else []
        log_p = [
            model(torch.tensor([given + reply])).logits[0, len(given) - 1 : -1].log_softmax(-1) for model in models
        ]
        chosen = [p.gather(1, torch.tensor(reply)[:, None]).squeeze(1) for p in log_p]
        total, count = total + (chosen[0] - chosen[1]).sum().item(), count + len(reply)
        assert row["advantage"] == pytest.approx((chosen[1] - chosen[0]).mean().item(), abs=2e-5)
    first = next(r for r in rows(run) if r["stage"] == "rl")
    assert count and first["teacher_kl"] == pytest.approx(total / count, abs=2e-5)
