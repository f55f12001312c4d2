"""Options of learning from pairs of replies."""

from dataclasses import dataclass, field

from megatron_rl.data.sets.config import SetConfig
from megatron_rl.option import choice, number


@dataclass
class PreferenceConfig:
    """Direct preference optimisation on pairs of a chosen and a rejected reply, between imitation and RL."""

    steps: int = number(0, least=0)  # optimiser steps; 0: none
    batch_size: int = number(32, least=1)  # pairs per step
    loss: str = choice("sigmoid", "cdpo")  # sigmoid: DPO | cdpo: token by token, critical tokens of rejected replies
    beta: float = number(0.1, above=0)  # how much a log-ratio to the reference counts
    label_smoothing: float = number(0.0, least=0, most=0.499999)  # fraction of pairs that are taken to be swapped
    reference: str = ""  # Hugging Face folder of the frozen reference; empty: the policy as the stage finds it
    positive: str = ""  # cdpo: folder of the model trained on right replies
    negative: str = ""  # cdpo: folder of the model trained on wrong replies
    data: SetConfig = field(default_factory=SetConfig)


@dataclass
class RewardModelConfig:
    """A reward model of pairs (Bradley-Terry): the run's model gets a scalar head. It is a run's only stage."""

    steps: int = number(0, least=0)  # optimiser steps; 0: none
    batch_size: int = number(32, least=1)  # pairs per step
    margin: float = number(0.0, least=0)  # by which the reward of the chosen reply is to be higher
    data: SetConfig = field(default_factory=SetConfig)
