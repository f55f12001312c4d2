"""The models of a run, by role: the policy that is trained, others that are trained beside it, and frozen ones."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from megatron_rl.actor import checkpoint, groups
from megatron_rl.actor.checkpoint import load_optimizer
from megatron_rl.actor.config import ActorConfig, LoRAConfig, OptimizerConfig
from megatron_rl.actor.trainer import Actor
from megatron_rl.algorithms.config import AlgorithmConfig
from megatron_rl.config import Config
from megatron_rl.data.tokenizer import load_tokenizer
from megatron_rl.errors import InputError
from megatron_rl.resharding.families import with_scalar_head
from megatron_rl.resharding.families.table import scalar_head
from megatron_rl.resharding.folders.fingerprint import fingerprint
from megatron_rl.resharding.folders.hf import model_config, read_hf_config
from megatron_rl.tracking.run_folder import RunFolder


@dataclass(frozen=True)
class Role:
    """One set of weights and what it is for."""

    name: str  # policy | reference | critic | positive | negative | teacher
    folder: Path  # Hugging Face folder of its first weights
    trained: bool = True
    head: str = "vocabulary"  # or "scalar": one number a token


class Models:
    """Every rank's shards; methods are collective."""

    def __init__(self, run: RunFolder, config: Config) -> None:
        folder, hf_config = run.model_folder(), run.hf_config()
        head = "scalar" if config.reward_model.steps else "vocabulary"
        if head == "scalar":
            hf_config = _rewarding(folder, hf_config)
        self.roles = {"policy": Role("policy", folder, head=head)}
        self.config = config
        self.policy = Actor(hf_config, config.actor, config.model.dtype, str(folder), config.run.seed)
        self.beside: dict[str, Actor] = {}  # trained, too
        self._holds: Path | None = run.model_folder()  # the folder whose weights the policy has; None: others

    def begin(self, role: Role, optimizer: OptimizerConfig) -> None:
        """Build a model that is trained beside the policy, sharded as that is, with an optimiser of its own."""
        hf_config = model_config(role.folder)
        if role.head == "scalar":
            hf_config = _with_scalar_head(hf_config)
        model = Actor(hf_config, self._whole, self.config.model.dtype, str(role.folder))
        model.new_optimizer(optimizer)
        self.roles[role.name], self.beside[role.name] = role, model

    @property
    def critic(self) -> Actor:
        """The value model of ``begin``."""
        return self.beside["critic"]

    def finite(self) -> bool:
        """Whether all weights that are trained are finite numbers."""
        return all([model.finite() for model in (self.policy, *self.beside.values())])

    def save(
        self, folder: Path, name: str, state: dict[str, Any], keep: int, files: Mapping[str, bytes] | None = None
    ) -> None:
        """A checkpoint of every trained model (``checkpoint.save``)."""
        checkpoint.save(self.policy, folder, name, state, keep, files, self.beside)

    def load(self, newest: Path) -> None:
        """Every trained model as a checkpoint has it (``checkpoint.load``)."""
        checkpoint.load(self.policy, newest, self.beside)
        self.changed()

    def start(self, checkpoint: Path) -> None:
        """Go on with the moments of the policy that another run has trained, whose weights the policy has."""
        load_optimizer(self.policy, checkpoint)

    def changed(self) -> None:
        """Note that the policy has been trained, or loaded from a checkpoint."""
        self._holds = None
        self.rest()

    def rest(self) -> None:
        """Have what only learning needs leave the GPUs, where ``actor.asleep`` says so."""
        for model in (self.policy, *self.beside.values()):
            model.sleep()

    def holds(self, folder: Path) -> None:
        """Note that the policy's weights are those of a folder."""
        self._holds = folder

    def freeze(
        self,
        role: Role,
        expected: str = "",
        otherwise: str = "train on with algorithm.kl_coef=0",
        moves: bool = False,
    ) -> None:
        """Keep the weights of a role's folder beside the policy, which has them afterwards if it has no adapters.

        ``moves``: as for ``Actor.freeze_reference``.

        Raises InputError when the folder is gone, or is not the one whose ``fingerprint`` is ``expected``; it says what
        can be done ``otherwise``.
        """
        if not (role.folder / "config.json").is_file():
            raise InputError(f"The {role.name} policy {role.folder} is gone: restore it, or {otherwise}.")
        if expected and fingerprint(role.folder) != expected:
            raise InputError(
                f"The weights in {role.folder} are not those that this run began with as its {role.name} policy: "
                f"restore them, or {otherwise}."
            )
        self.hold(role.folder)
        self.policy.freeze_reference(role.name, moves=moves)
        self.roles[role.name] = role
        if self.policy.adapted:  # these say what the policy is, and they are not the folder's
            self.policy.merge()
            self._holds = None

    @property
    def held(self) -> Path | None:
        """The folder whose weights the policy has; None: it has others."""
        return self._holds

    def hold(self, folder: Path) -> None:
        """Have the policy at the weights of a folder."""
        if self._holds != folder:
            self.policy.load(str(folder))
            self._holds = folder

    def thaw(self) -> None:
        """Forget all frozen roles."""
        self.policy.thaw()
        self.roles = {name: role for name, role in self.roles.items() if role.trained}

    def teach(self, role: Role, expected: str) -> None:
        """Have a frozen model of a shape of its own beside the policy, at the policy's parallel sizes: ``teacher``.

        Raises InputError when the folder is not the one whose ``fingerprint`` is ``expected``.
        """
        if fingerprint(role.folder) != expected:
            raise InputError(
                f"The weights in {role.folder} are not those of the teacher that this run began with: restore them, or "
                "begin a new run with run.resume=never."
            )
        shape, dtype = read_hf_config(role.folder), self.config.model.dtype
        self.teacher = Actor(shape, self._whole, dtype, str(role.folder), trained=False)
        self.roles[role.name] = role

    @property
    def _whole(self) -> ActorConfig:
        """For models beside the policy: adapters and frozen weights are the policy's."""
        return replace(self.config.actor, lora=LoRAConfig(), freeze=[])

    def keep_up(self, config: AlgorithmConfig, step: int) -> None:
        """Have the reference follow the policy after RL step ``step`` (from 1), where it does so at all."""
        reference, every = self.policy.kept_reference, config.reference_every
        renewed = bool(every) and step % every == 0
        if reference is None or not (config.reference_ema or renewed):
            return
        self.policy.gather()
        reference.follow(0.0 if renewed else config.reference_ema)

    @contextmanager
    def frozen(self, name: str) -> Iterator[Actor]:
        """Inside, forward passes of the policy's shards compute with a frozen role's weights."""
        if self.roles[name].trained:
            raise ValueError(f"{name} is trained, not frozen")
        with self.policy.reference(name):
            yield self.policy


def _with_scalar_head(hf_config: dict[str, Any]) -> dict[str, Any]:
    return hf_config if scalar_head(hf_config) else with_scalar_head(hf_config)


def _rewarding(folder: Path, hf_config: dict[str, Any]) -> dict[str, Any]:
    """A reward model's config.json, with the padding that transformers looks for to find a text's last token.

    Where it is the end token too, transformers would read the token before it: then there is none, and it takes texts
    one by one. Collective.
    """
    padding = None
    if groups.first():
        tokenizer = load_tokenizer(folder)
        padding = tokenizer.pad_token_id if tokenizer.pad_token_id != tokenizer.eos_token_id else None
    return _with_scalar_head(hf_config) | {"pad_token_id": groups.share(padding)}
