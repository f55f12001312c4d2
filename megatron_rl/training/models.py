"""The models of a run, by role: the policy that is trained, and frozen ones beside it."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from megatron_rl.actor.trainer import Actor
from megatron_rl.algorithms.config import AlgorithmConfig
from megatron_rl.config import Config
from megatron_rl.errors import InputError
from megatron_rl.resharding.folders.fingerprint import fingerprint
from megatron_rl.tracking.run_folder import RunFolder


@dataclass(frozen=True)
class Role:
    """One set of weights and what it is for."""

    name: str  # policy | reference
    folder: Path  # Hugging Face folder of its first weights
    trained: bool = True


class Models:
    """Every rank's shards; methods are collective."""

    def __init__(self, run: RunFolder, config: Config) -> None:
        self.roles = {"policy": Role("policy", run.model_folder())}
        folder = str(run.model_folder())
        self.policy = Actor(run.hf_config(), config.actor, config.model.dtype, folder, config.run.seed)
        self._holds: Path | None = run.model_folder()  # the folder whose weights the policy has; None: others

    def changed(self) -> None:
        """Note that the policy has been trained, or loaded from a checkpoint."""
        self._holds = None

    def holds(self, folder: Path) -> None:
        """Note that the policy's weights are those of a folder."""
        self._holds = folder

    def freeze(self, role: Role, expected: str = "", moves: bool = False) -> None:
        """Keep the weights of a role's folder beside the policy, which has them afterwards if it has no adapters.

        ``moves``: as for ``Actor.freeze_reference``.

        Raises InputError when the folder is gone, or is not the one whose ``fingerprint`` is ``expected``.
        """
        if not (role.folder / "config.json").is_file():
            raise InputError(
                f"The {role.name} policy {role.folder} is gone: restore it, or train on with algorithm.kl_coef=0."
            )
        if expected and fingerprint(role.folder) != expected:
            raise InputError(
                f"The weights in {role.folder} are not those that this run began with as its {role.name} policy: "
                "restore them, or train on with algorithm.kl_coef=0."
            )
        if self._holds != role.folder:
            self.policy.load(str(role.folder))
            self._holds = role.folder
        self.policy.freeze_reference(moves)
        self.roles[role.name] = role
        if self.policy.adapted:  # these say what the policy is, and they are not the folder's
            self.policy.merge()
            self._holds = None

    def keep_up(self, config: AlgorithmConfig, step: int) -> None:
        """Have the reference follow the policy after RL step ``step`` (from 1), where it does so at all."""
        reference = self.policy.kept_reference
        if reference is not None and config.reference_ema:
            reference.follow(config.reference_ema)
        if reference is not None and config.reference_every and step % config.reference_every == 0:
            reference.follow(0.0)

    @contextmanager
    def frozen(self, name: str) -> Iterator[Actor]:
        """Inside, forward passes of the policy's shards compute with a frozen role's weights."""
        if self.roles[name].trained:
            raise ValueError(f"{name} is trained, not frozen")
        with self.policy.reference():
            yield self.policy
