"""Whole runs of ``megatron-rl train``: two ranks, an engine, a reward worker; interrupted, killed and continued."""

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from megatron_rl.actor.checkpoint_folder import latest, read_state
from megatron_rl.data.registry import make_task
from megatron_rl.data.task import sample_of
from megatron_rl.data.tokenizer import decode, load_tokenizer, make_encoder
from megatron_rl.resharding.folders.fingerprint import fingerprint
from megatron_rl.tracking.names import find
from megatron_rl.tracking.run_folder import RunFolder
from tests.conftest import PATIENCE, ROOT
from tests.runs.gate import HELD

SMALL = [
    *("sft.steps=8", "run.steps=6", "run.save_every=2", "run.resume=auto", "evaluation.every=0"),
    *("rollout.prompts_per_step=4", "rollout.group_size=4", "evaluation.prompts=12", "tracking.wandb=off"),
    *("sft_optimizer.warmup_steps=2", "algorithm.mismatch_limit=1e-12"),
    *HELD,
]
HELDOUT = 12


def start(folder: Path, name: str, *overrides: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "megatron_rl.cli", "train", "quickstart"]
    env = os.environ | {"PYTHONPATH": str(ROOT), "GATE": str(folder)}
    pipes: dict[str, Any] = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    return subprocess.Popen(
        [*command, f"run.folder={folder}", f"run.name={name}", *SMALL, *overrides], env=env, **pipes
    )


def start_and_wait(run: RunFolder, step: int) -> tuple[subprocess.Popen[str], list[psutil.Process]]:
    """Start or continue a run; returns within the step of RL after that one, with all the run's processes.

    The run does not come to that step's end before its gate is opened.
    """
    gate(run, step + 1).touch()
    process = start(run.path.parent, run.path.name)
    while not run.path.with_name(f"reached-{step + 1}").exists():
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    family = psutil.Process(process.pid).children(recursive=True)
    assert len(family) >= 4  # two ranks, engine, reward worker
    assert f'"stage": "rl", "step": {step},' in run.metrics_file.read_text()
    return process, family


def gate(run: RunFolder, step: int) -> Path:
    return run.path.with_name(f"closed-{step}")


def all_gone(processes: list[psutil.Process]) -> bool:
    _, alive = psutil.wait_procs(processes, timeout=PATIENCE)
    return not alive


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[RunFolder, str]:
    """A run from beginning to end, and what it printed."""
    folder = tmp_path_factory.mktemp("runs")
    process = start(folder, "whole")
    out, error = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, error
    return RunFolder(folder / "whole"), out


def rows(run: RunFolder) -> list[dict[str, Any]]:
    """The recorded numbers, without those that a clock gave."""
    clocked = ("time/", "tokens_per_second", "mfu", "timestamp", "memory/")
    lines = run.metrics_file.read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if not k.startswith(clocked)} for line in lines]


def test_every_step_is_recorded_and_every_swap_proved(whole: tuple[RunFolder, str]) -> None:
    run, out = whole
    recorded = rows(run)
    assert [(r["stage"], r["step"]) for r in recorded] == [
        ("eval", 0),
        *(("sft", i) for i in range(1, 9)),
        ("eval", 8),
        *(("rl", i) for i in range(1, 7)),
        ("eval", 6),
    ]
    rl = [r for r in recorded if r["stage"] == "rl"]
    assert [r["weight_version"] for r in rl] == [2, 3, 4, 5, 6, 7]
    assert all(r["replicas_differ"] == 0 for r in rl)
    assert all(r["swap_bytes"] == 4 * 453_696 for r in rl)
    assert max(r["max_logprob_gap"] for r in rl) < 1e-6  # true on-policy: a bit of a float32 at most
    assert recorded[1]["loss"] > 4 > 3 > recorded[8]["loss"]
    completions = [json.loads(line) for line in run.completions_file.read_text().splitlines()]
    trained = [c for c in completions if "evaluation" not in c]
    assert [c["weight_versions"][0][0] for c in trained] == [1 + (c["step"] - 1) for c in trained]
    assert {c["step"]: sum(x["step"] == c["step"] for x in trained) for c in trained} == dict.fromkeys(range(1, 7), 16)
    accuracy = {r["step"]: r["accuracy"] for r in rl}  # every completion of a step is kept here
    for step, share in accuracy.items():
        assert share == pytest.approx(sum(c["report"]["correct"] for c in trained if c["step"] == step) / 16)
    assert all(0 < c["tokens"] <= 48 and c["extra"]["kind"] for c in completions)
    for label in ("before", "after SFT", "after RL"):
        of = [c for c in completions if c.get("evaluation") == label]
        assert [c["mode"] for c in of] == ["sampled"] * HELDOUT + ["greedy"] * HELDOUT
        assert of[0]["id"] == "heldout/0" and set(of[0]["report"]) >= {"correct", "format", "faithful"}
    manifest = run.manifest()
    assert manifest["plan_hash"] and manifest["data_fingerprint"] and len(manifest["attempts"]) == 1
    assert manifest["attempts"][0]["ended"]["code"] == 0
    assert "8 weight swaps, each proved" in out
    assert "warning" not in out
    exported = json.loads((run.export / "megatron_rl.json").read_text())
    assert exported == {"stage": "rl", "step": 6, "version": 7, "weights": fingerprint(run.export)}
    for part in ("before", "after SFT", "after RL", "faithful", str(run.export)):
        assert part in out


