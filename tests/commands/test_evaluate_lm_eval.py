"""``megatron-rl evaluate MODEL lm_eval:TASK`` against lm-eval's own Hugging Face backend, on the same items."""

import json
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import pytest

from megatron_rl.cli import main
from megatron_rl.launch.initial_model import write_random_model
from tools.make_tiny_model import write_tokenizer

pytest.importorskip("lm_eval", reason="lm-eval is not installed: pip install 'megatron-rl[eval]'")

from lm_eval import simple_evaluate
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager

from megatron_rl.evaluation.harness import tasks

NAMES = ("Anne", "Bob", "Carla", "Dan", "Eve", "Finn", "Gus", "Hana")
THINGS = ("apples", "books", "coins", "ducks", "eggs", "forks")
GSM8K = {"exact_match,strict-match", "exact_match,flexible-extract"}


def problem(i: int) -> dict[str, str]:
    """A row as GSM8K has them."""
    name, thing, a, b = NAMES[i % 8], THINGS[i % 6], 3 + i, 2 + i % 5
    return {
        "question": f"{name} has {a} {thing} and buys {b} more every day of a week. How many {thing} are there then?",
        "answer": f"In a week {name} buys 7*{b} = <<7*{b}={7 * b}>>{7 * b} {thing}.\n"
        f"There are {a}+{7 * b} = <<{a}+{7 * b}={a + 7 * b}>>{a + 7 * b} {thing}.\n#### {a + 7 * b}",
    }


def write(folder: Path, **splits: list[dict]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for split, rows in splits.items():
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    return write(folder, train=[problem(i) for i in range(40)], test=[problem(100 + i) for i in range(12)])


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory, data: Path) -> Path:
    """Random weights, and a tokenizer that tools/make_tiny_model.py has learnt from the rows."""
    architecture = {
        "model_type": "qwen3",
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "intermediate_size": 48,
        "max_position_embeddings": 400,
        "tie_word_embeddings": True,
        "initializer_range": 0.3,
        "vocab_size": 512,
    }
    folder = tmp_path_factory.mktemp("models") / "tiny"
    write_random_model(
        architecture,
        "float32",
        0,
        folder,
        lambda inside: write_tokenizer(data / "train.jsonl", 512, inside),
    )
    return folder


