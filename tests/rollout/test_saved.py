"""Rollouts in Parquet files: what is read is what was written, to the last bit."""

from copy import deepcopy
from pathlib import Path

import numpy as np
import pyarrow.parquet
import pytest

from megatron_rl.data.task import Example
from megatron_rl.errors import InputError
from megatron_rl.rewards.workers.pool import Scored
from megatron_rl.rollout.rollout import Rollout
from megatron_rl.rollout.saved import Saved, differences, file_of, load_rollouts, save_rollouts, saved_steps

FACTS = {"step": 7, "seed": 3, "weight_version": 9, "cursor": {"round": 7}, "metrics": {"reward": 0.1 + 0.2}}


def rollout(number: int, **more: object) -> Rollout:
    rng = np.random.default_rng(number)
    n, prompt = 6 + number, 3
    values: dict = dict(
        example=Example(f"q/{number // 2}", "who?", ["a", 1], data_source="s", extra={"kind": "k", "depth": 2}),
        tokens=rng.integers(0, 99, n),
        drawn=np.arange(n) >= prompt,
        logprobs=rng.normal(size=n).astype(np.float32),
        prompt=prompt,
        text='ja — "ß"\n',
        finish="stop",
        versions=((8, 2), (9, n - prompt - 2)),
        scored=Scored(1 / 3, {"right/score": 1 / 7}, {"correct": 1.0}, step=6),
    )
    return Rollout(**values | more)


def groups() -> list[list[Rollout]]:
    hinted = np.array([0, 0, 0, 1, 1, 0, 0, 0], bool)
    late = Scored(0.0, {}, None, timed_out=True, failure="too late")
    return [
        [rollout(0), rollout(1, scored=late)],
        [
            rollout(2, hinted=hinted, hint_rate=0.25, round=1, weights=np.linspace(0, 1, 8, dtype=np.float32)),
            rollout(3, experts=np.arange(32, dtype=np.int16).reshape(8, 4), rewards=np.ones(9, np.float32)),
        ],
    ]


def test_what_is_read_was_written(tmp_path: Path) -> None:
    save_rollouts(tmp_path / "rollouts", Saved(groups(), [0.1, -0.1, 1e-300, 2.0], FACTS))
    found = load_rollouts(file_of(tmp_path / "rollouts", 7), Scored)
    assert differences(found.groups, groups()) == []
    assert (found.advantages, found.facts) == ([0.1, -0.1, 1e-300, 2.0], FACTS)
    pairs = [pair for one, other in zip(found.groups, groups(), strict=True) for pair in zip(one, other, strict=True)]
    for mine, theirs in pairs:
        assert (mine.example, mine.scored, mine.scored.step) == (theirs.example, theirs.scored, theirs.scored.step)
        assert (mine.text, mine.round, mine.hint_rate) == (theirs.text, theirs.round, theirs.hint_rate)
        assert (mine.tokens.dtype, mine.drawn.dtype, mine.logprobs.dtype) == (np.int64, bool, np.float32)
    last = found.groups[1][1]
    assert last.experts is not None and last.experts.tolist() == np.arange(32).reshape(8, 4).tolist()
    assert [path.name for path in (tmp_path / "rollouts").iterdir()] == ["step-000007.parquet"]
    assert saved_steps(tmp_path / "rollouts") == [7] and saved_steps(tmp_path) == []


def test_anybody_can_read_the_columns(tmp_path: Path) -> None:
    """As docs/runs.md lists them."""
    save_rollouts(tmp_path, Saved(groups(), [], FACTS))
    table = pyarrow.parquet.read_table(file_of(tmp_path, 7))
    assert table.column("group").to_pylist() == [0, 0, 1, 1]
    assert table.column("tokens").to_pylist()[0] == groups()[0][0].tokens.tolist()
    assert table.column("versions").to_pylist()[0] == [{"version": 8, "tokens": 2}, {"version": 9, "tokens": 1}]
    assert table.column("advantage").to_pylist() == [None] * 4
    documented = Path(__file__).parents[2].joinpath("docs", "runs.md").read_text()
    assert [name for name in table.column_names if f"`{name}`" not in documented] == []


def test_every_difference_is_named() -> None:
    other = groups()
    other[0][0].logprobs[4] = np.nextafter(other[0][0].logprobs[4], np.float32(9))
    other[0][1].tokens = other[0][1].tokens[:-1]
    other[1][0].scored = Scored(0.5, {})
    one, two, three = differences(groups(), other)
    assert one.startswith("rollout 0 (example q/0): logprobs from token 4 on")
    assert "rollout 1 (example q/0): tokens from token 6 on" in two and two.endswith("not none")
    assert three.startswith("rollout 2 (example q/1): reward 0.333")
    assert differences(groups(), deepcopy(groups())[:1]) == ["2 groups of 4 rollouts, not 1 of 2"]


def test_another_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "broken.parquet").write_bytes(b"PAR1")
    pyarrow.parquet.write_table(pyarrow.table({"a": [1]}), tmp_path / "foreign.parquet")
    for name in ("broken", "foreign", "missing"):
        with pytest.raises(InputError, match=f"{name}.parquet holds no rollouts"):
            load_rollouts(tmp_path / f"{name}.parquet", Scored)
