"""Rewards tried on one sample before a run starts."""

import reprlib
from contextlib import suppress
from dataclasses import replace
from math import isfinite

from megatron_rl.data.task import Report, Sample
from megatron_rl.errors import InputError
from megatron_rl.rewards.config import RewardsConfig
from megatron_rl.rewards.registry import check_rewards, resolve, services
from megatron_rl.rewards.workers.pool import RewardPool
from megatron_rl.rewards.workers.terms import RewardError


def try_rewards(config: RewardsConfig, sample: Sample, report: Report | None = None) -> list[str]:
    """What goes wrong when the rewards, and the task's report where one is given, are called once; empty: nothing.

    They run in a worker with its deadlines, so that whatever they do, this ends. With options that ``check_rewards``
    refuses nothing is called, and it is only said what the sample does not have.
    """
    if check_rewards(config):
        return _unfit(config, sample)
    found = _try(config, sample, report)
    if found and len(config.terms) > 1:  # the first that fails hides the others
        each = [_try(_alone(config, name), sample, None) for name in config.terms]
        found = [sentence for sentences in each for sentence in sentences] or found
    return found


def _try(config: RewardsConfig, sample: Sample, report: Report | None) -> list[str]:
    called = f"Rewards called with a row of the data and the response {reprlib.repr(sample.response)}"
    try:
        with RewardPool(replace(config, workers=1), report) as pool:
            [scored] = pool.score([sample])
    except RewardError as error:
        return [f"{called}: {error.reason}"]
    except InputError as error:
        return [str(error)]
    values = {name: value for name, value in scored.components.items() if not isfinite(value)}
    return [f"{called}: {name} is {value}, not a finite number." for name, value in values.items()][:1]


def _unfit(config: RewardsConfig, sample: Sample) -> list[str]:
    """What rewards would ask others about the sample and cannot, as far as they can be made."""
    found = []
    for name in config.terms:
        with suppress(InputError, TypeError):  # check_rewards has spoken of it
            asked = services(resolve(name), config.args.get(name, {}))
            found += [said for service in asked for said in service.unfit(sample)]
    return found


def _alone(config: RewardsConfig, name: str) -> RewardsConfig:
    args = {key: args for key, args in config.args.items() if key == name}
    return replace(config, terms={name: 1.0}, args=args, schedules={})
