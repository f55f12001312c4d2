"""Whether a group of scored rollouts can teach anything: nobody learns from equal rewards, whose advantages are 0."""

from collections.abc import Sequence

from megatron_rl.rollout.rollout import Rollout
from megatron_rl.rollout.sound import unsound

_EQUAL = 1e-9  # rewards that differ by less do so by rounding


def informative(group: Sequence[Rollout], parts: Sequence[str] = ()) -> bool:
    """Whether the rewards of a group differ, or one of its ``parts``: components that are normalised by themselves, of
    which the sum may be equal where they are not. A rollout without such a component has a reward of its own.

    Rollouts that are not sound have no say.
    """
    heard = [rollout.scored for rollout in group if not unsound(rollout)]
    if not heard:
        return False
    values = [[scored.reward for scored in heard]]
    for part in parts:
        if {part in scored.components for scored in heard} == {True, False}:
            return True
        values.append([scored.components.get(part, 0.0) for scored in heard])
    return any(max(column) - min(column) > _EQUAL for column in values)
