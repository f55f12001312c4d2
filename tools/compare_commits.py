"""Train the same runs with the code of two commits and compare what they leave, bit by bit.

    python tools/compare_commits.py main HEAD --questions questions.parquet
    python tools/compare_commits.py main . --runs quickstart-0,staleness --steps 3      a quick look

The older commit comes first; a path that starts with . or / is a working tree as it is then. Runs: quickstart-0 and
quickstart-1 (two seeds), social_r1 (social_r1.tiny_rows on --questions; a random model never earns its reward, so there
is another one and a learning rate that shows), staleness (the quick start, generating one step ahead). Compared are
metrics.jsonl (evaluations in their order, whatever they are called; not what LEFT_OUT names), completions.jsonl
(responses with or without the text of the end token) and the tensors in hf/. What only the newer side's rows have is
listed and is no difference. Exit code: 0 equal, 1 a difference or a run that failed, 2 bad input, 128 + signal.

--work keeps the runs of a commit in FOLDER/HASH, complete ones alone, and takes them from there where settings,
questions, packages and processor are the same; a working tree's are kept in FOLDER/NAME-old or -new and made anew.
One commit named twice shows whether its runs repeat; with --work it makes each once, for later comparisons.
"""

import argparse
import contextlib
import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

Values = dict[tuple[str, str], str]  # (row or tensor, name) -> what is there, as text that is equal for equal bits

RUNS = {
    "quickstart-0": ["quickstart", "run.seed=0"],
    "quickstart-1": ["quickstart", "run.seed=1"],
    "social_r1": ["social_r1.tiny_rows", "rewards.terms.length_window=1", "actor.optimizer.lr=1e-3"],
    "staleness": ["quickstart", "rollout.staleness=1"],
}
SFT_PER_STEP = 15  # supervised steps for each step of RL, as in the quick start's recipe: 600 and 40
LEFT_OUT = re.compile(  # metrics that no run repeats (times, rates, memory), and what an evaluation is called
    r"(time[/_]|timestamp|memory|throughput|swap[/_]ms).*|.*(_per_second|_seconds|_ms)|label|evaluation"
)
# Whose code would run, and what decides about its last bits besides.
ASK = """
import json, os, pathlib, sys, importlib.metadata, megatron_rl, recipes
for module in megatron_rl, recipes:
    assert module.__file__.startswith(os.getcwd() + os.sep), f"imports {module.__file__}"
cpu = next((line for line in pathlib.Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line), "")
facts = {"python": sys.version, "cpu": cpu.split(":")[-1].strip(), "cores": os.cpu_count()}
packages = ("torch", "transformers", "tokenizers", "megatron-core", "numpy", "datasets")
print(json.dumps(facts | {name: importlib.metadata.version(name) for name in packages}))
"""


def end(code: int, message: str) -> NoReturn:
    """With the training under way and the code it runs; signals do not disturb that any more."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    print(message, file=sys.stderr)
    sys.exit(code)


def git(*arguments: str, tree: str = ".") -> str:
    """What git prints; when it fails, this program's end."""
    done = subprocess.run(["git", "-C", tree, *arguments], capture_output=True, text=True)
    return done.stdout if done.returncode == 0 else end(2, f"error: git {' '.join(arguments)}: {done.stderr.strip()}")


@contextlib.contextmanager
def code_of(commit: str) -> Iterator[Path]:
    """A folder with the code of a commit, or with a copy of a working tree."""
    with tempfile.TemporaryDirectory(prefix="compare-") as temporary:
        folder = Path(temporary).resolve() / "code"
        if commit.startswith("/"):  # a run with it takes minutes, in which it may change
            for name in git("ls-files", "-z", "--cached", "--others", "--exclude-standard", tree=commit).split("\0"):
                if (source := Path(commit, name)).is_file():  # one that was deleted is listed, too
                    (folder / name).parent.mkdir(parents=True, exist_ok=True)
                    shutil.copy2(source, folder / name)
            yield folder
            return
        try:
            git("worktree", "add", "--detach", str(folder), commit)
            yield folder
        finally:
            subprocess.run(["git", "worktree", "remove", "-ff", folder], capture_output=True)  # half made, it is locked


def execute(command: list[str], code: Path) -> tuple[int, str]:
    """Exit code and output of a Python command that imports ``code``; it has ended when this function ends."""
    env = os.environ | {"PYTHONPATH": str(code), "OMP_NUM_THREADS": "1"}
    with (
        tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as said,
        subprocess.Popen(  # in a session of its own: Ctrl-C comes here alone
            command, cwd=code, env=env, stdin=subprocess.DEVNULL, stdout=said, stderr=said, start_new_session=True
        ) as child,
    ):
        try:
            status = child.wait()
        finally:
            child.terminate()  # nothing happens when it has ended
        said.seek(0)
        return status, said.read()


