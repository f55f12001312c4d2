"""What each step draws."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatron_rl.data.false_belief import Stories
from megatron_rl.data.sampler import Sampler
from megatron_rl.data.task import UNBOUNDED, Example


def examples(count: int) -> list[Example]:
    return [Example(id=str(i), prompt="", answer="") for i in range(count)]


def ids(drawn: list[Example]) -> list[str]:
    return [e.id for e in drawn]


@given(count=st.integers(1, 40), size=st.integers(1, 60), seed=st.integers(0, 2**40), shuffle=st.booleans())
def test_every_epoch_holds_every_row_once(count, size, seed, shuffle):
    sampler = Sampler(examples(count), size, seed, shuffle)
    steps = -(-3 * count // size)
    stream = [i for step in range(steps) for i in ids(sampler.draw(step))]
    assert len(stream) == steps * size
    for epoch in range(3):
        assert sorted(stream[epoch * count : (epoch + 1) * count]) == sorted(map(str, range(count)))


@given(seed=st.integers(0, 2**40), steps=st.lists(st.integers(0, 500), min_size=1, max_size=6))
def test_a_step_does_not_depend_on_what_was_drawn_before(seed, steps):
    one = Sampler(examples(23), 5, seed, True)
    for step in steps:
        assert ids(one.draw(step)) == ids(Sampler(examples(23), 5, seed, True).draw(step))


def test_epochs_and_seeds_differ_and_unshuffled_keeps_the_order():
    rows = examples(30)
    drawn = [ids(Sampler(rows, 30, seed, True).draw(step)) for seed, step in ((0, 0), (0, 1), (1, 0))]
    assert len({tuple(d) for d in drawn}) == 3
    assert ids(Sampler(rows, 30, 0, False).draw(4)) == [str(i) for i in range(30)]


def test_a_generator_is_read_onwards_from_a_place_of_the_seed():
    stories = Stories(0, "train", UNBOUNDED)
    numbers = {
        seed: [int(e.id.split("/")[1]) for step in (0, 1, 2) for e in Sampler(stories, 4, seed, True).draw(step)]
        for seed in (0, 1)
    }
    for drawn in numbers.values():
        assert drawn == list(range(drawn[0], drawn[0] + 12))
    assert abs(numbers[0][0] - numbers[1][0]) > 10**9
    assert [e.id for e in Sampler(stories, 2, 0, False).draw(3)] == ["train/6", "train/7"]


def test_no_examples():
    with pytest.raises(ValueError, match="at least one"):
        Sampler([], 4, 0, True)