def test_the_export_is_the_policy_that_was_evaluated(whole: tuple[RunFolder, str]) -> None:
    """transformers loads it, and its greedy answers score what the run's last evaluation says."""
    run, _ = whole
    model = AutoModelForCausalLM.from_pretrained(run.export, dtype=torch.float32)
    tokenizer = load_tokenizer(run.export)
    encode = make_encoder(tokenizer)
    config = run.config()
    task = make_task(config.data, config.run.seed, tokenizer)
    reports, lengths = [], []
    for example in task.heldout[:HELDOUT]:
        prompt = torch.tensor([encode(example.prompt)])
        out = model.generate(
            prompt, max_new_tokens=48, do_sample=False, eos_token_id=tokenizer.eos_token_id, pad_token_id=0
        )[0, prompt.shape[1] :]
        text = decode(tokenizer, out.tolist(), [tokenizer.eos_token_id])
        reports.append(task.report(sample_of(example, text)))
        lengths.append(len(out))
    last = rows(run)[-1]
    for name in ("correct", "format", "faithful"):
        assert last[f"greedy/{name}"] == pytest.approx(sum(r[name] for r in reports) / HELDOUT)
    assert last["greedy/length"] == pytest.approx(sum(lengths) / HELDOUT)


def test_interrupted_and_broken_it_continues_bit_identically(whole: tuple[RunFolder, str]) -> None:
    """Ctrl-C, then an engine that dies: both end every process, and the third attempt ends as if nothing had been."""
    uninterrupted, _ = whole
    run = RunFolder(uninterrupted.path.with_name("stopped"))

    process, family = start_and_wait(run, 2)
    process.send_signal(signal.SIGINT)
    assert process.stdout is not None
    while "SIGINT: the run stops at the end of this step" not in (line := process.stdout.readline()):
        assert line, process.communicate()
    gate(run, 3).unlink()
    _, error = process.communicate(timeout=PATIENCE)
    assert process.returncode == 130
    assert all_gone(family)
    stopped = latest(run.checkpoints)
    assert stopped is not None and f"Newest checkpoint: {stopped}. Continue with: {run.command()}\n" in error
    assert read_state(stopped)["step"] == rows(run)[-1]["step"] == 3  # the one that was under way

    process, family = start_and_wait(run, 4)
    next(p for p in family if "megatron_rl.rollout.embedded.process" in " ".join(p.cmdline())).kill()
    _, error = process.communicate(timeout=PATIENCE)
    assert process.returncode == 1
    assert "engine0 was killed by SIGKILL" in error and f"Continue with: {run.command()}\n" in error
    assert all_gone(family)
    gate(run, 5).unlink()

    process = start(run.path.parent, run.path.name)
    _, error = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, error
    assert rows(run) == rows(uninterrupted)
    assert run.completions_file.read_bytes() == uninterrupted.completions_file.read_bytes()
    ours, theirs = (
        {f.name: hashlib.sha256(f.read_bytes()).hexdigest() for f in folder.export.iterdir()}
        for folder in (run, uninterrupted)
    )
    assert ours == theirs
    assert [attempt["ended"]["code"] for attempt in run.manifest()["attempts"]] == [130, 1, 0]

    again = start(run.path.parent, run.path.name)
    out, error = again.communicate(timeout=PATIENCE)
    assert again.returncode == 0 and f"{run.path} is complete: 6 steps." in out, error
    assert len(run.manifest()["attempts"]) == 3


