"""What comes next."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatron_rl.data.prompts import Prompts
from megatron_rl.data.task import Example
from megatron_rl.data.tasks.false_belief import false_belief


def examples(count: int) -> list[Example]:
    return [Example(id=str(i), prompt="", answer="") for i in range(count)]


def ids(drawn: list[Example]) -> list[str]:
    return [e.id for e in drawn]


@given(count=st.integers(1, 40), size=st.integers(1, 60), seed=st.integers(0, 2**40), shuffle=st.booleans())
def test_every_epoch_holds_every_row_once(count, size, seed, shuffle):
    prompts = Prompts(examples(count), seed, shuffle)
    steps = -(-3 * count // size)
    stream = [i for _ in range(steps) for i in ids(prompts.take(size))]
    assert len(stream) == steps * size
    for epoch in range(3):
        assert sorted(stream[epoch * count : (epoch + 1) * count]) == sorted(map(str, range(count)))


@given(seed=st.integers(0, 2**40), sizes=st.lists(st.integers(0, 50), min_size=1, max_size=8), cut=st.integers(0, 7))
def test_a_restored_cursor_goes_on_where_it_was(seed, sizes, cut):
    """And how much is taken at a time makes no difference."""
    whole = ids(Prompts(examples(23), seed, True).take(sum(sizes)))
    prompts, found = Prompts(examples(23), seed, True), []
    for number, size in enumerate(sizes):
        if number == cut:
            state = json.loads(json.dumps(prompts.state()))
            prompts = Prompts(examples(23), seed, True)
            prompts.take(5)
            prompts.restore(state)
        found += ids(prompts.take(size))
    assert found == whole


def test_epochs_and_seeds_differ_and_unshuffled_keeps_the_order():
    rows = examples(30)
    one = Prompts(rows, 0, True)
    drawn = [ids(one.take(30)), ids(one.take(30)), ids(Prompts(rows, 1, True).take(30))]
    assert len({tuple(d) for d in drawn}) == 3
    assert ids(Prompts(rows, 0, False).take(120)[90:]) == [str(i) for i in range(30)]


def test_a_generator_is_read_onwards_from_a_place_of_the_seed():
    stories = false_belief(0).train
    numbers = {seed: [int(e.id.split("/")[1]) for e in Prompts(stories, seed, True).take(12)] for seed in (0, 1)}
    for drawn in numbers.values():
        assert drawn == list(range(drawn[0], drawn[0] + 12))
    assert abs(numbers[0][0] - numbers[1][0]) > 10**9
    assert [e.id for e in Prompts(stories, 0, False).take(8)[6:]] == ["train/6", "train/7"]


def test_no_examples():
    with pytest.raises(ValueError, match="at least one"):
        Prompts([], 0, True)
