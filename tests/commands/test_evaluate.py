"""``megatron-rl evaluate``, with a real engine and judge: what is drawn, what is written, what goes on where it was."""

import json
import os
import shutil
import signal
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from megatron_rl.cli import main
from megatron_rl.data.tasks.false_belief import VOCABULARY, write_tokenizer
from megatron_rl.evaluation.records import Records
from megatron_rl.launch.initial_model import write_random_model
from megatron_rl.rewards.serving.scorer import Scorer

ARCHITECTURE = {
    "model_type": "qwen3",
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "intermediate_size": 48,
    "max_position_embeddings": 256,
    "tie_word_embeddings": True,
    "initializer_range": 0.3,
    "vocab_size": len(VOCABULARY),
}
SHORT = ["--max-new-tokens", "12", "--limit", "6", "--workers", "1"]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], Path]:
    """A tiny random model by its seed."""
    folder = tmp_path_factory.mktemp("models")

    def get(seed: int) -> Path:
        path = folder / f"model{seed}"
        if not path.exists():
            write_random_model(ARCHITECTURE, "float32", seed, path, write_tokenizer)
        return path

    return get


def rows(out: Path, suite: str = "false_belief") -> list[dict]:
    head, *records = map(json.loads, (out / f"{suite}.jsonl").read_text(encoding="utf-8").splitlines())
    assert head["identity"]["suite"] == suite
    return records


