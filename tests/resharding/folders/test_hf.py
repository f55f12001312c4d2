"""Hugging Face folders: into sharded models and out again bit by bit, through transformers too, and broken ones."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from safetensors import safe_open
from safetensors.torch import save_file

from megatron_rl.errors import InputError
from megatron_rl.resharding.families.table import stored_dtype
from megatron_rl.resharding.folders import export
from megatron_rl.resharding.folders import hf as hf_folder_module
from megatron_rl.resharding.folders.export import export_hf
from megatron_rl.resharding.folders.hf import model_config, open_stored, read_hf_config
from megatron_rl.resharding.folders.load import load_hf, open_hf_folder
from megatron_rl.resharding.layout import ParallelSizes
from megatron_rl.resharding.layouts.megatron import megatron_layout
from megatron_rl.resharding.proof import ProofError
from megatron_rl.resharding.swap import SwapSource
from megatron_rl.resharding.transports.shared_memory import publish
from megatron_rl.system.files import require_space
from tests.resharding.families.test_families import DEEPSEEK, GLM4_MOE
from tests.resharding.reference import Case, Tensors, cases, hf_tensors, megatron_shards

CONFIG: dict[str, Any] = {
    "model_type": "qwen3",
    "architectures": ["Qwen3ForCausalLM"],
    "hidden_size": 8,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 4,
    "intermediate_size": 12,
    "vocab_size": 13,
    "num_hidden_layers": 2,
    "tie_word_embeddings": True,
    "dtype": "float32",
}
MOE = CONFIG | {
    "model_type": "qwen3_moe",
    "architectures": ["Qwen3MoeForCausalLM"],
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 6,
    "tie_word_embeddings": False,
}
SIZES = ParallelSizes(tensor=2, pipeline=2)


def write_folder(folder: Path, hf: Tensors, config: dict[str, Any], files: int = 1) -> Path:
    """A checkpoint as it lies on the hub, in ``files`` shards."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    many = [f"model-{i + 1:05d}-of-{files:05d}.safetensors" for i in range(files)]
    names = many if files > 1 else ["model.safetensors"]
    for i, name in enumerate(names):
        save_file({n: t.contiguous() for n, t in list(hf.items())[i::files]}, folder / name)
    if files > 1:
        weight_map = {n: names[i % files] for i, n in enumerate(hf)}
        (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return folder


def load(folder: Path, config: dict[str, Any], sizes: ParallelSizes, dtype: torch.dtype, **kind: bool) -> list[Tensors]:
    """Every rank's parameters, loaded into memory full of sevens."""
    ranks = []
    for rank, shard in enumerate(megatron_layout(config, sizes, **kind).ranks):
        ranks.append({name: torch.full(shape, 7, dtype=dtype) for name, shape in shard.locals.items()})
        load_hf(folder, config, sizes, rank, ranks[-1], **kind)
    return ranks


def read_folder(folder: Path) -> Tensors:
    found: Tensors = {}
    for path in folder.glob("*.safetensors"):
        with safe_open(path, "pt") as file:
            found |= {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    return found


def padding_to_zero(
    shards: list[Tensors], hf: Tensors, config: dict[str, Any], sizes: ParallelSizes, *kind: bool
) -> None:
    """The reference marks padding with -1; loading makes it zero."""
    marks = megatron_shards({n: torch.zeros_like(t) for n, t in hf.items()}, config, sizes, *kind)
    for shard, mark in zip(shards, marks, strict=True):
        for tensor, m in zip(shard.values(), mark.values(), strict=True):
            tensor[m == -1] = 0


SECOND = "model-00002-of-00003.safetensors"
INDEX = "model.safetensors.index.json"


def cut(path: Path, size: int) -> None:
    path.write_bytes(path.read_bytes()[:size])


def rewrite(path: Path, change: Callable[[Tensors], Tensors]) -> None:
    with safe_open(path, "pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    save_file(change(tensors), path)


def edit_index(folder: Path, changes: dict[str, str | None]) -> None:
    content = json.loads((folder / INDEX).read_text())
    content["weight_map"] = {n: f for n, f in (content["weight_map"] | changes).items() if f}
    (folder / INDEX).write_text(json.dumps(content))


@settings(
    max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(cases())
def test_load_and_export_round_trip(tmp_path_factory: pytest.TempPathFactory, case: Case) -> None:
    """Folder -> sharded model -> folder -> differently sharded model, in bfloat16, with many small files and bands."""
    tmp_path = tmp_path_factory.mktemp("round_trip")
    hf = {name: t.bfloat16() for name, t in hf_tensors(case.config, tags=False).items()}
    write_folder(tmp_path / "a", hf, case.config, files=3)
    first = load(tmp_path / "a", case.config, case.a, torch.bfloat16, **case.names)
    expected = megatron_shards(hf, case.config, case.a, case.fused_norms, case.grouped_experts)
    padding_to_zero(expected, hf, case.config, case.a, case.fused_norms, case.grouped_experts)
    for found, shard in zip(first, expected, strict=True):
        assert found.keys() == shard.keys()
        assert all(torch.equal(found[name], shard[name]) for name in shard)
    memories = [publish(rank) for rank in first]
    source = SwapSource(case.config, case.a, memories=memories, **case.names)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(export, "BUFFER", 32)
        export_hf(tmp_path / "b", source, max_shard_bytes=1000)
    exported = read_folder(tmp_path / "b")
    assert exported.keys() == hf.keys() and all(torch.equal(exported[name], hf[name]) for name in hf)
    second = load(tmp_path / "b", case.config, case.b, torch.bfloat16)
    expected = megatron_shards(hf, case.config, case.b)
    padding_to_zero(expected, hf, case.config, case.b)
    for found, shard in zip(second, expected, strict=True):
        assert all(torch.equal(found[name], shard[name]) for name in shard)


@pytest.mark.parametrize("config", [CONFIG, MOE])
@pytest.mark.parametrize("max_shard_bytes", [2000, 10**9])
def test_transformers_loads_what_is_exported(config: dict[str, Any], max_shard_bytes: int, tmp_path: Path) -> None:
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(1)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**config))
    model.save_pretrained(tmp_path / "a")
    (tmp_path / "a" / "tokenizer.json").write_text("{}")
    (tmp_path / "a" / "notes.txt").write_text("not part of a model")
    hf_config = read_hf_config(tmp_path / "a")
    ranks = load(tmp_path / "a", hf_config, SIZES, torch.float32)
    source = SwapSource(hf_config, SIZES, False, False, [publish(rank) for rank in ranks])
    export_hf(tmp_path / "b", source, carry_from=tmp_path / "a", max_shard_bytes=max_shard_bytes)
    loaded: Any = AutoModelForCausalLM.from_pretrained(tmp_path / "b", output_loading_info=True)
    again, info = loaded
    assert not any(info.values())
    expected = dict(model.named_parameters())
    assert [n for n, _ in again.named_parameters()] == list(expected)
    assert all(torch.equal(p, expected[name]) for name, p in again.named_parameters())
    assert (tmp_path / "b" / "tokenizer.json").exists() and not (tmp_path / "b" / "notes.txt").exists()
    written, before = (json.loads((tmp_path / x / "config.json").read_text()) for x in "ba")
    assert written == before
    files = [p for p in (tmp_path / "b").glob("*.safetensors")]
    limit = max(max_shard_bytes, max(p.numel() for p in expected.values()) * 4)
    assert all(f.stat().st_size - int.from_bytes(f.read_bytes()[:8], "little") - 8 <= limit for f in files)
    assert (len(files) == 1) == (tmp_path / "b" / "model.safetensors").exists()


def test_export_in_another_dtype(tmp_path: Path) -> None:
    hf = hf_tensors(CONFIG, tags=False)
    ranks = megatron_shards(hf, CONFIG, SIZES)
    source = SwapSource(CONFIG, SIZES, False, False, [publish(rank) for rank in ranks])
    export_hf(tmp_path / "b", source, dtype=torch.bfloat16)
    exported = read_folder(tmp_path / "b")
    assert all(torch.equal(exported[name], t.bfloat16()) for name, t in hf.items())
    assert read_hf_config(tmp_path / "b")["dtype"] == "bfloat16"
    loaded = load(tmp_path / "b", CONFIG, ParallelSizes(), torch.float32)  # and is cast on the way in
    assert torch.equal(loaded[0]["0/decoder.final_layernorm.weight"], hf["model.norm.weight"].bfloat16().float())


@pytest.mark.parametrize("keys", [("dtype",), ("torch_dtype",), ("dtype", "torch_dtype"), ()])
def test_an_export_says_what_it_holds_by_every_name(keys: tuple[str, ...], tmp_path: Path) -> None:
    from transformers import AutoConfig

    config = {k: v for k, v in CONFIG.items() if k != "dtype"} | dict.fromkeys(keys, "bfloat16")
    ranks = megatron_shards(hf_tensors(config, tags=False), config, SIZES)
    export_hf(tmp_path / "b", SwapSource(config, SIZES, False, False, [publish(rank) for rank in ranks]))
    assert {t.dtype for t in read_folder(tmp_path / "b").values()} == {torch.float32}
    written = read_hf_config(tmp_path / "b")
    assert {key: written.get(key) for key in keys or ("dtype",)} == dict.fromkeys(keys or ("dtype",), "float32")
    assert stored_dtype(written) == "float32" and AutoConfig.from_pretrained(tmp_path / "b").dtype == torch.float32


CARRIED = [
    *("tokenizer.json", "tokenizer.model", "chat_template.jinja", "additional_chat_templates/rag.jinja"),
    *(
        "tokenization_small.py",
        "generation_config.json",
        "preprocessor_config.json",
        "LICENSE",
        "sentencepiece.bpe.model",
    ),
]
LEFT = ["README.md", "training_args.bin", "optimizer.pt", "trainer_state.json", ".gitattributes", "old/tokenizer.json"]


def test_all_that_belongs_to_a_model_is_carried(tmp_path: Path) -> None:
    config = CONFIG | {"quantization_config": {"quant_method": "fp8"}}
    origin = tmp_path / "a"
    for name in CARRIED + LEFT:
        (origin / name).parent.mkdir(parents=True, exist_ok=True)
        (origin / name).write_text(name)
    ranks = megatron_shards(hf_tensors(config, tags=False), config, SIZES)
    source = SwapSource(config, SIZES, False, False, [publish(rank) for rank in ranks])
    export_hf(tmp_path / "b", source, carry_from=origin)
    written = {p.relative_to(tmp_path / "b").as_posix(): p for p in (tmp_path / "b").rglob("*") if p.is_file()}
    assert written.keys() == {*CARRIED, "config.json", "model.safetensors"}
    assert all(written[name].read_text() == name for name in CARRIED)
    assert "quantization_config" not in read_hf_config(tmp_path / "b")


def test_export_is_all_or_nothing(tmp_path: Path) -> None:
    ranks = megatron_shards(hf_tensors(CONFIG, tags=False), CONFIG, SIZES)
    source = SwapSource(CONFIG, SIZES, False, False, [publish(rank) for rank in ranks])
    with pytest.raises(FileNotFoundError):
        export_hf(tmp_path / "out" / "b", source, carry_from=tmp_path / "nowhere")  # after the weights are written
    assert not list((tmp_path / "out").iterdir())
    (tmp_path / "there").mkdir()
    with pytest.raises(InputError, match="there exists already"):
        export_hf(tmp_path / "there", source)
    with pytest.raises(InputError, match=r"\d+ MB free; the model needs 1152921504607 MB\. Free some\."):
        require_space(tmp_path, 1 << 60, "the model", "Free some.")


def test_a_tied_checkpoint_may_store_its_head(tmp_path: Path) -> None:
    hf = hf_tensors(CONFIG, tags=False)
    head = hf["model.embed_tokens.weight"].clone()
    stored = hf | {"lm_head.weight": head, "model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(2)}
    tensors = open_hf_folder(write_folder(tmp_path / "a", stored, CONFIG, files=2), CONFIG)
    assert tensors.keys() == hf.keys()
    assert all(torch.equal(tensors[name], t.flatten()) for name, t in hf.items())


def test_a_tied_checkpoint_may_store_its_head_alone(tmp_path: Path) -> None:
    hf = hf_tensors(CONFIG, tags=False)
    stored = {name.replace("model.embed_tokens", "lm_head"): t for name, t in hf.items()}
    assert stored.keys() != hf.keys()
    tensors = open_hf_folder(write_folder(tmp_path / "a", stored, CONFIG), CONFIG)
    assert tensors.keys() == hf.keys()
    assert all(torch.equal(tensors[name], t.flatten()) for name, t in hf.items())


def test_what_is_no_weight_need_not_be_in_the_index(tmp_path: Path) -> None:
    hf = hf_tensors(CONFIG, tags=False)
    folder = write_folder(tmp_path / "a", hf, CONFIG, files=3)
    rewrite(folder / SECOND, lambda t: t | {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(2)})
    edit_index(folder, {"model.layers.1.self_attn.rotary_emb.inv_freq": SECOND})  # nor in the file, if it is
    assert open_hf_folder(folder, CONFIG).keys() == hf.keys()


@pytest.mark.parametrize("files", [1, 3])
@pytest.mark.parametrize("config", [DEEPSEEK, GLM4_MOE])
def test_prediction_layers_without_tensors_are_no_layers(config: dict[str, Any], files: int, tmp_path: Path) -> None:
    """As transformers saves these models: it has no such layers, and leaves their number in config.json."""
    predicted = f"model.layers.{config['num_hidden_layers']}."
    hf = hf_tensors(config | {"num_nextn_predict_layers": 0}, tags=False)
    folder = write_folder(tmp_path / "a", hf, config, files)
    assert model_config(folder) == config | {"num_nextn_predict_layers": 0}
    assert open_stored(folder, config).hf_config["num_nextn_predict_layers"] == 0
    without = megatron_shards(hf, config | {"num_nextn_predict_layers": 0}, ParallelSizes())
    (rank,) = load(folder, config | {"num_nextn_predict_layers": 0}, ParallelSizes(), torch.float32)
    assert rank.keys() == without[0].keys() and all(torch.equal(rank[n], t) for n, t in without[0].items())
    parameters = {name: torch.full_like(t, 7) for name, t in rank.items()}
    load_hf(folder, config, ParallelSizes(), 0, parameters)
    assert all(torch.equal(parameters[n], t) for n, t in rank.items())
    whole = hf_tensors(config, tags=False)
    assert model_config(write_folder(tmp_path / "b", whole, config, files)) == config
    some = {name: t for name, t in whole.items() if name != f"{predicted}enorm.weight"}
    folder = write_folder(tmp_path / "c", some, config, files)
    with pytest.raises(InputError, match=rf"does not hold tensor {predicted}enorm\.weight; 1 of"):
        open_stored(folder, model_config(folder))


@pytest.mark.parametrize("other", ["number", "shape", "dtype"])
def test_a_stored_head_is_the_embedding(other: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hf_folder_module, "_COMPARED", 100)
    hf = hf_tensors(CONFIG, tags=False)
    head = hf["model.embed_tokens.weight"].clone()
    head[12, 7] += other == "number"
    head = head[:5, :3] if other == "shape" else head.bfloat16() if other == "dtype" else head
    folder = write_folder(tmp_path / "a", hf | {"lm_head.weight": head}, CONFIG)
    with pytest.raises(
        InputError, match=r"lm_head\.weight of .* is not equal to model\.embed_tokens.*Set tie_word_emb"
    ):
        open_hf_folder(folder, CONFIG)


def test_parameters_of_another_model_are_named(tmp_path: Path) -> None:
    write_folder(tmp_path / "a", hf_tensors(CONFIG, tags=False), CONFIG)
    with pytest.raises(ProofError, match=r"0/decoder\.final_layernorm\.weight of rank 0 does not exist"):
        load_hf(tmp_path / "a", CONFIG, ParallelSizes(), 0, {})


Damage = Callable[[Path], object]


def test_config_json(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"config\.json does not exist"):
        read_hf_config(tmp_path)
    (tmp_path / "config.json").write_text('{"hidden')
    with pytest.raises(InputError, match=r"config\.json is not valid JSON"):
        read_hf_config(tmp_path)
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(InputError, match=r"config\.json holds a list; a JSON object is needed"):
        read_hf_config(tmp_path)
    untied = CONFIG | {"tie_word_embeddings": False}
    folder = write_folder(tmp_path / "a", hf_tensors(CONFIG, tags=False), untied)
    with pytest.raises(InputError, match=r"lm_head\.weight \(config\.json has tie_word_embeddings=false\); 1 of"):
        open_hf_folder(folder, untied)
    del untied["tie_word_embeddings"]
    with pytest.raises(InputError, match=r"lm_head\.weight \(config\.json has no tie_word_embeddings\); 1 of"):
        open_hf_folder(folder, untied)
