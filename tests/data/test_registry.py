"""Tasks by name or dotted path."""

import pytest

from megatron_rl.data.check import check_data
from megatron_rl.data.config import DataConfig
from megatron_rl.data.registry import check_options, find_task, make_task, require_targets, write_tokenizer
from megatron_rl.data.task import Example
from megatron_rl.errors import InputError

MODULE = """
from megatron_rl.data.task import Example
from megatron_rl.errors import InputError

class Own:
    def __init__(self, config, seed):
        self.train = [Example(id=str(i), prompt=config.path, answer=seed) for i in range(3)]
        self.heldout = []

    def fingerprint(self):
        return ""

    @staticmethod
    def report(sample):
        return {"correct": float(sample.response == "right")}

def make(config, seed, tokenizer):
    return Own(config, seed)

def raises(config, seed, tokenizer):
    return {}["options"]

def bare(config, seed, tokenizer):
    return object()

def few(config):
    return None

class Empty(Own):
    def __init__(self, config, seed, tokenizer):
        self.train, self.heldout = [], []

class Refuses(Own):
    def __init__(self, config, seed, tokenizer):
        raise InputError("rows.txt: no rows.")

number = 3

def check_options(config):
    return ["data.limit must be 7."] if config.limit != 7 else []

def write_tokenizer(folder):
    (folder / "tokenizer.json").write_text("own")
"""


@pytest.fixture
def own_task(tmp_path, monkeypatch):
    (tmp_path / "own_task.py").write_text(MODULE)
    (tmp_path / "broken_task.py").write_text("import no_such_package")
    (tmp_path / "wrong_task.py").write_text("x = 1\nassert x == 2, 'x must be 2'")
    (tmp_path / "half_task.py").write_text("def make(:\n")
    (tmp_path / "ending_task.py").write_text("import sys\nsys.exit(3)")
    monkeypatch.syspath_prepend(tmp_path)


def test_a_dotted_path(own_task, tmp_path):
    task = make_task(DataConfig(task="own_task.make", path="p"), 5, None)
    assert [(e.prompt, e.answer) for e in task.train] == [("p", 5)] * 3
    write_tokenizer(DataConfig(task="own_task.make"), tmp_path)
    assert (tmp_path / "tokenizer.json").read_text() == "own"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "false_beleif",
            "'false_beleif' is unknown; did you mean false_belief. It can be false_belief, multiple_choice, social_iqa",
        ),
        ("xyz", "'xyz' is unknown. It can be"),
        ("no_such_module.make", "There is no module no_such_module to import from here"),
        (
            "broken_task.make",
            "importing broken_task fails with ModuleNotFoundError: .*no_such_package.*broken_task.py, line 1",
        ),
        ("own_task.mak", "own_task has no mak; did you mean make?"),
        ("wrong_task.make", r"wrong_task fails with AssertionError: x must be 2 \(.*wrong_task.py, line 2\)\."),
        ("half_task.make", r"half_task fails with SyntaxError: .* \(.*half_task.py, line 1\)\."),
        ("ending_task.make", r"ending_task fails with SystemExit: 3 \(.*ending_task.py, line 2\)\."),
        ("own_task.few", r"cannot be called with \(DataConfig, seed, tokenizer\): too many positional arguments"),
        ("own_task.number", "is a int, not a function"),
    ],
)
def test_unknown_tasks(own_task, name, message):
    with pytest.raises(
        InputError, match=message.replace("?", r"\?").replace("mean false_belief.", r"mean false_belief\?")
    ):
        find_task(name)


def test_only_some_tasks_bring_a_tokenizer(tmp_path):
    write_tokenizer(DataConfig(task="false_belief"), tmp_path)
    assert (tmp_path / "tokenizer.json").is_file()
    with pytest.raises(InputError, match=r"multiple_choice brings no tokenizer.*Set model.path"):
        write_tokenizer(DataConfig(task="multiple_choice"), tmp_path)


def test_targets_are_required_of_every_row(own_task):
    require_targets(make_task(DataConfig(task="false_belief"), 0, None))
    task = make_task(DataConfig(task="own_task.make"), 0, None)
    task.train = [Example(id="1", prompt="", answer="", target="x"), Example(id="2", prompt="", answer="")]
    with pytest.raises(InputError, match=r"training example 2 has no target.*sft.steps=0"):
        require_targets(task)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("raises", r"data.task='own_task.raises' fails with KeyError: 'options' \(.*own_task.py, line \d+\)\."),
        ("bare", "data.task='own_task.bare' makes a object without train, heldout, fingerprint, report"),
        ("Empty", "data.task='own_task.Empty' has no examples"),
        ("Refuses", r"^rows.txt: no rows\.$"),
    ],
)
def test_a_task_that_cannot_be_used_is_refused_in_a_sentence(own_task, name, message):
    with pytest.raises(InputError, match=message):
        make_task(DataConfig(task=f"own_task.{name}"), 0, None)


def test_a_task_checks_options_of_its_own(own_task):
    assert check_options(DataConfig(task="own_task.make")) == ["data.limit must be 7."]
    assert check_options(DataConfig(task="own_task.make", limit=7)) == []
    assert check_data(DataConfig(task="own_task.make")) == ["data.limit must be 7."]
