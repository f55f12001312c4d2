"""Where seconds go."""

from megatron_rl.tracking.clock import Clock
from megatron_rl.tracking.memory import memory


class Time:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_a_step_has_neither_evaluations_nor_checkpoints_in_it() -> None:
    time = Time()
    clock = Clock(earlier=1000.0, now=time)
    time.now += 50  # the first swap
    with clock.span("evaluate"):
        time.now += 20
    assert clock.spans("evaluate", "checkpoint") == {"time/evaluate": 20.0}
    for _ in range(2):
        clock.begin()
        time.now += 3  # the rollout
        with clock.span("update"):
            time.now += 4
        row = clock.step(tokens=14.0)
        assert row.pop("time/checkpoint", None) == (5.0 if time.now > 180 else None)
        assert row == {"time/step": 7.0, "tokens_per_second": 2.0, "time/update": 4.0}
        with clock.span("checkpoint"):
            time.now += 5
    assert clock.spans() == {"time/checkpoint": 5.0}
    assert clock.spans() == {}
    assert clock.seconds == 1000.0 + 50 + 20 + 2 * (7 + 5)


def test_a_span_counts_all_that_it_was_entered_for_even_when_it_fails() -> None:
    time = Time()
    clock = Clock(now=time)
    for _ in range(3):
        try:
            with clock.span("update"):
                time.now += 1
                raise ValueError
        except ValueError:
            pass
    assert clock.step(1.0) == {"time/step": 3.0, "tokens_per_second": 1 / 3, "time/update": 3.0}


def test_memory_is_that_of_this_process() -> None:
    found = memory()["memory/host_gb"]
    held = bytes(b"x" * 200_000_000)
    assert 0.15 < memory()["memory/host_gb"] - found < 0.5 and len(held)
