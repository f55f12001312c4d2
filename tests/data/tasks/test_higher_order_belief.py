"""Generated beliefs about beliefs: answers against a simulation of every mind, what is held out, and the suite."""

import re
from dataclasses import dataclass, field

import pytest

from megatron_rl.data.config import DataConfig
from megatron_rl.data.order.selection import select
from megatron_rl.data.task import UNBOUNDED, sample_of
from megatron_rl.data.tasks import higher_order_belief as h
from megatron_rl.data.tasks.higher_order_belief import Event, believed
from megatron_rl.data.tokenizer import load_tokenizer

ROWS = 1500


@dataclass
class Mind:
    """Where somebody thinks that the object is, and what they think that others think, four minds deep."""

    place: str
    of: dict[str, "Mind"] = field(default_factory=dict)


def mind(agents: list[str], place: str, depth: int) -> Mind:
    return Mind(place, {a: mind(agents, place, depth - 1) for a in agents} if depth else {})


def see(whose: Mind, who: set[str], place: str) -> None:
    """The object is moved before the eyes of ``who``, who see each other see it."""
    whose.place = place
    for name in who & set(whose.of):
        see(whose.of[name], who, place)


def simulated(text: str, depth: int = 4) -> Mind:
    """The world of a story, read from its sentences: its place is the object's, and in it are the agents' minds."""
    names = re.match(r"(.*) are in the room", text)[1].replace(" and ", " , ").split(" , ")
    world = mind(names, re.search(r"the \w+ is in the (\w+) \.", text)[1], depth)
    here, gone = set(names), []
    for sentence in text.split(" . ")[2:]:
        words = sentence.removesuffix(" .").split()
        speaker, verb = words[0], words[1]
        if verb == "leaves":
            here.discard(speaker)
            gone.append(speaker)
        elif verb == "moves":
            see(world, here, words[-1])
        elif verb in ("publicly", "privately"):
            hearers = set(names) - {speaker} if verb == "publicly" else {words[3]}
            for name in hearers:
                world.of[speaker].of[name].place = words[-1]
                if gone.index(name) < gone.index(speaker):
                    world.of[name].place = words[-1]
    return world


def asked(question: str) -> list[str]:
    return [word for word in question.split() if word in h.NAMES]


def test_answers_are_what_a_simulation_of_all_minds_says():
    task = h.higher_order_belief(0, ROWS)
    orders, lies, differ = set(), 0, 0
    for example in [*task.train, *task.heldout]:
        chain = asked(example.extra["question"])
        here = simulated(example.extra["story"])
        truth = here.place
        for name in chain:
            here = here.of[name]
        assert here.place == example.answer, example.prompt
        assert len(chain) == len(set(chain)) == example.extra["order"]
        orders.add(len(chain))
        lies += example.extra["deception"]
        differ += here.place != truth
        assert task.report(sample_of(example, example.target.removesuffix(f" {h.EOS}")))["correct"] == 1
    assert orders == {0, 1, 2, 3, 4}
    assert abs(lies / (ROWS + h.HELDOUT) - h.DECEPTION) < 0.05 and differ > ROWS / 3