@pytest.fixture(scope="module", autouse=True)
def managers() -> Iterator[None]:
    """Each reads all of lm-eval's own tasks: one does for all that include nothing."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tasks, "TaskManager", manager)
        yield


@cache
def manager(include_path: str | None = None) -> TaskManager:
    return TaskManager(include_path=include_path)


def reference(model: Path, task: str | dict, include: Path | None = None, **options) -> dict:
    known = manager(include_path=str(include) if include else None)
    found = list(known.load([task])["tasks"].values())
    backend = HFLM(pretrained=str(model), device="cpu", dtype="float32", batch_size=4)
    return simple_evaluate(backend, tasks=found, task_manager=known, bootstrap_iters=0, **options)


def with_data(data: Path) -> dict:
    files = {split: str(data / f"{split}.jsonl") for split in ("train", "test")}
    own = {"task": "gsm8k", "dataset_path": "json", "dataset_name": None, "dataset_kwargs": {"data_files": files}}
    return {"group": "own", "task": [own]}


def read(out: Path, name: str) -> tuple[dict, list[dict], list[dict]]:
    """The numbers, the samples, and the records of answers."""
    lines = (out / f"{name}.jsonl").read_text().splitlines()
    samples = (out / f"{name}.samples.jsonl").read_text().splitlines()
    summary = json.loads((out / f"{name}.json").read_text())
    return summary, [*map(json.loads, samples)], [*map(json.loads, lines[1:])]


def same(samples: list[dict], expected: list[dict], key: Callable[[dict], object]) -> None:
    assert [key(sample) for sample in samples] == [key(sample) for sample in expected]


def test_gsm8k_is_that_of_the_hugging_face_backend(model, data, tmp_path, capsys) -> None:
    """Few-shot and greedy; two of the questions have what the model answers for their right answers."""
    limits = ["lm_eval:gsm8k.num_fewshot=2", "--max-new-tokens", "40"]
    first = tmp_path / "first"
    assert main(["evaluate", str(model), "lm_eval:gsm8k", "--data", str(data), *limits, "--out", str(first)]) == 0
    rows = [problem(100 + i) for i in range(12)]
    flexible = [s for s in read(first, "lm_eval_gsm8k")[1] if s["filter"] == "flexible-extract"]
    said = [(i, s["filtered_resps"][0]) for i, s in enumerate(flexible) if s["filtered_resps"] != ["[invalid]"]]
    assert len(said) >= 2
    for i, answer in said[:2]:
        rows[i] = rows[i] | {"answer": f"Its own words.\n#### {answer}"}
    own = write(tmp_path / "own", train=[problem(i) for i in range(40)], test=rows)
    capsys.readouterr()
    out = tmp_path / "out"
    assert main(["evaluate", str(model), "lm_eval:gsm8k", "--data", str(own), *limits, "--out", str(out)]) == 0
    assert "lm_eval:gsm8k), 2-shot" in capsys.readouterr().out
    expected = reference(model, with_data(own), num_fewshot=2, gen_kwargs={"max_gen_toks": 40})
    summary, samples, answers = read(out, "lm_eval_gsm8k")
    numbers = {key: summary["lm_eval"]["results"]["gsm8k"][key] for key in GSM8K}
    assert numbers == {key: expected["results"]["gsm8k"][key] for key in GSM8K}
    assert numbers["exact_match,flexible-extract"] >= 2 / 12
    for key in ("doc_id", "filter", "prompt_hash", "target", "resps", "filtered_resps", "exact_match"):
        same(samples, expected["samples"]["gsm8k"], lambda sample, key=key: sample[key])
    (row,) = (row for row in summary["rows"] if row["filter"] == "flexible-extract")
    assert (row["n"], row["mean"]) == (12, numbers["exact_match,flexible-extract"]) and row["low"] < row["mean"]
    assert len(answers) == 12 and summary["packages"]["lm_eval"]


YAML = """\
task: own_{kind}
dataset_path: json
dataset_kwargs:
  data_files:
    test: {file}
test_split: test
doc_to_text: "{{{{question}}}}"
num_fewshot: 0
"""
CHOICE = 'output_type: multiple_choice\ndoc_to_target: "{{label}}"\ndoc_to_choice: "{{choices}}"\n'
WHOLE = (
    "output_type: loglikelihood_rolling\n"
    'doc_to_target: "{{question}}"\n'
    "metric_list:\n  - metric: word_perplexity\n  - metric: bits_per_byte\n"
)


def test_given_answers_are_scored(model, tmp_path) -> None:
    """Multiple choice, and whole texts of which one is longer than the model's window; tasks from YAML files."""
    file = tmp_path / "rows.jsonl"
    rows = [problem(i) | {"choices": [f"{10 + i}", f"{20 + i} eggs", "none"], "label": i % 3} for i in range(9)]
    rows[4]["question"] = " ".join(problem(i)["question"] for i in range(40))
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    for kind, rest in (("choice", CHOICE), ("whole", WHOLE)):
        (tmp_path / f"{kind}.yaml").write_text(YAML.format(kind=kind, file=file) + rest)
    command = ["evaluate", str(model), f"lm_eval:{tmp_path}/choice.yaml", "lm_eval:own_whole", "--out", f"{tmp_path}/o"]
    assert main([*command, f"lm_eval:own_whole.include={tmp_path}", f"lm_eval:{tmp_path}/choice.yaml.limit=7"]) == 0
    summary, samples, _ = read(tmp_path / "o", "lm_eval_choice")
    assert summary["prompts_cut"] == 3
    expected = reference(model, str(tmp_path / "choice.yaml"), limit=7)
    same(samples, expected["samples"]["own_choice"], lambda sample: sample["acc"])
    for ours, theirs in zip(samples, expected["samples"]["own_choice"], strict=True):
        for (one,), (other,) in zip(ours["resps"], theirs["resps"], strict=True):
            assert float(one[0]) == pytest.approx(float(other[0]), abs=1e-3) and str(one[1]) == str(other[1])
    results = read(tmp_path / "o", "lm_eval_own_whole")[0]["lm_eval"]["results"]["own_whole"]
    others = reference(model, "own_whole", tmp_path)["results"]["own_whole"]
    for key in ("word_perplexity,none", "bits_per_byte,none"):
        assert results[key] == pytest.approx(others[key], rel=1e-4)