def test_every_number_is_described(whole: tuple[RunFolder, str]) -> None:
    """docs/metrics.md is made of the same table."""
    run, _ = whole
    recorded = [json.loads(line) for line in run.metrics_file.read_text().splitlines()]
    assert {name for row in recorded for name in row if find(name) is None} == set()
    clocked = {stage: {k for row in recorded if row["stage"] == stage for k in row} for stage in ("sft", "rl", "eval")}
    assert {"time/step", "time/update", "tokens_per_second", "mfu", "memory/host_gb"} <= clocked["sft"] & clocked["rl"]
    assert {"time/generate", "time/reward", "time/swap", "time/checkpoint"} <= clocked["rl"]
    assert "time/evaluate" in clocked["eval"] and "time/evaluate" not in clocked["sft"] | clocked["rl"]


def test_a_longer_run_goes_on_from_a_finished_one(whole: tuple[RunFolder, str]) -> None:
    """The policy in hf/ is then the later one, and KL is still measured to the warm start, without sft.steps too."""
    finished, _ = whole
    run = RunFolder(finished.path.with_name("longer"))
    shutil.copytree(finished.path, run.path, symlinks=True)
    process = start(run.path.parent, run.path.name, "run.steps=7", "sft.steps=0", "algorithm.kl_coef=0.001")
    _, error = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, error
    exported = json.loads((run.export / "megatron_rl.json").read_text())
    assert exported == {"stage": "rl", "step": 7, "version": 8, "weights": fingerprint(run.export)}
    assert fingerprint(run.export) != fingerprint(finished.export)
    step = rows(run)[-2]
    # of six small steps; to the model that the warm start began from it would be several nats
    assert step["step"] == 7 and 0 < step["kl"] < 0.5
    shutil.rmtree(run.warm_start)
    again = start(run.path.parent, run.path.name, "run.steps=8", "sft.steps=0", "algorithm.kl_coef=0.001")
    _, error = again.communicate(timeout=PATIENCE)
    assert again.returncode == 2 and "reference policy" in error and str(run.warm_start) in error


def test_an_update_that_is_not_finite_goes_nowhere(tmp_path: Path) -> None:
    """The loss overflows: the run stops with its batch kept, or goes on with the weights that it had."""
    options = ("sft.steps=0", "run.steps=1", "algorithm.entropy_coef=1e38", "evaluation.greedy=false")
    process = start(tmp_path, "stopped", *options)
    _, error = process.communicate(timeout=PATIENCE)
    run = RunFolder(tmp_path / "stopped")
    assert process.returncode == 1 and "grad_norm is" in error, error
    assert not run.export.exists() and not list(run.checkpoints.glob("*"))
    kept = [json.loads(line) for line in (run.path / "failed" / "rl-000001.jsonl").read_text().splitlines()]
    assert [row["sample"] for row in kept] == list(range(16))
    assert all(len(row["tokens"]) == len(row["weight"]) == len(row["rollout_logprobs"]) for row in kept)
    assert abs(sum(sum(row["weight"]) for row in kept) - 1) < 1e-5
    process = start(tmp_path, "skipped", *options, "run.not_finite=skip")
    out, error = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, error
    run = RunFolder(tmp_path / "skipped")
    assert "warning: step 1 of rl: " in out and (run.path / "failed" / "rl-000001.jsonl").exists()
    assert next(r for r in rows(run) if r["stage"] == "rl")["skipped_updates"] == 2  # of two epochs
    assert same_weights(run)


def same_weights(run: RunFolder) -> bool:
    """Whether training has changed nothing."""
    before, after = (load_file(folder / "model.safetensors") for folder in (run.initial_model, run.export))
    return before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)


def test_a_step_of_which_nothing_is_left_changes_nothing(tmp_path: Path) -> None:
    """All completions are cut off, and those are not learned from."""
    options = ("sft.steps=0", "run.steps=2", "rollout.ignore_eos=true", "algorithm.truncated=mask")
    process = start(tmp_path, "nothing", *options, "evaluation.greedy=false")
    out, error = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, error
    run = RunFolder(tmp_path / "nothing")
    assert "step 2: Nothing can be learned" in out and same_weights(run)
    assert [r["skipped_updates"] for r in rows(run) if r["stage"] == "rl"] == [2, 2]