def test_rules():
    """Hi-ToM's: what is seen before one leaves counts; claims convince those who left before the speaker."""
    agents = ["Ann", "Bob", "Cid"]
    seen = [
        *(Event("move", "Ann", "box"), Event("leave", "Ann"), Event("move", "Bob", "bag"), Event("leave", "Bob")),
        *(Event("move", "Cid", "jar"), Event("leave", "Cid")),
    ]

    def where(*chain: str, told: tuple[Event, ...] = ()) -> str:
        return believed(agents, "cup", [*seen, *told], chain)

    assert [where(), where("Cid"), where("Bob"), where("Ann")] == ["jar", "jar", "bag", "box"]
    assert [where("Cid", "Bob"), where("Bob", "Cid"), where("Cid", "Bob", "Ann")] == ["bag", "bag", "box"]
    private = (Event("tell", "Cid", "tray", ("Ann",)),)
    assert [where("Ann", told=private), where("Bob", told=private), where("Cid", told=private)] == [
        "tray",
        "bag",
        "jar",
    ]
    assert where("Cid", "Ann", told=private) == "tray" and where("Bob", "Ann", told=private) == "box"
    assert where("Ann", "Cid", told=private) == "box"  # Ann knows nothing of what Cid saw later
    public = (Event("tell", "Bob", "tray", ("Ann", "Cid")),)
    assert [where(name, told=public) for name in agents] == ["tray", "bag", "jar"]  # Cid left after Bob
    assert where("Bob", "Ann", told=public) == "tray" and where("Cid", "Ann", told=public) == "box"
    assert where("Bob", "Cid", told=public) == "tray"  # Bob does not know that Cid knows better
    assert where("Ann", "Cid", told=public) == "box" and where("Cid", "Bob", "Ann", told=public) == "box"
    assert where(told=public) == "jar"


def test_held_out_stories_are_a_suite_by_order():
    task = h.higher_order_belief(1, ROWS)
    assert [e.extra["order"] for e in task.heldout[:7]] == [0, 1, 2, 3, 4, 0, 1]
    assert (len(task.heldout), len(h.higher_order_belief(1).train)) == (h.HELDOUT, UNBOUNDED)

    def begins(examples):
        return {
            tuple(re.match(r"(\w+).* room \. the (\w+) is in the (\w+)", e.extra["story"]).groups()) for e in examples
        }

    assert not begins(task.train) & begins(task.heldout)
    example = next(e for e in task.heldout if e.extra["order"] == 3 and e.extra["deception"])
    right = task.report(sample_of(example, f"<think> x </think> <Answer> {example.answer} </Answer>"))
    assert right == {"correct": 1, "format": 1, "correct_order_3": 1, "correct_deception": 1}
    wrong = task.report(sample_of(task.heldout[0], "nowhere"))
    assert wrong["correct"] == wrong["format"] == wrong["correct_order_0"] == 0


def test_low_orders_can_be_selected():
    config = DataConfig(task="higher_order_belief", limit=200)
    config.selection.column, config.selection.most = "order", 2
    task = h.make_higher_order_belief(config, 0, None)
    kept = select(task.train, config.selection)
    assert {task.train[i].extra["order"] for i in kept} == {0, 1, 2} and 90 < len(kept) < 150


def test_tokenizer_and_lengths(tmp_path):
    h.write_tokenizer(tmp_path)
    tokenizer = load_tokenizer(tmp_path)
    task = h.higher_order_belief(3, ROWS)
    prompts = [tokenizer.encode(e.prompt, add_special_tokens=False) for e in task.train]
    targets = [tokenizer.encode(e.target, add_special_tokens=False) for e in task.train]
    assert tokenizer.decode(targets[0]) == task.train[0].target and tokenizer.unk_token is None
    assert all(tokenizer.decode(ids) == e.prompt for ids, e in zip(prompts[:200], task.train, strict=False))
    assert max(map(len, prompts)) <= h.LONGEST_PROMPT and max(map(len, targets)) <= h.LONGEST_COMPLETION
    found = h.check_options(DataConfig(task="higher_order_belief", max_prompt_tokens=50))
    assert found == [f"data.max_prompt_tokens is 50; data.task=higher_order_belief needs {h.LONGEST_PROMPT} or more."]


@pytest.mark.parametrize("order", range(5))
def test_questions(order):
    names = ["Ann", "Bob", "Cid", "Dot"][:order]
    assert (
        h.question("ball", names)
        == [
            "where is the ball really ?",
            "where does Ann think the ball is ?",
            "where does Ann think Bob thinks the ball is ?",
            "where does Ann think Bob thinks Cid thinks the ball is ?",
            "where does Ann think Bob thinks Cid thinks Dot thinks the ball is ?",
        ][order]
    )