def test_one_that_was_broken_off_goes_on(model, data, tmp_path, capsys) -> None:
    """Sampled, in the chat template; what is answered is not asked again, and other questions are refused."""
    out = tmp_path / "out"
    command = ["evaluate", str(model), "lm_eval:gsm8k", "--max-new-tokens", "8", "--temperature", "1", "--limit", "5"]
    command += ["lm_eval:gsm8k.num_fewshot=1", "lm_eval:gsm8k.chat=true", "--out", str(out), "--data"]
    assert main([*command, str(data)]) == 0
    before = (out / "lm_eval_gsm8k.jsonl").read_bytes()
    assert before.count(b"<|im_start|>assistant") == 10  # a solved one, then the question
    (out / "lm_eval_gsm8k.jsonl").write_bytes(b"".join(before.splitlines(keepends=True)[:3]))
    assert main([*command, str(data), "--running", "1"]) == 0
    assert (out / "lm_eval_gsm8k.jsonl").read_bytes() == before
    capsys.readouterr()
    assert main([*command, str(data)]) == 0
    assert "Starting the" not in capsys.readouterr().out
    other = write(tmp_path / "other", train=[problem(i) for i in range(40)], test=[problem(7)] * 5)
    assert main([*command, str(other)]) == 2
    assert "line 2 answers another question than lm_eval:gsm8k asks now" in capsys.readouterr().err
    assert main([*command, str(data), "--seed", "1"]) == 2
    assert "is of another evaluation" in capsys.readouterr().err


def test_bad_input(model, data, tmp_path, capsys) -> None:
    (tmp_path / "empty").mkdir()
    choice = tmp_path / "choice.yaml"
    rows = write(tmp_path / "rows", test=[{"question": "Q?", "choices": ["a", "b"], "label": 0}]) / "test.jsonl"
    choice.write_text(YAML.format(kind="choice", file=rows) + CHOICE)
    gsm8k, at = "lm_eval:gsm8k", f"--data={data}"
    for arguments, said in (
        (["lm_eval:gsm8kk"], "lm-eval knows no such task, and there is no such YAML file; did you mean lm_eval:gsm8k"),
        ([gsm8k, "--data", str(tmp_path / "no")], "and must be a folder"),
        ([gsm8k, "--data", str(tmp_path / "empty")], "must hold a file SPLIT.jsonl"),
        ([gsm8k, f"{gsm8k}.shots=3"], "lm_eval:gsm8k has no such option"),
        ([gsm8k, "--samples", "3"], "lm_eval:gsm8k has no such option"),
        ([gsm8k, "--top-k", "3"], "set lm_eval:gsm8k.temperature, too"),
        ([gsm8k, "--against", "x"], "--against is for suites"),
        ([gsm8k, at, "--max-new-tokens", "400"], "leave no room for a prompt in the model's 400"),
        ([f"lm_eval:{choice}", "--engine", "sglang"], "own_choice has given answers, whose log-probabilities only"),
        ([f"lm_eval:{choice}", f"lm_eval:{choice}.num_fewshot=3"], "sets num_fewshot: 0"),
    ):
        assert main(["evaluate", str(model), *arguments, "--out", str(tmp_path / "out")]) == 2, arguments
        assert said in capsys.readouterr().err
