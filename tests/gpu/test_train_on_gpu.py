"""The loop on CUDA with NCCL: the same command as on a CPU. Skipped, with the reason, where there is no GPU."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from megatron_rl.resharding.files import open_hf_folder
from megatron_rl.resharding.hf_folder import read_hf_config
from tests.conftest import ROOT

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU and a CUDA build of torch")


@pytest.mark.parametrize(("dtype", "gap"), [("float32", 1e-3), ("bfloat16", 0.3)])
def test_quickstart(dtype: str, gap: float, tmp_path: Path) -> None:
    ranks = min(2, torch.cuda.device_count())
    options = [
        *("sft.steps=40", "run.steps=3", "evaluation.prompts=16", "evaluation.every=0", "tracking.wandb=off"),
        *(f"run.folder={tmp_path}", f"model.dtype={dtype}", f"actor.tensor_parallel={ranks}"),
    ]
    done = subprocess.run(
        [sys.executable, "-m", "megatron_rl.cli", "train", "quickstart", *options],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert done.returncode == 0, done.stderr
    run = tmp_path / "quickstart"
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    sft = [r["loss"] for r in rows if r["stage"] == "sft"]
    rl = [r for r in rows if r["stage"] == "rl"]
    assert sft[-1] < sft[0] / 4
    assert [r["weight_version"] for r in rl] == [2, 3, 4]
    assert max(r["max_logprob_gap"] for r in rl) < gap
    exported = open_hf_folder(run / "hf", read_hf_config(run / "hf"))
    assert all(t.isfinite().all() for t in exported.values())
