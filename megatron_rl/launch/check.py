"""What is wrong with how a run is spread over machines. Imports no torch."""

import contextlib
from dataclasses import replace

from megatron_rl.errors import InputError
from megatron_rl.launch.config import LaunchConfig
from megatron_rl.launch.nodes import planned
from megatron_rl.rollout.config import NEAR, RolloutConfig


def resolved(launch: LaunchConfig) -> LaunchConfig:
    """With the number of nodes of this job, where it is left to that; unchanged where that cannot be told."""
    with contextlib.suppress(InputError):
        return replace(launch, nodes=planned(launch))
    return launch


def check_launch(launch: LaunchConfig, rollout: RolloutConfig, ranks: int, generates: bool) -> list[str]:
    """Why ``ranks`` trainer ranks and the engines cannot be dealt out over the nodes; empty when they can."""
    try:
        nodes = planned(launch)
    except InputError as error:
        return [str(error)]
    found, serving = [], launch.rollout_nodes
    span = max(rollout.sglang.nodes, 1) if generates and rollout.engine == "sglang" else 1
    if serving >= nodes:
        return [f"launch.rollout_nodes={serving} of {_counted(nodes)} leave none to train on."] if serving else []
    if ranks % (nodes - serving):
        found.append(
            f"{ranks} trainer rank{'s' if ranks > 1 else ''} (tensor x pipeline x context x data parallel) cannot be "
            f"dealt out over {_counted(nodes - serving)}: make them a multiple of {nodes - serving}."
        )
    if serving and not generates:
        found.append(f"launch.rollout_nodes={serving}, but the run generates nothing: set it to 0.")
    elif serving:
        found += _about_rollout_nodes(serving, span, rollout)
    found += _about_spread_engines(serving or nodes, span, rollout)
    if nodes > 1 and generates and rollout.engine == "sglang":
        if rollout.sglang.swap != "pull":
            found.append(f"rollout.sglang.swap={rollout.sglang.swap} needs all trainer ranks on one machine: use pull.")
        elif rollout.sglang.transport in NEAR:
            found.append(
                f"rollout.sglang.transport={rollout.sglang.transport} reaches no other machine, and the run takes "
                f"{nodes}: set it to auto."
            )
    return found


def _about_spread_engines(nodes: int, span: int, rollout: RolloutConfig) -> list[str]:
    """Why engines cannot be spread over ``span`` of the nodes that have engines each."""
    if span > 1 and rollout.sglang.urls:
        return [f"rollout.sglang.nodes={span} is of engines that are started, and rollout.sglang.urls names others."]
    if nodes % span:
        return [
            f"rollout.sglang.nodes={span} nodes for an engine, and {_counted(nodes)} can have engines: make them a "
            f"multiple of {span}."
        ]
    return []


def _about_rollout_nodes(serving: int, span: int, rollout: RolloutConfig) -> list[str]:
    if rollout.engine == "sglang" and rollout.sglang.urls:
        return [f"launch.rollout_nodes={serving} start engines, and rollout.sglang.urls names others: set one of them."]
    found = []
    if rollout.engines * span < serving:
        found.append(
            f"rollout.engines={rollout.engines} leaves some of the {serving} rollout nodes (launch.rollout_nodes) with "
            f"nothing to do: start {'one on each' if span == 1 else -(-serving // span)} at least."
        )
    if rollout.engine == "sglang" and rollout.sglang.colocated:
        found.append(
            f"rollout.sglang.colocated shares GPUs with the trainer, which launch.rollout_nodes={serving} keeps on "
            "other nodes: set one of them."
        )
    return found


def _counted(nodes: int) -> str:
    return f"{nodes} node{'s' if nodes > 1 else ''}"
