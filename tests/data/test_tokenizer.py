"""Tokenizers of model folders, and the tool that writes a small model."""

import json
import shutil

import pytest

from megatron_rl.data.tokenizer import (
    UnknownWordError,
    check_vocabulary,
    decode,
    end_tokens,
    load_tokenizer,
    make_encoder,
    require_encodable,
    write_word_tokenizer,
)
from megatron_rl.errors import InputError


def test_missing_folder_and_missing_files(tmp_path):
    with pytest.raises(InputError, match="nowhere' is not a folder"):
        load_tokenizer(tmp_path / "nowhere")
    with pytest.raises(InputError, match=r"has no tokenizer: none of tokenizer.json"):
        load_tokenizer(tmp_path)


def test_the_tool_writes_a_model_that_fits_its_tokenizer(tiny_model, chat_tokenizer):
    config = json.loads((tiny_model / "config.json").read_text())
    assert (config["model_type"], config["vocab_size"], config["hidden_size"]) == ("qwen3", 400, 64)
    assert len(chat_tokenizer) <= 400
    check_vocabulary(chat_tokenizer, config)
    text = "Zoe moved the coin. Ünï — 你好\n<think>"
    assert chat_tokenizer.decode(chat_tokenizer.encode(text, add_special_tokens=False)) == text
    assert sorted(p.name for p in tiny_model.iterdir()) == [
        "chat_template.jinja",
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    ]
    assert config["eos_token_id"] == chat_tokenizer.eos_token_id == chat_tokenizer.convert_tokens_to_ids("<|im_end|>")


def test_bad_input_to_the_tool(tmp_path, make_tiny_model, capsys):
    latin = tmp_path.parent / f"{tmp_path.name}.txt"
    latin.write_bytes("Zoë".encode("latin-1"))
    for arguments, message in (
        ([str(latin), str(tmp_path / "m")], f"{latin} is no text in UTF-8"),
        ([str(tmp_path / "no.txt"), str(tmp_path / "m")], "no.txt does not exist"),
        ([str(tmp_path / "no.txt"), str(tmp_path)], "exists; name a new folder"),
        ([str(tmp_path / "no.txt"), str(tmp_path / "m"), "--heads", "3"], "--heads must divide --hidden"),
    ):
        with pytest.raises(SystemExit) as stop:
            make_tiny_model(arguments)
        assert stop.value.code == 2
        assert message in capsys.readouterr().err
        assert list(tmp_path.iterdir()) == []


def test_a_tokenizer_larger_than_the_model(word_tokenizer):
    check_vocabulary(word_tokenizer, {"vocab_size": 77})
    with pytest.raises(InputError, match=r"token ids up to 76, but config.json has vocab_size=76"):
        check_vocabulary(word_tokenizer, {"vocab_size": 76})


def test_a_tokenizer_without_an_end_token(tiny_model, tmp_path):
    folder = shutil.copytree(tiny_model, tmp_path / "model")
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    del settings["eos_token"]
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    with pytest.raises(InputError, match="has no eos_token"):
        check_vocabulary(load_tokenizer(folder), {"vocab_size": 400})


@pytest.mark.parametrize(
    ("config", "generation", "expected"),
    [
        (2, [2, 0], (2, 0)),
        (None, None, (2,)),
        ([7, 0], 5, (2, 7, 0, 5)),
        (0, {}, (2, 0)),  # {}: the file has no such entry
        (0, "no file", (2, 0)),
        (2, [399, 400, -1], (2, 399)),  # no row for these: they cannot be drawn
    ],
)
def test_every_token_that_a_folder_says_ends_a_text(config, generation, expected, tiny_model, chat_tokenizer, tmp_path):
    folder = write_ends(tiny_model, tmp_path / "model", config, generation)
    assert chat_tokenizer.eos_token_id == 2
    assert end_tokens(folder, chat_tokenizer) == expected


@pytest.mark.parametrize("named", ["<|im_end|>", 2.0, True, [2, "0"], {"id": 2}])
def test_an_end_token_that_is_no_id(named, tiny_model, chat_tokenizer, tmp_path):
    for file, pair in (("config.json", (named, 2)), ("generation_config.json", (2, named))):
        folder = write_ends(tiny_model, tmp_path / file, *pair)
        with pytest.raises(InputError, match=rf"{file}: eos_token_id is .*; it must be a token's id, a list of ids"):
            end_tokens(folder, chat_tokenizer)