def test_a_megatron_checkpoint_is_its_model(models, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint, there, here = tmp_path / "megatron", tmp_path / "there", tmp_path / "here"
    assert main(["convert", "hf-to-megatron", str(models(0)), str(checkpoint)]) == 0
    (temporary := tmp_path / "tmp").mkdir()
    monkeypatch.setenv("TMPDIR", str(temporary))
    monkeypatch.setattr(tempfile, "tempdir", None)
    for model, out in ((models(0), there), (checkpoint, here)):
        assert main(["evaluate", str(model), "false_belief", *SHORT, "--out", str(out)]) == 0
    assert rows(there) == rows(here)
    assert not list(temporary.glob("megatron_rl-*"))


def test_it_draws_what_transformers_draws(models, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Greedily, from the folder's own weights; and writes completions, summary and Inspect's log."""
    folder, out = models(0), tmp_path / "out"
    assert main(["evaluate", str(folder), "false_belief", *SHORT, "--out", str(out)]) == 0
    said = capsys.readouterr().out
    assert "False belief (false_belief)" in said and "of 6 completions" in said
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    for record in rows(out):
        prompt = torch.tensor([tokenizer.encode(record["prompt"], add_special_tokens=False)])
        drawn = model.generate(prompt, max_new_tokens=12, do_sample=False)[0, prompt.shape[1] :]
        assert (
            record["completion"]
            == tokenizer.decode(drawn[: record["tokens"]]).removesuffix(tokenizer.eos_token).strip()
        )
    summary = json.loads((out / "false_belief.json").read_text())
    assert (summary["items"], summary["samples"], summary["accuracy"]["n"]) == (6, 1, 6)
    assert summary["truncated"] == sum(r["finish_reason"] == "length" for r in rows(out)) / 6
    (log,) = out.glob("20*_false-belief_*.json")
    content = json.loads(log.read_text(encoding="utf-8"))
    assert (content["version"], content["status"], len(content["samples"])) == (2, "success", 6)
    assert content["samples"][0]["scores"]["correct"]["value"] == rows(out)[0]["correct"]


def test_one_that_was_broken_off_ends_as_if_it_had_not_been(models, tmp_path: Path, capsys) -> None:
    folder, out, again = models(0), tmp_path / "out", tmp_path / "again"
    command = ["evaluate", str(folder), "false_belief", *SHORT, "--samples", "3", "--temperature", "1.5", "--seed", "2"]
    assert main([*command, "--out", str(out)]) == 0
    lines = (out / "false_belief.jsonl").read_bytes().splitlines(keepends=True)
    assert len(lines) == 1 + 18 and len({r["completion"] for r in rows(out)}) > 6
    again.mkdir()
    (again / "false_belief.jsonl").write_bytes(
        b"".join(lines[:9]) + lines[9][:20]
    )  # two prompts, and two thirds of one
    capsys.readouterr()
    assert main([*command, "--out", str(again), "--running", "2"]) == 0  # other batches, too
    assert "2 of 6 prompts were answered before" in capsys.readouterr().out
    assert rows(again) == rows(out)
    (again / "false_belief.json").unlink()
    capsys.readouterr()
    assert main([*command, "--out", str(again)]) == 0
    assert "Starting the" not in capsys.readouterr().out and (again / "false_belief.json").exists()
    assert main([*command[:-1], "3", "--out", str(again)]) == 2
    assert "is of another evaluation" in capsys.readouterr().err


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_one_that_a_signal_ends_says_that_it_goes_on(number, models, tmp_path: Path, capsys, monkeypatch) -> None:
    """After its first prompt of six; the next one has the rest."""
    append = Records.append

    def end_after_one(records: Records, rows: list[dict]) -> None:
        append(records, rows)
        os.kill(os.getpid(), number)

    command = ["evaluate", str(models(0)), "false_belief", *SHORT, "--running", "1", "--out", str(tmp_path)]
    with monkeypatch.context() as patch:
        patch.setattr(Records, "append", end_after_one)
        assert main(command) == 128 + number
    assert capsys.readouterr().err.endswith("Interrupted. The same command goes on with what is written already.\n")
    assert len(rows(tmp_path)) == 2 and main(command) == 0
    assert "2 of 6 prompts were answered before" in capsys.readouterr().out and len(rows(tmp_path)) == 6


def test_two_models_are_compared_on_the_same_questions(models, tmp_path: Path, capsys, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    command = ["evaluate", str(models(0)), "false_belief", *SHORT, "--out", "out", "--against"]
    assert main([*command, str(models(1))]) == 0
    assert "McNemar p = 1" in capsys.readouterr().out
    found = json.loads(Path("out/false_belief.json").read_text())["comparison"]
    assert found["only_here"] == found["only_there"] == 0 and found["p_value"] == 1
    (there,) = Path("out").glob("against-model1-*")
    assert not Path("evaluations").exists()
    records = (there / "false_belief.jsonl").read_text().splitlines()
    right = [json.loads(line) | {"correct": 1.0} for line in records[1:]]  # what it would be if all had been right
    (there / "false_belief.jsonl").write_text("\n".join([records[0], *map(json.dumps, right), ""]))
    assert main([*command, str(there)]) == 0
    assert "-100.0 points" in capsys.readouterr().out
    assert json.loads(Path("out/false_belief.json").read_text())["comparison"]["p_value"] == 2 / 2**6
    (there / "false_belief.jsonl").write_text("\n".join([*records[:-1], ""]))
    assert main([*command, str(there)]) == 2
    assert "is not complete (5 of 6 completions)" in capsys.readouterr().err


def test_scores_choose_among_completions(models, tmp_path: Path, capsys) -> None:
    folder, out = models(0), tmp_path / "out"
    command = ["evaluate", str(folder), "false_belief", *SHORT, "--samples", "2", "--temperature", "1"]
    assert main([*command, "--out", str(out)]) == 0
    kept = (out / "false_belief.jsonl").read_text().splitlines()
    changed = [json.loads(line) | {"correct": float(i % 2), "extracted": str(i)} for i, line in enumerate(kept[1:])]
    (out / "false_belief.jsonl").write_text("\n".join([kept[0], *map(json.dumps, changed), ""]))  # the second is right
    scores = [{"item": r["item"], "sample": r["sample"], "scores": [0.2, 0.5 + r["sample"]]} for r in changed]
    file = tmp_path / "scores.jsonl"
    file.write_text("\n".join(map(json.dumps, scores)))
    capsys.readouterr()
    assert main([*command, "--out", str(out), "--scores", str(file)]) == 0
    said = capsys.readouterr().out
    assert "prm last best of n" in said
    found = {
        rule: value["mean"] for rule, value in json.loads((out / "false_belief.json").read_text())["selected"].items()
    }
    assert found["prm_min_best_of_n"] == 0 and found["prm_last_best_of_n"] == found["prm_average_weighted_vote"] == 1
    file.write_text("\n".join(map(json.dumps, scores[:-1])))
    assert main([*command, "--out", str(out), "--scores", str(file)]) == 2
    assert f"has none for item {changed[-1]['item']}, form 0, sample 1" in capsys.readouterr().err
    file.write_text('{"item": 3}')
    assert main([*command, "--out", str(out), "--scores", str(file)]) == 2
    assert "scores.jsonl, line 1: it must be" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["--scores", "nothing.jsonl"], "--scores nothing.jsonl cannot be read: No such file or directory."),
        (["--reward-model", "nothing"], "nothing does not exist"),
        (["--reward-model", "MODEL"], "is no reward model: its config.json names no *ForSequenceClassification class."),
    ],
)
def test_what_cannot_score_is_refused_before_the_engine_starts(given, said, models, tmp_path: Path, capsys) -> None:
    folder, out = str(models(0)), tmp_path / "out"
    command = ["evaluate", folder, "false_belief", *SHORT, "--samples", "2", "--temperature", "1", "--out", str(out)]
    assert main([*command, *(word.replace("MODEL", folder) for word in given)]) == 2
    heard = capsys.readouterr()
    assert said in heard.err and "Starting" not in heard.out and not out.exists()


def test_a_reward_model_gives_scores(models, tmp_path: Path, capsys) -> None:
    folder, reward = models(0), tmp_path / "reward"
    config = AutoConfig.from_pretrained(folder, num_labels=1)
    torch.manual_seed(0)
    AutoModelForSequenceClassification.from_config(config).save_pretrained(reward)
    AutoTokenizer.from_pretrained(folder).save_pretrained(reward)
    command = ["evaluate", str(folder), "false_belief", *SHORT, "--samples", "2", "--temperature", "1"]
    command += ["--out", str(tmp_path / "out"), "--reward-model", str(reward)]
    assert main(command) == 0
    assert "weighted vote" in capsys.readouterr().out
    given = [json.loads(line) for line in (tmp_path / "out/false_belief.scores.jsonl").read_text().splitlines()]
    assert len(given) == 12 and all(len(row["scores"]) == 1 for row in given)
    asked = rows(tmp_path / "out")[3]
    assert Scorer(reward)([(asked["prompt"], asked["completion"])]) == pytest.approx(given[3]["scores"], abs=1e-5)
    assert main([*command, "--by-step"]) == 0
    assert "best of n" in capsys.readouterr().out


def test_suites_and_their_options_in_any_order(models, tmp_path: Path, capsys) -> None:
    own = tmp_path / "own.jsonl"
    own.write_text('{"prompt": "<bos> Anne leaves .", "answer": "box"}\n')
    command = ["evaluate", str(models(0)), "file", "--max-new-tokens", "4", "false_belief", f"file.path={own}"]
    assert main([*command, "file.prompt=raw", "false_belief.limit=2", "--out", str(tmp_path / "out")]) == 0
    assert len(rows(tmp_path / "out")) == 2 and rows(tmp_path / "out", "file")[0]["prompt"] == "<bos> Anne leaves ."
    assert "file" in capsys.readouterr().out


def test_bad_input(models, tmp_path: Path, capsys, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    folder = str(models(0))
    reward = tmp_path / "reward"
    shutil.copytree(folder, reward)
    config = json.loads((reward / "config.json").read_text())
    checkpoint = tmp_path / "checkpoint"
    checkpoint.mkdir()
    (checkpoint / "metadata.json").write_text("{}")
    (reward / "config.json").write_text(json.dumps(config | {"architectures": ["Qwen3ForSequenceClassification"]}))
    for arguments, said in (
        ([], "Name a model and at least one suite"),
        ([folder], "Name a model and at least one suite"),
        ([folder, "fals_belief"], "There is no suite 'fals_belief'; did you mean false_belief"),
        ([folder, "tombench"], "tombench needs its data: Clone github.com/zhchen18/ToMBench"),
        ([folder, "tombench", "--data", "no.jsonl"], "tombench: no.jsonl does not exist. Clone"),
        ([folder, "gsm8k", "tomi", "--data", "x"], "--data is for one suite, and there are 2: write gsm8k.path=x."),
        ([folder, "false_belief", "gsm8k.limit=3"], "write SUITE.key=value with a suite that is named"),
        ([folder, "false_belief", "--threads", "0"], "--threads 0 must be above 0."),
        ([folder, "false_belief", "--max-new-tokens", "250"], "knows 256 positions: lower --max-new-tokens"),
        ([folder, "false_belief", "--scores", "x"], "Scores choose among several completions"),
        ([folder, "false_belief", "--by-step"], "--by-step says how --reward-model scores; name one."),
        ([folder, "false_belief", "--samples", "2"], "draws the same completion each time"),
        ([str(reward), "false_belief"], "is a reward model, which answers nothing"),
        (["nowhere", "false_belief"], "nowhere does not exist: name a run's folder, or that of a Hugging Face model."),
        ([str(tmp_path), "false_belief"], "is neither a run's folder nor a Hugging Face model: it has no config.json"),
        ([str(checkpoint), "false_belief"], "FOLDER --model MODEL), and evaluate FOLDER."),
        (
            [folder, "hi_tom", "--data", str(_hi_tom(tmp_path))],
            f"The tokenizer {folder} cannot encode question 1 of hi_tom (",
        ),
        ([folder, "false_belief", "--max-new-tokens", "9", "--engine", "sglang"], "SGLang"),
    ):
        if said == "SGLang" and _sglang():
            continue
        assert main(["evaluate", *arguments]) == 2, arguments
        assert said in capsys.readouterr().err


def _hi_tom(folder: Path) -> Path:
    row = {"story": "1 A.", "question": "Q?", "choices": "A. x, B. y", "answer": "x", "question_order": 0}
    path = folder / "hi_tom.jsonl"
    path.write_text(json.dumps(row | {"deception": False, "story_length": 1, "sample_id": 0}) + "\n")
    return path


def _sglang() -> bool:
    from megatron_rl.system import machine

    return machine.installed("sglang") is not None


def test_cards_need_no_model(capsys) -> None:
    assert main(["evaluate", "--list"]) == 0
    said = capsys.readouterr().out
    assert "training  forbidden: its authors ask that nobody trains on it" in said
    assert main(["evaluate", "--list", "tomi"]) == 0
    assert capsys.readouterr().out.startswith("tomi: ToMi\n  source ")
    assert main(["evaluate", "--list", "tome"]) == 2