def train(run: str, code: Path, folder: Path, facts: dict[str, Any], options: argparse.Namespace) -> str:
    """Make the folder of a run, whole or not at all; returns what went wrong."""
    with tempfile.TemporaryDirectory(prefix=".unfinished-", dir=folder.parent) as temporary:
        commands = [["-m", "megatron_rl.cli", "train", *facts["command"], f"run.folder={temporary}", "run.name=run"]]
        if run == "social_r1":
            commands[0] += [f"{k}={options.questions}" for k in ("data.path", "data.eval_path")]
            commands[0] += [f"model.path={temporary}/model"]
            commands.insert(0, ["tools/make_tiny_model.py", str(options.questions), f"{temporary}/model"])
        for command in commands:
            for file in Path(temporary).glob("model/*.jinja"):  # answers begin by thinking, so lengths count
                file.write_text(file.read_text().replace("assistant\n", "assistant\n<think>"))
            status, said = execute([options.python, *command], code)
            if status:
                return f"failed: {' '.join(command)} ended with {status}\n{said[-3000:]}"
        Path(temporary, "run/compared.json").write_text(json.dumps(facts, indent=2) + "\n")
        shutil.rmtree(folder, ignore_errors=True)
        Path(temporary, "run").rename(folder)
    return ""


def make_runs(commit: str, side: str, temporary: Path, options: argparse.Namespace) -> dict[str, Path]:
    """The folders of a commit's runs, without those that failed; one that is there and was made alike is kept."""
    name = f"{Path(commit).name}-{side}" if commit.startswith("/") else commit
    base = options.work.resolve() / name if options.work else temporary / side
    if commit.startswith("/"):  # what was kept was made with other code
        shutil.rmtree(base, ignore_errors=True)
    base.mkdir(parents=True, exist_ok=True)
    found: dict[str, Path] = {}
    with code_of(commit) as code:
        status, said = execute([options.python, "-c", ASK], code)
        if status:
            end(2, f"error: {options.python} does not run {commit}:\n{said}")
        for run in options.runs:
            more = ["tracking.wandb=off", f"run.steps={options.steps}", f"sft.steps={SFT_PER_STEP * options.steps}"]
            command = RUNS[run] + more[: 1 if not options.steps else 2 if run == "social_r1" else 3]
            questions = run == "social_r1" and hashlib.sha256(options.questions.read_bytes()).hexdigest()
            facts = json.loads(said.splitlines()[-1]) | {"command": command, "questions": questions}
            folder, started = base / (f"{run}-{options.steps}-steps" if options.steps else run), time.monotonic()
            kept = folder.exists() and json.loads((folder / "compared.json").read_text()) == facts
            wrong = "" if kept else train(run, code, folder, facts, options)
            seconds = round(time.monotonic() - started)
            print(f"{side}  {name[:16]:16}  {run:12}  {'kept' if kept else wrong or f'{seconds} s'}", flush=True)
            if not wrong:
                found[run] = folder
    return found


def read(run: Path) -> dict[str, Values]:
    """What is compared of a run. Tensors are read without a library, which would have to know their types."""
    found: dict[str, Values] = {"metrics": {}, "completions": {}, "tensors": {}}
    stop = json.loads((run / "hf/tokenizer_config.json").read_text(encoding="utf-8"))["eos_token"]
    for kind in ("metrics", "completions"):
        seen: Counter[str] = Counter()
        for line in (run / f"{kind}.jsonl").read_text(encoding="utf-8").rstrip("\n").split("\n"):
            row = json.loads(line, parse_int=float)  # an integer may have become a float
            group = row.get("stage") or ("evaluation" if row.get("evaluation") else "training")
            seen[group] += 1
            if "response" in row:
                row["response"] = row["response"].removesuffix(stop).rstrip(" ")  # some decoders put a space before it
                row |= {f"components/{name}": value for name, value in row.pop("components", {}).items()}
            values = {(f"{group} row {seen[group]}", k): json.dumps(v, ensure_ascii=False) for k, v in row.items()}
            found[kind] |= {key: value for key, value in values.items() if not LEFT_OUT.fullmatch(key[1])}
    for file in (run / "hf").glob("*.safetensors"):
        content = file.read_bytes()
        start = 8 + int.from_bytes(content[:8], "little")
        header = json.loads(content[8:start])
        header.pop("__metadata__", None)
        for name, about in sorted(header.items()):
            first, last = (start + offset for offset in about["data_offsets"])
            what, digest = f"{about['dtype']} {about['shape']}", hashlib.sha256(content[first:last]).hexdigest()
            found["tensors"][f"tensor {name}", "content"] = f"{what} sha256 {digest}"
    return found