def write_ends(model, folder, config, generation):
    """A copy of a model's folder whose config.json and generation_config.json name these tokens."""
    shutil.copytree(model, folder)
    content = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(content | {"eos_token_id": config}))
    if generation == "no file":
        (folder / "generation_config.json").unlink()
    else:
        entry = {} if generation == {} else {"eos_token_id": generation}
        (folder / "generation_config.json").write_text(json.dumps(entry))
    return folder


def test_the_encoder_remembers(word_tokenizer):
    encode = make_encoder(word_tokenizer)
    first = encode("<bos> Sally puts")
    assert list(first) == word_tokenizer.encode("<bos> Sally puts", add_special_tokens=False)
    assert encode("<bos> Sally puts") is first


def test_decoding_leaves_out_the_stop_token_that_ended_it_and_no_other(word_tokenizer):
    ball, end, other = word_tokenizer.convert_tokens_to_ids(["ball", "<eos>", "<pad>"])
    stops = (end, other)
    assert decode(word_tokenizer, [ball, end], stops) == decode(word_tokenizer, [ball, other], stops) == "ball"
    assert decode(word_tokenizer, [end, ball, end, end], stops) == "<eos> ball <eos>"
    assert decode(word_tokenizer, [ball, end]) == "ball <eos>"  # it was cut off there
    assert decode(word_tokenizer, [end], stops) == decode(word_tokenizer, [], stops) == ""


@pytest.mark.parametrize(
    ("file", "content", "said"),
    [
        ("tokenizer.json", '{"model": {"type"', "tokenizer.json is not valid JSON"),
        ("tokenizer.json", "", r"tokenizer.json is empty \(0 bytes\)"),
        ("tokenizer.json", "version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "tokenizer.json is a Git LFS"),
        ("tokenizer.json", "[]", "tokenizer.json holds a list; a JSON object is needed"),
        ("tokenizer.json", '{"model": {"type": "unheard of"}}', r"The tokenizer of .* cannot be read: .+\. Fetch"),
        ("tokenizer_config.json", '{"eos_token": ', "tokenizer_config.json is not valid JSON"),
        ("config.json", '{"model_type": ', "config.json is not valid JSON"),
        ("chat_template.jinja", "version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "jinja is a Git LFS"),
        ("chat_template.jinja", "", r"chat_template.jinja is empty \(0 bytes\)"),
    ],
)
def test_a_broken_file_is_named(tiny_model, tmp_path, file, content, said):
    folder = shutil.copytree(tiny_model, tmp_path / "model")
    if file == "config.json":  # read where the tokenizer's own files do not say what it is
        (folder / "tokenizer_config.json").unlink()
    (folder / file).write_text(content)
    with pytest.raises(InputError, match=said) as error:
        load_tokenizer(folder)
    assert str(folder) in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("file", ["tokenizer_config.json", "generation_config.json", "chat_template.jinja"])
def test_a_link_to_what_is_gone_is_named(tiny_model, tmp_path, file):
    folder = shutil.copytree(tiny_model, tmp_path / "model")
    (folder / file).unlink(missing_ok=True)
    (folder / file).symlink_to("../blobs/0")
    with pytest.raises(InputError, match=rf"{file} is a link to \.\./blobs/0, which is not there"):
        load_tokenizer(folder)


def test_a_model_without_a_known_size_is_left_to_others(word_tokenizer):
    check_vocabulary(word_tokenizer, {})


def test_a_tokenizer_of_few_words_refuses_the_first_text_with_another(tmp_path, chat_tokenizer):
    write_word_tokenizer(tmp_path, ["ball", "<bos>", "<eos>", "<pad>"], "<bos>", "<eos>", "<pad>")
    few = load_tokenizer(tmp_path)
    require_encodable(few, [("row 1", "ball ball"), ("row 2", "")])
    with pytest.raises(UnknownWordError, match=rf"The tokenizer {tmp_path} cannot encode row 2 \(.*UNK.*any text\."):
        require_encodable(few, [("row 1", "ball"), ("row 2", "ball cup"), ("row 3", "key")])

    def texts():
        raise AssertionError("it takes any text, and need not be tried")
        yield

    require_encodable(chat_tokenizer, texts())
