"""Social-R1 end to end: a reward model that is trained and served, a judge over HTTP, the page's commands."""

import json
import os
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from megatron_rl.rewards.serving.judge import KEY as JUDGE_KEY
from megatron_rl.rewards.serving.reward_model import KEY as MODEL_KEY
from megatron_rl.rewards.serving.scorer import Scorer
from megatron_rl.rewards.terms.social.social_r1 import combine, content_prompt, content_reply
from megatron_rl.settings.load import load
from megatron_rl.tracking.names import find
from megatron_rl.tracking.run_folder import RunFolder
from tests.conftest import PATIENCE, ROOT, free_port
from tests.rewards.serving import Server, said, serving
from tests.test_docs import blocks

PAGE = (ROOT / "docs" / "recipes" / "social_r1.md").read_text(encoding="utf-8")
SHORT = ["tracking.wandb=off", "tracking.tensorboard=false", "evaluation.prompts=0"]
PLACES = ("box", "bag", "jar", "cupboard")
STAGES = "Cue Encoding: Ann left the ball in the {}.\nCue Interpretation: she thinks it is there.\nthe answer is ({})"


def commands() -> list[str]:
    """Of the page's blocks, each in one line."""
    lines = [line for block in blocks(PAGE) for line in re.sub(r"\\\n\s*|(?<=,)\n\s*", " ", block).splitlines()]
    return [line for line in lines if "megatron-rl " in line or line.startswith("python tools/")]


