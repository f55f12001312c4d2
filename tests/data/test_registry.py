"""Tasks by name or dotted path."""

import pytest

from megatron_rl.data.config import DataConfig
from megatron_rl.data.registry import find_task, make_task, require_targets, write_tokenizer
from megatron_rl.data.task import Example
from megatron_rl.errors import InputError

MODULE = """
from megatron_rl.data.task import Example

class Own:
    def __init__(self, config, seed):
        self.train = [Example(id=str(i), prompt=config.path, answer=seed) for i in range(3)]
        self.heldout = []

def make(config, seed, tokenizer):
    return Own(config, seed)

def write_tokenizer(folder):
    (folder / "tokenizer.json").write_text("own")
"""


@pytest.fixture
def own_task(tmp_path, monkeypatch):
    (tmp_path / "own_task.py").write_text(MODULE)
    (tmp_path / "broken_task.py").write_text("import no_such_package")
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
            "'false_beleif' is unknown; did you mean false_belief. It can be false_belief, multiple_choice",
        ),
        ("xyz", "'xyz' is unknown. It can be"),
        ("no_such_module.make", "There is no module no_such_module to import from here"),
        (
            "broken_task.make",
            "importing broken_task fails with ModuleNotFoundError: .*no_such_package.*broken_task.py, line 1",
        ),
        ("own_task.mak", "own_task has no mak; did you mean make?"),
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
