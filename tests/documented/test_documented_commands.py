"""Every command that the README and docs/ show is run here, or by the tests of SGLang or lm-eval, with fewer steps.

Where one differs from another by options of data and rewards alone, ``check`` looks at its rows and calls its rewards.
"""

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import datasets
import pytest

from tests.actor.models import write_model
from tests.conftest import PATIENCE, ROOT
from tests.resharding.families.test_families import DEEPSEEK_V3
from tests.test_docs import commands, documents

SMALL = [
    "sft.steps=1",
    "run.steps=1",
    "actor.tensor_parallel=1",
    "evaluation.every=0",
    "evaluation.prompts=4",
    "tracking.wandb=off",
]
SMALL += ["rollout.prompts_per_step=4", "rollout.group_size=2", "tracking.tensorboard=false"]
TINY = ["run.steps=1", "evaluation.prompts=4", "tracking.wandb=off", "tracking.tensorboard=false"]
TINY += ["rollout.group_size=2", "rollout.max_new_tokens=4", "data.max_prompt_tokens=400", "run.resume=never"]
SHORT = ["sft.steps=2", "run.steps=1", "evaluation.prompts=4", "tracking.wandb=off", "tracking.tensorboard=false"]
CHECKED = ("rewards.args.", "rewards.schedules.", "data.template=", "my_package")
RUNS: dict[str, list[str]] = {  # what is added to a command, by how it begins
    "megatron-rl train quickstart rollout.engine=sglang": ["SGLANG"],
    "megatron-rl serve": ["SGLANG"],
    "megatron-rl engine": ["SGLANG"],
    "megatron-rl train grpo.tiny": TINY,
    "megatron-rl train social_r1.tiny_rows": TINY,
    "megatron-rl train one_shot.tiny": SHORT,
    "megatron-rl train seele.sums": SHORT,
    "megatron-rl train quickstart": [*SMALL, "run.resume=never"],
    "megatron-rl train runs/quickstart/config.yaml": ["run.resume=auto"],
    "megatron-rl train my_package": [*SMALL, "run.name=mine"],
    "megatron-rl train my_package.recipes.mine run.steps=0": ["actor.tensor_parallel=1"],
    "megatron-rl evaluate": ["--limit", "8", "--max-new-tokens", "16"],
    "megatron-rl watch": ["--once"],
    "megatron-rl": [],
    "python tools/make_tiny_model.py": [],
}
ENDS_WITH_2 = (  # no such model is here, or no data
    "megatron-rl check social_r1.qwen3_4b",
    "megatron-rl check social_r1.qwen3_4b --gpu h100 --gpus 8 --model models/Qwen3-4B/config.json --suggest",
)
RECIPE = """
import recipes.quickstart

def mine():
    return recipes.quickstart.quickstart()
"""


def added(command: str) -> list[str]:
    return RUNS[max((begin for begin in RUNS if command.startswith(begin)), key=len)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what the commands take for granted."""
    here = tmp_path_factory.mktemp("docs")
    rows: list[dict[str, Any]] = [
        {"story": "Ann left the ball in the box.", "question": f"Where is ball {i}?", "options": ["box", "bag"]}
        | {"answer": "AB"[i % 2]}
        for i in range(16)
    ]
    datasets.Dataset.from_list(rows).to_parquet(str(here / "questions.parquet"))
    lines = [json.dumps({"question": f"What is {i} + {i}?", "answer": f"It is #### {2 * i}"}) for i in range(16)]
    (here / "train.jsonl").write_text("\n".join(lines))
    [(reward, *_)] = [re.findall(r"```python\n(.*?)```", p.read_text(), re.DOTALL) for p in documents()[:1]]
    (here / "my_rewards.py").write_text(reward)
    (here / "my_package").mkdir()
    (here / "my_package" / "recipes.py").write_text(RECIPE)
    (here / "pairs.jsonl").write_text('{"raw_prompt": "where", "chosen": "jar", "rejected": "box"}\n' * 4)
    (here / "tools").symlink_to(ROOT / "tools")
    write_model("qwen3", here / "models" / "Qwen3-4B")
    (here / "DeepSeek-V3").mkdir()
    (here / "DeepSeek-V3" / "config.json").write_text(json.dumps(DEEPSEEK_V3))
    return here


def run(command: str, folder: Path) -> subprocess.CompletedProcess[str]:
    words = [*shlex.split(command), *added(command)]
    if words[:2] == ["megatron-rl", "train"] and any(option in command for option in CHECKED):
        words[1] = "check"
    first = [sys.executable, "-m", "megatron_rl.cli"] if words[0] == "megatron-rl" else [sys.executable]
    env = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.run([*first, *words[1:]], cwd=folder, env=env, capture_output=True, text=True, timeout=PATIENCE)


def in_order(command: str) -> int:
    """What makes something that others need goes first."""
    train = "megatron-rl train quickstart run."
    first = ["python tools/", f"{train}steps", f"{train}name=kept", "megatron-rl convert megatron-to-hf"]
    return next((place for place, begin in enumerate(first) if command.startswith(begin)), len(first))


def test_commands_of_the_documentation(folder: Path) -> None:
    failed = []
    for command in sorted(commands(), key=in_order):
        if command.startswith("make ") or added(command) == ["SGLANG"] or "lm_eval:" in command:
            continue
        done = run(command, folder)
        if done.returncode != (2 if command in ENDS_WITH_2 else 0):
            failed.append(f"{command}\n  exit code {done.returncode}: {(done.stdout + done.stderr)[-1500:]}")
        checkpoints = folder / "runs" / "quickstart" / "checkpoints"
        if (checkpoints / "step-1-000001").exists() and not (checkpoints / "step-1-000040").exists():
            (checkpoints / "step-1-000040").symlink_to("step-1-000001")  # of a run of all steps
    assert not failed, "\n".join(failed)
