"""Options of what a run watches."""

from dataclasses import dataclass

from megatron_rl.option import choice, number


@dataclass
class AlarmsConfig:
    """Curves of RL that say that a run goes wrong; each alarm is raised once, when it begins. 0 turns one off."""

    action: str = choice("warn", "stop")  # when one is raised: say so | end the run before the step is saved
    window: int = number(16, least=2)  # steps that a step is compared with, and that must have been before any is
    loss_spike: float = number(10.0, least=0)  # loss further from the window's median than so many times any of it was
    gradient_spike: float = number(20.0, least=0)  # grad_norm above so many times the window's median
    ratio_limit: float = number(2.0, least=0)  # mean ratio to the old policy above it, or below its inverse
    entropy_share: float = number(0.02, least=0, most=1)  # entropy below this share of the first window's mean
    length_share: float = number(0.3, least=0, most=1)  # mean length below this share of the largest window's mean
    constant_reward: int = number(16, least=0)  # so many steps in a row all of whose completions are rewarded alike
