"""Whole runs of ``megatron-rl train``: two ranks, an engine, a reward worker; interrupted, killed and continued."""

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, cast

import psutil
import pytest
import torch
from transformers import AutoModelForCausalLM

from megatron_rl.algorithms.config import AlgorithmConfig
from megatron_rl.config import Config
from megatron_rl.data.registry import make_task
from megatron_rl.data.tokenizer import load_tokenizer, make_encoder
from megatron_rl.errors import InputError
from megatron_rl.tracking.run_folder import RunFolder
from megatron_rl.train import watch
from megatron_rl.training.driver import Driver
from megatron_rl.training.progress import Position
from tests.conftest import PATIENCE, ROOT

SMALL = [
    *("sft.steps=8", "run.steps=6", "run.save_every=2", "run.resume=auto", "evaluation.every=0"),
    *("rollout.prompts_per_step=4", "rollout.group_size=4", "evaluation.prompts=12", "tracking.wandb=off"),
    *("sft_optimizer.warmup_steps=2", "algorithm.mismatch_limit=1e-12"),
]
HELDOUT = 12


def start(folder: Path, name: str, *overrides: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "megatron_rl.cli", "train", "quickstart"]
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    pipes: dict[str, Any] = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    return subprocess.Popen(
        [*command, f"run.folder={folder}", f"run.name={name}", *SMALL, *overrides], env=env, **pipes
    )


def start_and_wait(run: RunFolder, checkpoint: str) -> tuple[subprocess.Popen[str], list[psutil.Process]]:
    """Start or continue a run; returns when the checkpoint is there, with all the run's processes."""
    process = start(run.path.parent, run.path.name)
    while not (run.checkpoints / checkpoint).exists():
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    family = psutil.Process(process.pid).children(recursive=True)
    assert len(family) >= 4  # two ranks, engine, reward worker
    return process, family


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
    clocked = ("time/", "tokens_per_second", "timestamp", "memory/")
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
    assert [c["weight_versions"][0][0] for c in completions] == [1 + (c["step"] - 1) for c in completions]
    manifest = run.manifest()
    assert manifest["plan_hash"] and manifest["data_fingerprint"] and len(manifest["attempts"]) == 1
    assert "8 weight swaps, each proved" in out
    assert "warning" not in out
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
        reports.append(task.report(example, tokenizer.decode(out, skip_special_tokens=False)))
        lengths.append(len(out))
    last = rows(run)[-1]
    for name in ("correct", "format", "faithful"):
        assert last[f"greedy/{name}"] == pytest.approx(sum(r[name] for r in reports) / HELDOUT)
    assert last["greedy/length"] == pytest.approx(sum(lengths) / HELDOUT)


def test_interrupted_and_broken_it_continues_bit_identically(whole: tuple[RunFolder, str]) -> None:
    """Ctrl-C, then an engine that dies: both end every process, and the third attempt ends as if nothing had been."""
    uninterrupted, _ = whole
    run = RunFolder(uninterrupted.path.with_name("stopped"))

    process, family = start_and_wait(run, "step-1-000002")
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=PATIENCE)
    assert process.returncode == 130
    assert all_gone(family)

    process, family = start_and_wait(run, "step-1-000004")
    next(p for p in family if "megatron_rl.rollout.embedded.process" in " ".join(p.cmdline())).kill()
    _, error = process.communicate(timeout=PATIENCE)
    assert process.returncode == 1
    assert "engine0 was killed by SIGKILL" in error and str(run.path) in error
    assert all_gone(family)

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
    assert len(run.manifest()["attempts"]) == 3


def test_an_engine_that_disagrees_can_end_the_run(capsys: pytest.CaptureFixture[str]) -> None:
    """Every rank raises what the command line prints; at the limit itself, and without one, nothing happens."""
    config = Config(algorithm=AlgorithmConfig(mismatch_limit=0.05, mismatch_action="stop"))
    metrics = {"engine_kl_k3": 0.0625, "p99_logprob_gap": 1.5, "max_logprob_gap": 4.0}
    with pytest.raises(InputError, match=r"Step 7 stopped the run .*engine_kl_k3=0.0625 nats .*limit is 0.05"):
        watch(None, Position("rl", step=7), config, metrics)
    config.algorithm.mismatch_action = "warn"
    watch(None, Position("rl", step=7), config, metrics)  # rank 0 alone says it
    assert not capsys.readouterr().out
    watch(cast(Driver, object()), Position("rl", step=7), config, metrics)
    said = "warning: step 7: the engine's log-probs differ from the actor's by engine_kl_k3=0.0625"
    assert capsys.readouterr().out.startswith(said)
    config.algorithm.mismatch_action = "stop"
    watch(None, Position("rl", step=7), config, metrics | {"engine_kl_k3": 0.05})
    config.algorithm.mismatch_limit = 0.0
    watch(None, Position("rl", step=7), config, metrics)