def compare(old: Values, new: Values) -> tuple[list[str], list[str]]:
    """The differences; and what only the newer side has: names in rows of both, and rows of a kind of their own."""
    places, found = {place for place, _ in old}, []
    kinds, more = {place.split()[0] for place in places}, [key for key in new if key not in old]
    wrong = [key for key in old if old[key] != new.get(key)]
    for key in wrong + [key for key in more if key[0] not in places and key[0].split()[0] in kinds]:
        pair = old.get(key, "nothing"), new.get(key, "nothing")
        at = max(next((i for i in range(min(map(len, pair))) if pair[0][i] != pair[1][i]), 0) - 30, 0)
        found.append(f"{', '.join(key)}: {' -> '.join('…' * (at > 0) + text[at : at + 120] for text in pair)}")
    own = [name if place in places else f"{place.split()[0]} rows" for place, name in more]
    return found, list(dict.fromkeys(own))


def report(run: str, old: Path, new: Path) -> bool:
    """Print a run's row of the table, with what there is to say about it below; returns whether all is equal."""
    before, after, counts, said, equal = read(old), read(new), [], [], True
    for kind in before:
        found, names = compare(before[kind], after[kind])
        counts.append(len({place for place, _ in before[kind]}))
        equal = equal and counts[-1] > 0 and not found
        if found:
            said.append(f"{len(found)} of {len(before[kind])} values of {kind} differ, first {found[0]}")
        if names:
            said.append(f"only the newer {kind} have {', '.join(names)}")
    hashes = [hashlib.sha256(repr(sorted(side["tensors"].items())).encode()).hexdigest() for side in (before, after)]
    said.append(f"all tensors: sha256 {' -> '.join(dict.fromkeys(hashes))}")
    row = f"{run:<14}{counts[0]:>11}{counts[1]:>13}{counts[2]:>9}  {'equal' if equal else 'DIFFERENT'}"
    print(row, *said, sep="\n    ", flush=True)
    return equal


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("commits", metavar="COMMIT", nargs=2, help="the older one, then the newer one")
    parser.add_argument("--questions", type=Path, metavar="FILE", help="parquet of questions, for social_r1")
    parser.add_argument("--steps", type=int, default=0, help="of RL, for a quick look (default: the recipes')")
    parser.add_argument("--runs", default=",".join(RUNS), help="which, separated by commas (default: all)")
    parser.add_argument("--work", type=Path, metavar="FOLDER", help="where runs are kept (default: nowhere)")
    parser.add_argument("--python", default=sys.executable, help="that runs the code (default: this one)")
    options = parser.parse_args()
    options.runs = list(dict.fromkeys(options.runs.split(",")))
    if not options.questions and "social_r1" in options.runs:
        print("social_r1 is left out: it needs --questions FILE", flush=True)
        options.runs.remove("social_r1")
    if options.steps < 0 or not options.runs or not set(options.runs) <= set(RUNS):
        parser.error(f"--runs must be of {', '.join(RUNS)}, and --steps 1 or more")
    options.questions = options.questions and options.questions.resolve()  # the code that reads it lies elsewhere
    options.python = os.path.abspath(shutil.which(options.python) or options.python)
    if missing := [file for file in (options.questions, Path(options.python)) if file and not file.is_file()]:
        parser.error(f"{missing[0]} is not a file")
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda number, _: end(128 + number, "Stopped."))
    for i, given in enumerate(options.commits):  # no name of a commit starts as these paths do
        tree, commit = given.startswith((".", "/")), f"{given}^{{commit}}"
        named = git("rev-parse", "--show-toplevel", tree=given) if tree else git("rev-parse", "--verify", commit)
        options.commits[i] = named.strip()  # a path or a full hash
    with tempfile.TemporaryDirectory(prefix="compare-runs-") as temporary:
        old = make_runs(options.commits[0], "old", Path(temporary), options)
        new = make_runs(options.commits[1], "new", Path(temporary), options)
        print(f"\n{'run':<14}{'metric rows':>11}{'completions':>13}{'tensors':>9}")
        equal = [report(run, old[run], new[run]) for run in options.runs if run in old and run in new]
    sys.exit(not all(equal) or len(equal) < len(options.runs))


if __name__ == "__main__":
    main()
