"""Everything that is wrong with a configuration on this machine, found before anything is started. Imports no torch."""

from dataclasses import dataclass, field, replace
from typing import Any

from megatron_rl.actor.megatron.check import check_megatron
from megatron_rl.algorithms.check import check_algorithm
from megatron_rl.algorithms.pairs.check import check_preference, check_reward_model
from megatron_rl.algorithms.registry import asked_of
from megatron_rl.config import Config
from megatron_rl.data.check import check_data
from megatron_rl.errors import InputError
from megatron_rl.launch.check import check_launch, resolved
from megatron_rl.resharding.families.architecture import read_architecture
from megatron_rl.resharding.folders.check import config_problems
from megatron_rl.rewards.registry import check_rewards
from megatron_rl.rollout.check import check_rollout
from megatron_rl.settings import fit
from megatron_rl.settings.across import check_across, missing_data
from megatron_rl.settings.contents import ask_megatron, look
from megatron_rl.settings.footprint import footprint
from megatron_rl.settings.foresight.hardware import this_machine
from megatron_rl.settings.foresight.precision import mismatch_of, mismatch_on
from megatron_rl.settings.foresight.rules import check_hardware
from megatron_rl.settings.model import check_critic, check_model, check_sizes, has_tokenizer
from megatron_rl.settings.rules import violations
from megatron_rl.system import kernels, machine
from megatron_rl.tracking.check import check_tracking, start_problems


@dataclass
class Findings:
    """What ``check`` found, a sentence or two each."""

    problems: list[str]  # empty when the run can start
    warnings: list[str] = field(default_factory=list)  # it can, but surely not as it was meant
    notes: dict[str, int] = field(default_factory=dict)  # of the task: what it did to how many rows
    prompt: float = 0.0  # tokens of a training prompt in the mean; 0: not known
    aside: frozenset[str] = frozenset()  # of the problems, those that neither memory nor time depends on


def check(config: Config, contents: bool = True, known: dict[str, Any] | None = None) -> Findings:
    """Every violation at once.

    ``contents``: look at the tokenizer and the rows of the data too, which takes a few seconds. ``known``: the
    config.json of a model whose folder is elsewhere. Of hardware that is elsewhere too (``machine.standing_for``) the
    GPUs count; packages, data and folders are this machine's.
    """
    broken, packages = violations(config), machine.package_problems()
    if not machine.elsewhere():
        packages += kernels.apex_problems()
        if machine.gpus() and config.model.dtype == "bfloat16":
            packages += kernels.transformer_engine_problems()
    config = replace(config, launch=resolved(config.launch))
    found = packages + list(broken.values())
    if config.generates():
        found += check_rollout(config.rollout) + (check_rewards(config.rewards) if config.scores() else [])
    found += check_preference(config.preference) + check_reward_model(config.reward_model)
    sets = ("data.", "sft.data.", "preference.data.", "reward_model.data.")
    about_data = check_data(config.data) if config.asks() else []
    aside = packages + about_data + missing_data(config)
    about_data += [said for key, said in broken.items() if key.startswith(sets)]
    hf_config, about_folder = check_model(config, known)
    found += about_data + check_algorithm(config.algorithm)
    found += check_across(config, None if about_folder else hf_config)
    if not any(key.startswith(("actor.", "rollout.", "launch.")) for key in broken):
        found += check_launch(config.launch, config.rollout, config.actor.sizes().world, config.generates())
    of_the_run = check_tracking(config.tracking) + fit.check_run_folder(config.run) + _free_port()
    found, aside = found + of_the_run, aside + of_the_run
    here = this_machine() if machine.gpus() and not machine.elsewhere() else None
    if here:
        found += check_hardware(config, here)
    found += about_folder
    warnings = fit.warnings(config) + (mismatch_on(config, here) if here else [])
    asks, readable = False, hf_config is not None and not config_problems(hf_config)
    if hf_config is not None and readable and not any(key.startswith(("actor.", "rollout.sglang.")) for key in broken):
        about_sizes, critic = check_sizes(config, hf_config), None
        if not about_sizes:
            warnings += mismatch_of(config, read_architecture(hf_config))
        asks = contents and not about_sizes + packages + about_folder + check_megatron(config.actor, config.model.dtype)
        if not about_sizes and config.run.steps and "value" in asked_of(config.algorithm).needs:
            critic, about_sizes = check_critic(config, hf_config)
        if not about_sizes and "model.dtype" not in broken:
            about_sizes = fit.check_fit(config, footprint(config, hf_config, critic))
        found += about_sizes or start_problems(config, hf_config)
    notes, prompt = dict[str, int](), 0.0
    there = known is not None or (machine.elsewhere() and not has_tokenizer(config.model.path))
    if contents and there:
        warnings.append("The tokenizer and the rows of the data were not looked at: the model's folder is not here.")
    if contents and not there and hf_config is not None and not packages + about_folder + about_data:
        about_rows, notes, of_rows, prompt = look(config, asks)
        found, warnings = found + about_rows, warnings + of_rows
    elif asks and hf_config is not None and config.actor.megatron:
        found += ask_megatron(config, hf_config)[0]
    return Findings(list(dict.fromkeys(found)), warnings, notes, prompt, frozenset(aside))


def askable(config: Config) -> bool:
    """Whether Megatron-Core can be asked of it: it is there, and our own rules find nothing wrong with its options."""
    wrong = [key for key in violations(config) if key.startswith(("actor.", "model."))]
    return not wrong + machine.package_problems() + check_megatron(config.actor, config.model.dtype)


def _free_port() -> list[str]:
    try:
        machine.free_port()
    except InputError as error:
        return [str(error)]
    return []
