"""SOTOPIA's episodes as conversations."""

import pytest

from megatron_rl.data.files import Table
from megatron_rl.data.rows.sotopia import conversations, turns_column
from megatron_rl.errors import InputError

VIEWS = [("Environment", "Mia", "You are Mia."), ("Environment", "Ben", "You are Ben.")]


def episode(*acts):
    """A turn of the environment, then one of every act (sender, text)."""
    return [VIEWS, *([(sender, "Environment", text)] for sender, text in acts)]


def table(*episodes, **more):
    cells = {"environment": ["v"] * len(episodes), "agents": [["1", "2"]] * len(episodes), "messages": list(episodes)}
    return Table("e.jsonl", cells | more, len(episodes))


def test_turns_take_turns():
    acts = [("Ben", "a"), ("Ben", "b"), ("Mia", "c"), ("Mia", "d"), ("Ben", "did nothing"), ("Ben", "[action] e")]
    mia, ben = conversations(table(episode(*acts)))
    assert [(m["role"], m["content"]) for m in mia["messages"]] == [
        ("user", "You are Mia.\nBen a\nBen b"),
        ("assistant", "c"),
        ("user", "The others did nothing."),
        ("assistant", "d"),
    ]
    assert [(m["role"], m["content"]) for m in ben["messages"]] == [
        ("user", "You are Ben."),
        ("assistant", "a"),
        ("user", "The others did nothing."),
        ("assistant", "b"),
        ("user", "Mia c\nMia d"),
        ("assistant", "[action] e"),
    ]


def test_who_does_nothing_has_no_row_and_rewards_are_optional():
    (row,) = conversations(table(episode(("Ben", "a"), ("Mia", "did nothing"))))
    assert row["agent"] == "Ben" and row["episode_id"] == 1 and "reward" not in row
    (row,) = conversations(table(episode(("Ben", "a")), rewards=[[0.5, (2, {"goal": 3})]], pk=["x"]))
    assert (row["episode_id"], row["reward"], row["rewards"]) == ("x", 2.0, {"goal": 3})


def test_what_is_no_episode():
    assert turns_column(table([{"role": "user", "content": "x"}])) is None
    with pytest.raises(InputError, match=r"e.jsonl, row 2, column 'messages': .* is no episode"):
        conversations(table(episode(("Ben", "a")), [[("Environment", "Mia", "alone")]]))
    with pytest.raises(InputError, match="in no episode an agent does anything"):
        conversations(table(episode()))
