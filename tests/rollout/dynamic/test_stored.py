"""Groups in a checkpoint."""

from dataclasses import asdict, fields

import numpy as np

from megatron_rl.data.task import Example
from megatron_rl.rewards.workers.pool import Scored
from megatron_rl.rollout.dynamic.stored import Waiting, pack, unpack
from megatron_rl.rollout.rollout import Rollout

EXAMPLES = [Example(str(i), "p" * i, i, extra={"not JSON": {1}}) for i in range(4)]


def test_they_come_back_to_the_last_bit():
    rng = np.random.default_rng(0)

    def made(index: int, length: int, experts: bool) -> Rollout:
        tokens = rng.integers(0, 2**40, length)
        return Rollout(
            example=EXAMPLES[index],
            tokens=tokens,
            drawn=rng.random(length) < 0.5,
            logprobs=rng.standard_normal(length).astype(np.float32),
            prompt=1,
            text="é\n" * index,
            finish="length",
            versions=((3, 1), (4, length - 1)),
            experts=rng.integers(0, 9, (length - 1, 6)).astype(np.int16) if experts else None,
            scored=Scored(float(rng.random()), {"a/score": 0.1}, {"correct": 1.0} if experts else None, failure="x"),
        )

    groups = [Waiting(3, [made(3, 7, True), made(3, 1, True)]), Waiting(1, [made(1, 5, False)])]
    found = unpack(pack(groups), EXAMPLES.__getitem__, Scored)
    assert [w.index for w in found] == [3, 1] and [len(w.group) for w in found] == [2, 1]
    for kept, back in zip([r for w in groups for r in w.group], [r for w in found for r in w.group], strict=True):
        assert back.example is kept.example and asdict(back.scored) == asdict(kept.scored)
        for field in fields(Rollout):
            one, other = getattr(kept, field.name), getattr(back, field.name)
            assert type(one) is type(other), field.name
            if isinstance(one, np.ndarray):
                assert one.dtype == other.dtype and one.shape == other.shape and one.tobytes() == other.tobytes()
                other[:] = 0  # may be written to
            elif field.name not in ("example", "scored"):
                assert one == other
    assert unpack(pack([]), EXAMPLES.__getitem__, Scored) == []
