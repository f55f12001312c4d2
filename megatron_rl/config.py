"""The typed configuration tree: one dataclass per room, composed here.

A recipe is a function that returns a ``Config``. This module imports no torch.
"""

from dataclasses import dataclass, field
from pathlib import Path

from megatron_rl.actor.config import ActorConfig, CriticConfig, ModelConfig, OptimizerConfig
from megatron_rl.algorithms.config import AlgorithmConfig, SFTConfig
from megatron_rl.algorithms.pairs.config import PreferenceConfig, RewardModelConfig
from megatron_rl.data.config import DataConfig
from megatron_rl.data.registry import held_out
from megatron_rl.evaluation.config import EvaluationConfig, SuiteConfig
from megatron_rl.launch.config import LaunchConfig
from megatron_rl.option import choice, number
from megatron_rl.rewards.config import RewardsConfig
from megatron_rl.rollout.config import RolloutConfig, Served
from megatron_rl.tracking.config import TrackingConfig
from megatron_rl.training.config import AlarmsConfig

STAGES = ("sft", "preference", "rl", "reward_model")  # in the order in which a run goes through them


@dataclass
class RunConfig:
    """One run and its folder."""

    name: str = "run"  # the run's folder is {folder}/{name}
    folder: str = "runs"  # where runs are kept
    seed: int = number(0, least=0)  # data order, sampling, initial weights
    steps: int = number(100, least=0)  # RL steps
    resume: str = choice("auto", "never")  # auto: continue the run in the folder | never: always a new, numbered folder
    save_every: int = number(0, least=0)  # steps between checkpoints; 0: only the last
    keep: int = number(2, least=1)  # checkpoints kept
    grace_seconds: float = number(600.0, least=0)  # for the step under way and its checkpoint, after Ctrl-C or SIGTERM
    export: bool = True  # write the final policy as a Hugging Face folder
    start_from: str = ""  # a run's folder, or a checkpoint in one: begin with its policy
    start_optimizer: bool = False  # and go on with its optimiser's moments
    not_finite: str = choice("stop", "skip")  # where a loss or gradient norm is NaN or infinite: the run, or the update


@dataclass
class Config:
    """Everything a run depends on."""

    run: RunConfig = field(default_factory=RunConfig)
    launch: LaunchConfig = field(default_factory=LaunchConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    rollout: RolloutConfig = field(default_factory=RolloutConfig)
    rewards: RewardsConfig = field(default_factory=RewardsConfig)
    algorithm: AlgorithmConfig = field(default_factory=AlgorithmConfig)
    actor: ActorConfig = field(default_factory=ActorConfig)
    critic: CriticConfig = field(default_factory=CriticConfig)
    sft: SFTConfig = field(default_factory=SFTConfig)
    sft_optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    preference: PreferenceConfig = field(default_factory=PreferenceConfig)
    preference_optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    reward_model: RewardModelConfig = field(default_factory=RewardModelConfig)
    reward_model_optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    alarms: AlarmsConfig = field(default_factory=AlarmsConfig)

    def chain(self) -> dict[str, int]:
        """The stages of the run in their order, and their steps; RL with none where it only evaluates."""
        steps = {
            "sft": self.sft.steps,
            "preference": self.preference.steps,
            "rl": self.run.steps,
            "reward_model": self.reward_model.steps,
        }
        return {name: steps[name] for name in STAGES if steps[name]} or {"rl": 0}

    def generates(self) -> bool:
        """Whether anything is drawn from the policy, to learn from it or to evaluate it; else the run has no engine."""
        return self.scores() or (bool(self.evaluation.suites) and not self.reward_model.steps)

    def scores(self) -> bool:
        """Whether completions of the task's questions are drawn: for RL, or of those held out."""
        evaluates = self.evaluation.prompts > 0 and held_out(self.data) != 0
        return self.run.steps > 0 or (evaluates and not self.reward_model.steps)

    def asks(self) -> bool:
        """Whether the run needs its task: for its questions, or for targets or pairs."""
        own = ((self.sft.steps, self.sft.data), (self.preference.steps, self.preference.data))
        return self.scores() or any(steps > 0 and not data.path for steps, data in own)

    def served(self) -> Served:
        """What SGLang's servers have to know."""
        return Served(
            rollout=self.rollout,
            dtype=self.model.dtype,
            seed=self.run.seed,
            longest=self.data.max_prompt_tokens + self._longest_completion(),
            trainers=self.actor.sizes().world,
            folder=Path(self.run.folder) / self.run.name,
        )

    def _longest_completion(self) -> int:
        """In tokens, of the rollout or of a suite."""
        given = [suite.get("max_new_tokens") for suite in self.evaluation.suites.values() if isinstance(suite, dict)]
        of_suites = [most for most in given if isinstance(most, int)]
        return max(
            [self.rollout.max_new_tokens, *of_suites, *([SuiteConfig().max_new_tokens] if None in given else [])]
        )
