"""What ``check`` finds: one violation at a time, all at once, and nothing in a recipe that works."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from megatron_rl.config import Config
from megatron_rl.data.tasks.false_belief import write_tokenizer
from megatron_rl.resharding.families import with_scalar_head
from megatron_rl.settings.check import check
from megatron_rl.settings.load import load
from megatron_rl.system import machine
from megatron_rl.system.channel import KEY
from tests.conftest import ROOT
from tests.resharding.folders.test_hf import write_folder
from tests.resharding.reference import hf_tensors

pytestmark = pytest.mark.usefixtures("forked_look")

LLAMA = {
    "model_type": "llama",
    "vocab_size": 100,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 128,
    "tie_word_embeddings": False,
}
MIXTURE = [
    *("model.architecture.model_type=qwen3_moe", "model.architecture.num_experts=4"),
    *("model.architecture.num_experts_per_tok=2", "model.architecture.moe_intermediate_size=64"),
    "rollout.embedded.true_on_policy=false",
]
ONE_RANK = ("actor.tensor_parallel=1", "actor.data_parallel=1")


def quickstart(tmp_path: Path, *overrides: str) -> Config:
    config, problems = load("quickstart", [f"run.folder={tmp_path}/runs", *overrides])
    assert problems == []
    return config


@pytest.mark.parametrize(
    ("overrides", "parts"),
    [
        (["rewards.overlong_buffer=49"], ["rewards.overlong_buffer is 49", "rollout.max_new_tokens (48)"]),
        (["rewards.overlong_factor=2"], ["rewards.overlong_factor=2.0 does nothing without rewards.overlong_buffer"]),
        (["rollout.dynamic.batch=4"], ["rollout.dynamic.batch=4 does nothing without rollout.dynamic.filter=true"]),
        (
            ["rollout.dynamic.filter=true", "algorithm.name=reinforce_pp"],
            ["algorithm.name=reinforce_pp learns as well"],
        ),
        (["rollout.dynamic.by_parts=true"], ["rollout.dynamic.by_parts must be false", "reward_normalization=sum"]),
        (
            ["rollout.dynamic.filter=true", "algorithm.reward_normalization=each"],
            ["rollout.dynamic.by_parts must be true with algorithm.reward_normalization=each"],
        ),
        (["data.mixture={a: {pth: x}}"], ["data.mixture.a.pth: there is no such option; did you mean path?"]),
        (
            ["data.mixture={a: {task: prompt_answer}, b: {}}"],
            ["data.mixture.a.path is empty; set it to a training file"],
        ),
        (["data.curriculum.by=column"], ["data.curriculum.by=column needs data.curriculum.column"]),
        (["data.curriculum.low=0.8", "data.curriculum.high=0.3"], ["no accuracy lies between them"]),
        (["data.selection.key=index"], ["data.selection.key is used with data.selection.rank_by_accuracy_std only"]),
        (["data.selection.rank_by_accuracy_std=no.json"], ["no.json cannot be read as JSON"]),
        (["run.resume=always"], ["run.resume is 'always'", "auto or never"]),
        (["model.dtype=float16"], ["model.dtype is 'float16'", "bfloat16 or float32"]),
        (["actor.optimizer.decay=exp"], ["actor.optimizer.decay", "constant, linear or cosine"]),
        (["tracking.wandb=maybe"], ["tracking.wandb", "auto, online, offline or off"]),
        (["actor.recompute=all"], ["actor.recompute", "none, selective or full"]),
        (["run.keep=0"], ["run.keep is 0", "1 or more"]),
        (["actor.threads=0"], ["actor.threads is 0"]),
        (["actor.optimizer.lr=-1"], ["actor.optimizer.lr is -1", "0 or more"]),
        (["sft_optimizer.beta2=1.0"], ["sft_optimizer.beta2 is 1.0", "between 0"]),
        (
            ["actor.optimizer.clip_grad=.inf"],
            ["actor.optimizer.clip_grad is inf; it must be a finite number, 0 or more."],
        ),
        (["actor.sequence_parallel=true", "actor.tensor_parallel=1"], ["sequence_parallel needs"]),
        (["actor.micro_batch_tokens=50"], ["micro_batch_tokens is 50", "86 tokens", "86 or more"]),
        (["actor.micro_batch_tokens=43", "actor.context_parallel=2"], []),
        (["run.name=a/b"], ["run.name is 'a/b'"]),
        (["run.name=latest"], ["run.name is 'latest'"]),
        (["run.name=" + "n" * 256], ["run.name has 256 bytes; a name on this file system has 255 at most"]),
        (["run.folder=/etc/passwd/x"], ["/etc/passwd is a file"]),
        (["model.path=/tmp", "model.architecture.model_type=qwen3"], ["One of model.path", "both are"]),
        (["model.architecture.model_type=gpt2"], ["gpt2", "llama, qwen2, qwen3, qwen3_moe"]),
        (["model.architecture.hidden_act=gelu"], ["hidden_act", "silu"]),
        (["actor.tensor_parallel=4", "model.architecture.num_attention_heads=6"], ["num_attention_heads=6", "1, 2"]),
        (["actor.freeze=model.layers.7.*"], ["'model.layers.7.*' matches no tensor"]),
        (["actor.lora.rank=4", "actor.lora.targets=lm_head"], ["'lm_head' matches no matrix"]),
        (["actor.lora.rank=-1"], ["actor.lora.rank is -1"]),
        (["actor.lora.rank=4", "actor.lora.targets=q_proj"], ["q_proj, k_proj and v_proj in one matrix"]),
        (["model.architecture.hidden_size=wide"], ["hidden_size='wide'", "a whole number"]),
        (["model.architecture.max_position_embeddings=long"], ["max_position_embeddings='long'"]),
        (["actor.pipeline_parallel=2"], ["pipeline_parallel=2", "num_hidden_layers", "1, 3"]),
        (
            MIXTURE,
            ["A mixture of experts with actor.tensor_parallel > 1 needs actor.sequence_parallel=true"],
        ),
        ([*MIXTURE, "actor.sequence_parallel=true"], []),
        (
            [*MIXTURE, "actor.sequence_parallel=true", "rollout.embedded.true_on_policy=true"],
            ["rollout.embedded.true_on_policy=true is for dense models"],
        ),
        (["actor.tensor_parallel=0"], ["actor.tensor_parallel is 0; it must be 1 or more."]),
        (["rollout.max_new_tokens=100"], ["= 138", "max_position_embeddings=128"]),
        pytest.param(
            ["actor.fp8=delayed", "model.dtype=bfloat16"],
            ["actor.fp8=delayed needs an NVIDIA GPU"],
            marks=pytest.mark.skipif(bool(machine.gpus()), reason="there is a GPU"),
        ),
        (["algorithm.minibatches=3"], ["algorithm.minibatches", "1, 2, 4, 8, 16"]),
        (["rollout.group_size=1"], ["rollout.group_size is 1", "at least 2"]),
        (["actor.data_parallel=1000000000"], ["The parallel sizes make 2000000000 ranks"]),
        (["rollout.group_size=0"], ["rollout.group_size is 0; it must be 1 or more."]),
        (["rollout.prompts_per_step=-4"], ["rollout.prompts_per_step is -4; it must be between 1 and 1000000."]),
        (
            ["run.seed=99999999999999999999"],
            ["run.seed is 99999999999999999999", "a whole number below 2^63, 0 or more"],
        ),
        (["rewards.deadline_score=.nan"], ["rewards.deadline_score is nan; it must be a finite number."]),
        (["rewards.workers=0"], ["rewards.workers is 0; it must be between 1 and 4096."]),
        (["evaluation.every=-1"], ["evaluation.every is -1; it must be 0 or more."]),
        (
            [*MIXTURE, *ONE_RANK, "rollout.sglang.routing_replay=true"],
            ["rollout.sglang.routing_replay needs rollout.engine=sglang"],
        ),
        (
            ["rollout.engine=sglang", "rollout.sglang.urls=http://10.0.0.7:1", "rollout.sglang.routing_replay=true"],
            ["rollout.sglang.routing_replay is for mixtures of experts", "model_type=qwen3 is none"],
        ),
        (["rewards.terms.no.such.reward=1"], ["no.such.reward"]),
        (["data.task=sally"], ["data.task='sally'"]),
        (["evaluation.prompts=-1"], ["evaluation.prompts is -1"]),
        (["sft.batch_size=0"], ["sft.batch_size is 0"]),
        (["run.keep=1000000000", "run.save_every=1"], ["The run writes up to", "lower run.keep"]),
    ],
)
def test_violation(tmp_path: Path, overrides: list[str], parts: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(KEY, "5f" * 16)  # of servers that run already
    found = check(quickstart(tmp_path, *overrides), contents=False).problems
    assert len(found) == bool(parts), found
    for part in parts:
        assert part in found[0]
    assert not (tmp_path / "runs").exists()


def test_replayed_routing_and_a_fused_router(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(KEY, "5f" * 16)
    served = ["rollout.engine=sglang", "rollout.sglang.urls=http://10.0.0.7:1", "rollout.sglang.routing_replay=true"]
    given = [*MIXTURE[:-1], *ONE_RANK, *served, "actor.megatron.moe_router_fusion=true"]
    found = check(quickstart(tmp_path, *given), contents=False).problems
    assert any("routing_replay cannot give the engine's choice" in said for said in found), found


def test_a_missing_size_is_named(tmp_path: Path) -> None:
    config = quickstart(tmp_path)
    del config.model.architecture["num_hidden_layers"]
    found = check(config, contents=False).problems
    assert len(found) == 1 and "num_hidden_layers" in found[0]


def test_a_model_that_does_not_fit(tmp_path: Path) -> None:
    sizes = ("hidden_size=262144", "intermediate_size=1048576", "num_hidden_layers=90")
    found = check(quickstart(tmp_path, *(f"model.architecture.{size}" for size in sizes)), contents=False).problems
    expected = ("of memory", "The run writes up to")
    if machine.gpus():
        expected = ("A rank needs at least", *expected)
    assert len(found) == len(expected)
    assert all(part in message for part, message in zip(expected, found, strict=True))


def test_a_tokenizer_of_another_model(tmp_path: Path) -> None:
    found = check(quickstart(tmp_path, "model.architecture.vocab_size=50", "run.keep=0")).problems
    assert len(found) == 2
    assert "run.keep" in found[0]
    assert "The tokenizer of data.task=false_belief has token ids up to 76" in found[1] and "vocab_size=50" in found[1]


def test_all_rooms_at_once(tmp_path: Path) -> None:
    wrong = ["rollout.top_p=2", "rewards.workers=0", "algorithm.std=n", "data.limit=-1", "actor.tensor_parallel=3"]
    found = "\n".join(check(quickstart(tmp_path, *wrong)).problems)
    for part in ("rollout.top_p", "rewards.workers", "algorithm.std", "data.limit", "num_attention_heads"):
        assert part in found


@pytest.mark.parametrize(
    ("files", "part"),
    [
        (None, "There is no such folder"),
        ({}, "config.json does not exist"),
        ({"config.json": "{"}, "config.json is not valid JSON"),
        ({"config.json": "[]"}, "config.json holds a list"),
        ({"config.json": json.dumps(LLAMA)}, "holds no weights (*.safetensors)"),
        ({"config.json": json.dumps(LLAMA), "model.safetensors": ""}, "model.safetensors is empty (0 bytes)"),
        ({"adapter_config.json": "{}"}, "holds a LoRA adapter"),
        ({"config.json": json.dumps(LLAMA | {"model_type": "bert"})}, "model_type='bert'"),
    ],
)
def test_model_folder(tmp_path: Path, files: dict[str, str] | None, part: str) -> None:
    folder = tmp_path / "model"
    if files is not None:
        folder.mkdir()
        for name, content in files.items():
            (folder / name).write_text(content)
    config = quickstart(tmp_path, f"model.path={folder}", "actor.tensor_parallel=1")
    config.model.architecture = {}
    (problem,) = check(config).problems
    assert part in problem


@pytest.mark.parametrize(
    ("changes", "part"),
    [
        ({}, "has no tokenizer"),
        ({"initializer_range": "wide"}, "initializer_range"),
        ({"vocab_size": None}, "vocab_size"),
    ],
)
def test_a_folder_with_weights(tmp_path: Path, changes: dict[str, object], part: str) -> None:
    write_folder(tmp_path / "model", hf_tensors(LLAMA, tags=False), LLAMA | changes)
    if changes:
        write_tokenizer(tmp_path / "model")
    config = quickstart(tmp_path, f"model.path={tmp_path / 'model'}", "actor.tensor_parallel=1")
    config.model.architecture = {}
    (problem,) = check(config).problems
    assert part in problem


def test_a_critic_that_does_not_fit_the_policy(tmp_path: Path) -> None:
    """Its folder is looked at where an algorithm has one; a policy cannot be a model with a scalar head."""
    ppo = ("algorithm.name=ppo", "actor.tensor_parallel=1")
    folder = tmp_path / "critic"
    at = f"critic.path={folder}"
    (gone,) = check(quickstart(tmp_path, *ppo, at), contents=False).problems
    assert gone.startswith("critic.path: ") and "There is no such folder" in gone
    write_folder(folder, hf_tensors(LLAMA, tags=False), LLAMA)
    (other,) = check(quickstart(tmp_path, *ppo, at), contents=False).problems
    assert "has vocab_size=100, and the policy 80" in other
    (none,) = check(quickstart(tmp_path, at), contents=False).problems
    assert "critic.path is set, but algorithm.name=grpo has no critic" in none
    (never,) = check(quickstart(tmp_path, *ppo, "critic.warmup_steps=40"), contents=False).problems
    assert "critic.warmup_steps is 40, and run.steps 40" in never
    assert check(quickstart(tmp_path, *ppo, "critic.warmup_steps=39"), contents=False).problems == []

    language = LLAMA | {"vocab_size": 80, "max_position_embeddings": 80}
    rewarder, tensors = tmp_path / "rewarder", hf_tensors(language, tags=False)
    tensors["score.weight"] = tensors.pop("lm_head.weight")[:1]
    write_folder(rewarder, tensors, with_scalar_head(language))
    (short,) = check(quickstart(tmp_path, *ppo, f"critic.path={rewarder}"), contents=False).problems
    assert "max_position_embeddings=80" in short and "= 86: shorten" in short
    config = quickstart(tmp_path, f"model.path={rewarder}", "actor.tensor_parallel=1")
    config.model.architecture = {}
    policy, _ = check(config, contents=False).problems  # too short it is here as well
    assert "scalar head (architectures=['LlamaForSequenceClassification'])" in policy


@pytest.mark.parametrize(
    ("overrides", "part"),
    [
        (
            ["data.curriculum.by=column", "data.curriculum.column=hardness", "data.limit=30"],
            "data.curriculum.column=hardness: the training example train/0 has no such column",
        ),
        (
            ["data.mixture={a: {}, b: {curriculum: {by: accuracy}}}"],
            "data.mixture.b: data.curriculum.by=accuracy needs",
        ),
        (["data.limit=5", "data.repeat_to_batch=6"], "data.repeat_to_batch is 6, and there are 5 training examples"),
    ],
)
def test_options_that_do_not_fit_the_rows(tmp_path: Path, overrides: list[str], part: str) -> None:
    (problem,) = check(quickstart(tmp_path, *overrides)).problems
    assert part in problem


def test_a_reward_model_is_a_run_of_its_own(tmp_path: Path) -> None:
    """Its pairs are read; beside another stage it is refused; its model may have a scalar head already."""
    alone = ("run.steps=0", "sft.steps=0", "reward_model.steps=4", "actor.tensor_parallel=1")
    (empty,) = check(quickstart(tmp_path, *alone), contents=False).problems
    assert "reward_model.data.path is empty" in empty
    pairs = tmp_path / "pairs.jsonl"
    pairs.write_text('{"raw_prompt": "where", "chosen": "jar", "rejected": "jar"}\n')
    at = f"reward_model.data.path={pairs}"
    both = check(quickstart(tmp_path, at, "reward_model.steps=4", "run.steps=3"), contents=False).problems
    assert len(both) == 1 and "there is sft.steps=600 and run.steps=3: train a reward model" in both[0]
    (equal,) = check(quickstart(tmp_path, *alone, at)).problems
    assert "row 1: chosen and rejected are equal" in equal and "reward_model.data.bad_rows=drop" in equal
    (room,) = check(quickstart(tmp_path, *alone, at, "reward_model.data.max_tokens=9000"), contents=False).problems
    assert "(2 x reward_model.data.max_tokens): set it to 18000" in room
    language = LLAMA | {"vocab_size": 80}
    rewarder, tensors = tmp_path / "rewarder", hf_tensors(language, tags=False)
    tensors["score.weight"] = tensors.pop("lm_head.weight")[:1]
    write_folder(rewarder, tensors, with_scalar_head(language))
    config = quickstart(tmp_path, *alone, at, f"model.path={rewarder}")
    config.model.architecture = {}
    assert check(config, contents=False).problems == []


def test_packages_that_do_not_fit(tmp_path: Path) -> None:
    """Found through the metadata that pip leaves, in a process that sees an old torch first."""
    info = tmp_path / "torch-2.5.1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: torch\nVersion: 2.5.1\n")
    code = "from megatron_rl.system import machine; print(*machine.package_problems(), sep='\\n')"
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(tmp_path)!r}); {code}"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == 'torch 2.5.1 is installed, which is not supported: pip install "torch>=2.11,<2.14".\n'
    assert machine.package_problems() == []


def test_what_setup_installs_is_supported() -> None:
    pins = re.findall(r"^([\w.-]+)==([\w.]+)", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    for name, specifier in machine.SUPPORTED.items():
        found = [version for pin, version in pins if pin == name]
        assert len(found) == (2 if name == "megatron-core" else 1)  # of Python 3.11, and of later ones
        assert all(machine.SpecifierSet(specifier).contains(version) for version in found)
    assert f'"torch{machine.SUPPORTED["torch"]}"' in (ROOT / "setup.py").read_text()


def test_every_reward_is_called_once_on_a_row_of_the_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "checked_rewards.py").write_text("def listed(sample):\n    print('half', end='')\n    return [1.0]\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", sys.path[:])
    (found,) = check(quickstart(tmp_path, "rewards.terms.checked_rewards.listed=1.0")).problems
    assert "with a row of the data and the response '<think> Cue " in found
    assert f"(listed in {tmp_path}/checked_rewards.py, line 1) returned [1.0] (list); it must return a number" in found


def test_rows_that_are_missing_are_said_once(tmp_path: Path) -> None:
    found = check(quickstart(tmp_path, "preference.steps=1", f"preference.data.path={tmp_path}/pairs.jsonl"))
    assert found.problems == [f"preference.data.path: the file {tmp_path}/pairs.jsonl does not exist."]


def test_to_evaluate_needs_no_training_file(tmp_path: Path) -> None:
    config, problems = load("social_r1.tiny_rows", [f"model.path={tmp_path}", "data.eval_path=q.jsonl", "run.steps=0"])
    assert not problems
    said = "data.path is empty"
    assert not any(said in problem for problem in check(config, contents=False).problems)
    config.run.steps = 1
    assert any(said in problem for problem in check(config, contents=False).problems)


@pytest.mark.parametrize(
    ("overrides", "part"),
    [
        (["critic.warmup_steps=5"], "critic.warmup_steps is set, but algorithm.name=grpo has no critic"),
        (["rollout.group_size=1", "algorithm.name=megatron_rl.algorithms.policy.grpo.GRPO"], "needs at least 2"),
        (
            ["algorithm.kl_coefs.maths=0.1"],
            "kl_coefs.maths: no training example is of this data source; there is false_belief.",
        ),
        (["actor.freeze=!model.embed_tokens.*"], "'!model.embed_tokens.*' takes nothing out"),
    ],
)
def test_options_that_would_do_nothing(tmp_path: Path, overrides: list[str], part: str) -> None:
    (problem,) = check(quickstart(tmp_path, *overrides)).problems
    assert part in problem


def test_fp8_needs_bfloat16(tmp_path: Path) -> None:
    found = check(quickstart(tmp_path, "actor.fp8=delayed"), contents=False).problems
    assert "actor.fp8=delayed needs model.dtype=bfloat16; it is float32." in found