def run(words: list[str], folder: Path, **env: str) -> str:
    command = [sys.executable, "-m", "megatron_rl.cli"] if words[0] == "megatron-rl" else [sys.executable]
    env = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"} | env
    done = subprocess.run([*command, *words[1:]], cwd=folder, env=env, capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode == 0, (words, done.stdout, done.stderr)
    return done.stdout


def write(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Questions whose targets have the form, pairs of reasonings, the page's files, a tiny model."""
    here = tmp_path_factory.mktemp("social")
    questions, pairs = [], []
    for i in range(64):
        story, question = f"Ann left ball {i} in the {PLACES[i % 4]}.", f"Where does she look for ball {i}?"
        think = STAGES.format(PLACES[i % 4], "ABCD"[i % 4])
        target = f"<think>{think}</think>\n<Answer>{'ABCD'[i % 4]}</Answer>"
        asked = {"story": story, "question": question}
        questions.append(asked | {"options": list(PLACES), "answer": "ABCD"[i % 4], "target": target})
        pairs.append(asked | {"chosen": think, "rejected": "I think so."})
    write(here / "questions.jsonl", questions)
    write(here / "social_pairs.jsonl", pairs)
    (here / "tools").symlink_to(ROOT / "tools")
    (rubric,) = re.findall(r"```text\n(.*?)```", PAGE, re.DOTALL)
    (here / "rubric.txt").write_text(rubric)
    (snippet,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    (here / "pairs.py").write_text(snippet)
    run(["python", "pairs.py"], here)
    run(["python", "tools/make_tiny_model.py", "questions.jsonl", "models/tiny"], here)
    return here


@pytest.fixture(scope="module")
def model(folder: Path) -> Iterator[tuple[str, str]]:
    """The URL and the key of the reward model, trained and served as the page says."""
    (training,) = [command for command in commands() if "social_r1.tiny_reward_model" in command]
    run([*shlex.split(training), "reward_model.steps=12", *SHORT], folder)
    served = ["serve", "runs/social_r1_tiny_reward_model", "--port", str(free_port())]
    env = os.environ | {"PYTHONPATH": str(ROOT), "MEGATRON_RL_API_KEY": "", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "megatron_rl.cli", *served]
    server = subprocess.Popen(command, cwd=folder, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert server.stdout is not None
    told = ""
    while not (found := re.search(r"Serving rewards at (\S+)/score, key (\w+)", told)):
        line = server.stdout.readline()
        assert line, told
        told += line
    yield found[1], found[2]
    server.send_signal(signal.SIGINT)
    server.wait(PATIENCE)


@pytest.fixture(scope="module")
def judge() -> Iterator[Server]:
    """Answers three times in four, with 500 the first time; what it says hangs on how much was thought."""
    seen: set[str] = set()

    def reply(body: Any) -> Any:
        text = body["messages"][0]["content"]
        number = len(text) % 8
        if number in (1, 2) and text not in seen:
            seen.add(text)
            return 500, b"busy"
        return 200, said("no idea" if number in (0, 1) else f"<Score>{number / 8}</Score>")

    with serving(reply) as server:
        yield server


@pytest.fixture(scope="module")
def trained(folder: Path, model: tuple[str, str], judge: Server) -> RunFolder:
    """A run with a short warm start that asks both."""
    url, key = model
    (judged,) = [command for command in commands() if "structure: judge" in command]
    asked = [word for word in shlex.split(judged) if word.startswith("rewards.")]
    asked = [word.replace("http://HOST:8134", judge.url).replace("timeout: 15", "timeout: 60") for word in asked]
    asked += [
        *("rewards.deadline=400", "rewards.first_deadline=400"),
        f"rewards.args.social_r1={{content: reward_model, reward_model: {{url: '{url}', timeout: 60}}}}",
        *("sft.steps=60", "sft_optimizer.lr=0.003", "run.steps=3", "rollout.max_new_tokens=96", "run.name=asks"),
        *("tracking.completions=40", "algorithm.kl_coef=0", "rollout.temperature=0.7"),
    ]
    words = ["megatron-rl", "train", "social_r1.tiny_rows", "model.path=models/tiny", "data.path=questions.jsonl"]
    run([*words, *asked, *SHORT], folder, **{JUDGE_KEY: "the-judges-key", MODEL_KEY: key})
    return RunFolder(folder / "runs" / "asks")


def rows(run: RunFolder) -> list[dict[str, Any]]:
    lines = map(json.loads, run.metrics_file.read_text().splitlines())
    return [row for row in lines if row["stage"] == "rl"]


def test_the_reward_is_made_of_what_both_say(trained: RunFolder, folder: Path) -> None:
    completions = [json.loads(line) for line in trained.completions_file.read_text().splitlines()]
    assert len(completions) == 3 * 40
    scorer = Scorer(folder / "runs" / "social_r1_tiny_reward_model" / "hf")
    questions = [json.loads(line) for line in (folder / "questions.jsonl").read_text().splitlines()]
    formed = 0
    for row in completions:
        part = {name.removeprefix("social_r1/"): value for name, value in row["components"].items()}
        numbers = [part[name] for name in ("fmt", "em", "structure", "content")]
        assert row["reward"] == pytest.approx(combine(*numbers, row["step"] - 1, part["length"]))
        assert part["structure"] in [*(number / 8 for number in range(2, 8)), 0.0]
        formed += part["fmt"] > 0
        if think := re.match(r"<think>(.*?)</think>", row["response"], re.DOTALL):
            of = questions[int(row["id"].partition("/")[2]) - 1]
            (given,) = scorer([(content_prompt(of["story"], of["question"]), content_reply(think[1]))])
            assert part["content"] == pytest.approx(given, abs=1e-4)
    assert formed  # or nothing of this was tried


def test_what_was_asked_is_counted(trained: RunFolder, judge: Server) -> None:
    steps = rows(trained)
    assert {name for row in steps for name in row if find(name) is None} == set()
    total = {
        name: sum(40 * row[f"reward/social_r1/{name}"] for row in steps)
        for name in ("judge/calls", "judge/cached", "judge/retries", "judge/prompt_tokens", "reward_model/failed")
    }
    assert total["judge/calls"] + total["judge/cached"] == pytest.approx(120)
    trial = 2  # check asks with a row of the data: all rewards at once
    asked = len({body["messages"][0]["content"] for body in judge.asked})
    assert total["judge/calls"] >= asked - trial and total["reward_model/failed"] == 0
    assert all(0 <= row["reward/social_r1/disagreement"] <= 1 for row in steps)
    monitors = ("score", "named", "characters", "coverage", "order", "answer_first", "grounded")
    assert all(f"reward/social_monitors/{name}" in row for row in steps for name in monitors)
    assert sum(row["reward_timeouts"] + row["reward_crashes"] for row in steps) == 0
    assert set(judge.keys) == {"Bearer the-judges-key"}


def test_the_manifest_says_who_judged_and_no_file_the_key(trained: RunFolder, judge: Server, folder: Path) -> None:
    of_judge, of_model = trained.manifest()["rewards"]["social_r1"]
    assert (of_judge["judge"], of_judge["url"], of_judge["rubric"]) == ("gpt-4o", judge.url, "rubric.txt")
    assert len(of_judge["rubric_hash"]) == 32 and of_model.keys() == {"reward_model"}
    cached = [path for path in (folder / "judged").rglob("*") if path.is_file()]
    assert cached and all(0 <= float(path.read_text()) <= 1 for path in cached)
    for path in trained.path.rglob("*"):
        if path.is_file() and path.suffix in (".json", ".jsonl", ".yaml", ".log", ".txt"):
            assert "the-judges-key" not in path.read_text(errors="replace")


def test_commands_of_the_page(folder: Path) -> None:
    """What runs here is run with fewer steps; the others name recipes and options that there are."""
    tiny = next(command for command in commands() if "train social_r1.tiny_rows " in command)
    words = [word.replace(".parquet", ".jsonl") for word in shlex.split(tiny)]
    run([*words, "run.steps=2", *SHORT], folder)
    trained = [shlex.split(command.partition("megatron-rl ")[2]) for command in commands() if "train" in command]
    assert len(trained) >= 9
    for _, recipe, *overrides in trained:
        config, problems = load(recipe, overrides)
        model = config.model.path or config.model.architecture
        assert not problems and model and config.rewards.terms["social_r1"]


def test_generated_situations_are_learned(tmp_path: Path) -> None:
    """Short: the faults of the warm start begin to go."""
    (command,) = [command for command in commands() if command.endswith("train social_r1.tiny")]
    fewer = ["sft.steps=200", "run.steps=8", "rollout.prompts_per_step=12", "actor.optimizer.lr=3e-4", "run.name=short"]
    run([*shlex.split(command), *fewer, *SHORT], tmp_path)
    steps = rows(RunFolder(tmp_path / "runs" / "short"))
    assert len(steps) == 8
    first, last = ([row["reward/social_r1/score"] for row in part] for part in (steps[:2], steps[-2:]))
    assert sum(last) > 1.3 * sum(first)
