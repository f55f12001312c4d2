"""Curves that say that a run goes wrong: spikes, exploding ratios, collapses, a reward that never differs."""

from collections.abc import Callable, Mapping
from math import isfinite
from statistics import fmean, median
from typing import Any

from megatron_rl.training.config import AlarmsConfig

_CURVES = ("loss", "grad_norm", "entropy", "length")


class Alarms:
    """``look`` at every step of RL; ``state`` lies in the checkpoint, so that a continued run knows its past."""

    def __init__(self, config: AlarmsConfig) -> None:
        self.config = config
        self.recent: dict[str, list[float]] = {name: [] for name in _CURVES}  # of the last ``window`` steps
        self.first_entropy: float | None = None  # mean of the first window
        self.longest = 0.0  # largest mean length of a window
        self.constant = 0  # steps in a row without a difference in reward
        self.ringing: list[str] = []  # alarms that the last step raised

    def look(self, metrics: Mapping[str, float]) -> list[str]:
        """A sentence for every alarm that begins with this step's numbers; none without all of them."""
        if not {*_CURVES, "ratio", "reward_std"} <= metrics.keys():  # the policy learned nothing, or by an own loss
            return []
        if not all(isfinite(metrics[name]) for name in _CURVES):  # run.not_finite says so, and no window is spoilt
            return []
        full = len(self.recent["loss"]) == self.config.window
        self.constant = self.constant + 1 if metrics["reward_std"] == 0 else 0
        raised = {name: said for name, find in _ALARMS.items() if (full or name == "constant_reward")
                  and getattr(self.config, name) and (said := find(self, metrics))}  # fmt: skip
        new = [f"{said} (alarms.{name})." for name, said in raised.items() if name not in self.ringing]
        self.ringing = list(raised)
        for name in _CURVES:
            self.recent[name] = [*self.recent[name], metrics[name]][-self.config.window :]
        if len(self.recent["loss"]) == self.config.window:
            if self.first_entropy is None:
                self.first_entropy = fmean(self.recent["entropy"])
            self.longest = max(self.longest, fmean(self.recent["length"]))
        return new

    def state(self) -> dict[str, Any]:
        """As JSON."""
        return {
            "recent": self.recent,
            "first_entropy": self.first_entropy,
            "longest": self.longest,
            "constant": self.constant,
            "ringing": self.ringing,
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on where ``state`` was taken; an empty one, of a run that knew no alarms, begins anew."""
        for name, value in state.items():
            setattr(self, name, value)

    def _loss_spike(self, metrics: Mapping[str, float]) -> str:
        middle = median(self.recent["loss"])
        spread = max(abs(value - middle) for value in self.recent["loss"])
        away = abs(metrics["loss"] - middle)
        return f"the loss is {metrics['loss']:.3g}, and was about {middle:.3g}" if away > self._times(spread) else ""

    def _times(self, spread: float) -> float:
        return self.config.loss_spike * max(spread, 1e-6)

    def _gradient_spike(self, metrics: Mapping[str, float]) -> str:
        usual, norm = median(self.recent["grad_norm"]), metrics["grad_norm"]
        too_large = norm > self.config.gradient_spike * usual > 0
        return f"the gradient's norm is {norm:.3g}, and was about {usual:.3g}" if too_large else ""

    def _ratio_limit(self, metrics: Mapping[str, float]) -> str:
        ratio, limit = metrics["ratio"], self.config.ratio_limit
        return (
            f"the new policy's tokens are {ratio:.3g} times as probable as the old one's"
            if not (1 / limit <= ratio <= limit)
            else ""
        )

    def _entropy_share(self, metrics: Mapping[str, float]) -> str:
        assert self.first_entropy is not None
        collapsed = metrics["entropy"] < self.config.entropy_share * self.first_entropy
        return f"the entropy is {metrics['entropy']:.3g}, of {self.first_entropy:.3g} at first" if collapsed else ""

    def _length_share(self, metrics: Mapping[str, float]) -> str:
        collapsed = metrics["length"] < self.config.length_share * self.longest
        return f"completions have {metrics['length']:.0f} tokens, and had {self.longest:.0f}" if collapsed else ""

    def _constant_reward(self, metrics: Mapping[str, float]) -> str:
        if self.constant < self.config.constant_reward:
            return ""
        return f"all completions of {self.constant} steps were rewarded alike: nothing is learned from them"


_ALARMS: dict[str, Callable[[Alarms, Mapping[str, float]], str]] = {
    "loss_spike": Alarms._loss_spike,
    "gradient_spike": Alarms._gradient_spike,
    "ratio_limit": Alarms._ratio_limit,
    "entropy_share": Alarms._entropy_share,
    "length_share": Alarms._length_share,
    "constant_reward": Alarms._constant_reward,
}
