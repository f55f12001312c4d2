"""The loop on CUDA with NCCL: the same command as on a CPU. Skipped, with the reason, where there is no GPU."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from megatron_rl.resharding.folders.hf import read_hf_config
from megatron_rl.resharding.folders.load import open_hf_folder
from megatron_rl.system import machine
from tests.conftest import ROOT

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU and a CUDA build of torch")


def _train(folder: Path, options: list[str], **environment: str) -> list[dict[str, Any]]:
    """A run to its end; its rows of metrics."""
    done = subprocess.run(
        [sys.executable, "-m", "megatron_rl.cli", "train", "quickstart", *options],
        env=os.environ | {"PYTHONPATH": str(ROOT), **environment},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    lines = (folder / "quickstart" / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


@pytest.mark.parametrize(("dtype", "gap"), [("float32", 1e-3), ("bfloat16", 0.3)])
def test_quickstart(dtype: str, gap: float, tmp_path: Path) -> None:
    ranks = min(2, torch.cuda.device_count())
    options = [
        *("sft.steps=40", "run.steps=3", "evaluation.prompts=16", "evaluation.every=0", "tracking.wandb=off"),
        *(f"run.folder={tmp_path}", f"model.dtype={dtype}", f"actor.tensor_parallel={ranks}"),
    ]
    rows, run = _train(tmp_path, options), tmp_path / "quickstart"
    sft = [r["loss"] for r in rows if r["stage"] == "sft"]
    rl = [r for r in rows if r["stage"] == "rl"]
    assert sft[-1] < sft[0] / 4
    assert [r["weight_version"] for r in rl] == [2, 3, 4]
    assert max(r["max_logprob_gap"] for r in rl) < gap
    _check_export(run)


def test_a_run_goes_on_where_it_ended(tmp_path: Path) -> None:
    """Two steps, then two more from the checkpoint: the weights of four steps in one go, but for rounding."""
    options = ["sft.steps=40", "run.save_every=1", "evaluation.prompts=16", "evaluation.every=0", "tracking.wandb=off"]
    options += ["model.dtype=float32", "actor.tensor_parallel=1", "run.resume=auto", "actor.optimizer.decay=constant"]
    weights = {}
    for name, steps in (("whole", 4), ("parts", 2), ("parts", 4)):
        folder = tmp_path / name
        rows = _train(folder, [*options, f"run.folder={folder}", f"run.steps={steps}"])
        assert [r["step"] for r in rows if r["stage"] == "rl"] == list(range(1, steps + 1))
        hf = folder / "quickstart" / "hf"
        opened = open_hf_folder(hf, read_hf_config(hf))
        weights[name, steps] = torch.cat([t.flatten().double() for _, t in sorted(opened.items())])
    moved = (weights["whole", 4] - weights["parts", 2]).norm()
    assert (weights["whole", 4] - weights["parts", 4]).norm() < moved / 10


SAVING = [  # AdamW's state in 16 bits, or half of it on the host, saved before its first step too
    ["actor.moments=bfloat16", "actor.gradients=bfloat16"],
    ["actor.optimizer_on_host=0.5"],
    ["actor.megatron.overlap_grad_reduce=true", "actor.megatron.overlap_param_gather=true"],
    ["actor.fp8=tensorwise", "actor.bf16_layers=1"],
    ["actor.fp8=blockwise", "actor.fp8_weights=true"],
    ["actor.fp8=blockwise", "actor.recompute=full"],
]


@pytest.mark.parametrize("how", SAVING)
def test_options_of_memory(how: list[str], tmp_path: Path) -> None:
    if machine.installed("transformer-engine") is None:
        pytest.skip("needs Transformer Engine")
    options = ["sft.steps=40", "run.steps=2", "evaluation.prompts=16", "evaluation.every=0", "run.save_every=1"]
    options += ["tracking.wandb=off", "model.dtype=bfloat16", f"run.folder={tmp_path}", "actor.tensor_parallel=1"]
    rows = _train(tmp_path, [*options, f"actor.data_parallel={min(2, torch.cuda.device_count())}", *how])
    sft = [r["loss"] for r in rows if r["stage"] == "sft"]
    assert sft[-1] < sft[0] / 4


COLOCATED = ["rollout.sglang.colocated=true"]
ASLEEP = [*COLOCATED, "actor.asleep=true", "run.save_every=1"]  # a checkpoint reads what lies on the host
FP8 = ["rollout.sglang.fp8=true", "model.architecture.num_key_value_heads=4"]  # keys and values of whole tiles
EXPERTS = [  # each of the engine's two workers has two of the four
    *("model.architecture.model_type=qwen3_moe", "model.architecture.num_experts=4"),
    *("model.architecture.num_experts_per_tok=2", "model.architecture.moe_intermediate_size=64"),
    *("model.architecture.norm_topk_prob=true", "model.architecture.tie_word_embeddings=false"),
    *("rollout.sglang.tensor_parallel=2", "rollout.sglang.expert_parallel=2"),
]


CASES: list[tuple[str, list[str]]] = [
    *(("cuda_ipc", []), ("shared_memory", []), ("gloo", []), ("nccl", [])),
    *(("cuda_ipc", COLOCATED), ("cuda_ipc", ASLEEP), ("cuda_ipc", FP8), ("gloo", FP8), ("cuda_ipc", EXPERTS)),
]


def sglang_options(transport: str, how: list[str]) -> list[str]:
    return [
        *("sft.steps=4", "run.steps=3", "evaluation.prompts=16", "evaluation.every=0", "tracking.wandb=off"),
        *("model.dtype=bfloat16", "actor.tensor_parallel=1", "rollout.engine=sglang"),
        "model.architecture.head_dim=64",  # kernels for heads of 32 are rare
        *(f"rollout.sglang.transport={transport}", "rollout.sglang.args.mem_fraction_static=0.3"),
        *how,
    ]


@pytest.mark.parametrize(("transport", "how"), CASES)
def test_sglang_is_swapped(transport: str, how: list[str], tmp_path: Path) -> None:
    """With one GPU the trainer's is the engine's too; over NCCL they need one each."""
    if machine.installed("sglang") is None:
        pytest.skip("needs SGLang: make sglang")
    if (transport == "nccl" or how is EXPERTS) and torch.cuda.device_count() < 2:
        pytest.skip("needs two GPUs: NCCL connects different ones, and every worker of an engine has its own")
    options = [f"run.folder={tmp_path}", *sglang_options(transport, how)]
    # or an FP8 server compiles its kernels for every number of tokens before it answers
    rows = _train(tmp_path, options, **{"SGLANG_JIT_DEEPGEMM_PRECOMPILE": "0"} if how is FP8 else {})
    rl = [r for r in rows if r["stage"] == "rl"]
    assert [r["weight_version"] for r in rl] == [2, 3, 4]
    assert max(r["max_logprob_gap"] for r in rl) < (1.0 if how is FP8 else 0.3)
    _check_export(tmp_path / "quickstart")


def _check_export(run: Path) -> None:
    exported = open_hf_folder(run / "hf", read_hf_config(run / "hf"))
    assert all(t.isfinite().all() for t in exported.values())
