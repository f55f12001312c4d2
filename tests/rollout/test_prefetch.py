"""Rollouts ahead of training: order, how far ahead, errors."""

import itertools
import threading

import pytest

from megatron_rl.rollout.prefetch import Prefetch
from tests.conftest import PATIENCE


def test_nothing_is_made_ahead_of_time_unless_asked_for() -> None:
    made: list[tuple[int, tuple[int, int]]] = []
    ahead = Prefetch(lambda *of: of, lambda *what: made.append(what) or threading.current_thread(), 0, 5)
    ahead.number = 7
    assert ahead.take(3) is ahead.take(3) is threading.current_thread()
    assert made == [(7, (7, 3)), (8, (8, 3))]


@pytest.mark.parametrize("bound", [1, 2, 3])
def test_each_is_begun_once_and_at_most_so_many_steps_before_it_is_taken(bound: int) -> None:
    taking, begun, numbers, drawing = [-1], dict[int, int](), itertools.count(), set[threading.Thread]()

    def draw(number: int, step: int) -> int:
        assert number == step  # each step takes one
        drawing.add(threading.current_thread())
        return next(numbers)

    def make(step: int, drawn: int) -> tuple[int, int]:
        assert step not in begun
        begun[step] = taking[0]
        return step * 10, drawn

    ahead = Prefetch(draw, make, bound, 6)
    for step in range(6):
        taking[0] = step
        assert ahead.take(step) == (step * 10, step)  # each has what was drawn for it, in the order of the steps
        ahead.finish(lambda: False)
    assert begun == {step: max(0, step - bound) for step in range(6)}
    assert drawing == {threading.current_thread()}


def test_steps_that_take_several_rounds_or_none() -> None:
    """No more is begun than steps to come could take, and never fewer than are asked for."""
    begun: list[tuple[int, int, int]] = []  # during which step, number, meant for
    now = [0]
    ahead = Prefetch(
        lambda number, step: begun.append((now[0], number, step)) or number, lambda number, _: number, 1, 4
    )
    taken = []
    for now[0], rounds in enumerate((2, 0, 1, 2)):
        taken.append([ahead.take(now[0]) for _ in range(rounds)])
    assert taken == [[0, 1], [], [2], [3, 4]]
    assert begun == [(0, 0, 0), (0, 1, 1), (0, 2, 1), (2, 3, 3), (3, 4, 3)]


def test_rounds_that_were_under_way_are_begun_as_they_were_drawn() -> None:
    """A curriculum would draw others in the process that goes on."""
    first = Prefetch(lambda number, step: ("first", number, step), lambda number, drawn: drawn, 2, 9)
    assert [first.take(step) for step in (0, 1)] == [("first", 0, 0), ("first", 1, 1)]
    under_way = first.under_way()
    assert under_way == [("first", 2, 2), ("first", 3, 3)]
    then = Prefetch(lambda number, step: ("then", number, step), lambda number, drawn: (number, drawn), 2, 9)
    then.number = 2
    then.kept.extend(under_way)
    assert then.under_way() == under_way
    found = [then.take(step) for step in (2, 3, 4)]
    assert found == [(2, ("first", 2, 2)), (3, ("first", 3, 3)), (4, ("then", 4, 4))]


def test_finish_waits_for_what_is_under_way_and_errors_come_when_taken() -> None:
    gate = threading.Event()

    def make(step: int, drawn: None) -> int:
        if step == 1:
            assert gate.wait(PATIENCE)
            raise ValueError("no prompts")
        return step

    ahead = Prefetch(lambda *of: None, make, 1, 3)
    assert ahead.take(0) == 0
    ahead.finish(lambda: True)  # what is under way cannot go on: it is not waited for
    finished = threading.Thread(target=ahead.finish, args=(lambda: False,))
    finished.start()
    assert finished.is_alive()
    gate.set()
    finished.join(PATIENCE)
    assert not finished.is_alive()
    with pytest.raises(ValueError, match="no prompts"):
        ahead.take(1)
