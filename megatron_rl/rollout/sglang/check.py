"""Violations of the SGLang options. Imports neither torch nor SGLang."""

import contextlib
import os
import socket
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

from megatron_rl.errors import InputError
from megatron_rl.resharding.families.table import tied
from megatron_rl.resharding.layouts.fp8 import quantised_engine, quantised_names
from megatron_rl.resharding.layouts.sglang import EngineSizes, engine_violations, sglang_layout
from megatron_rl.rollout.config import NEAR, RolloutConfig, SGLangConfig
from megatron_rl.rollout.sglang.servers.gpus import engine_gpus, shared
from megatron_rl.rollout.sglang.servers.process import refused
from megatron_rl.rollout.sglang.servers.versions import supported
from megatron_rl.rollout.sglang.transport import far_hosts
from megatron_rl.system import machine
from megatron_rl.system.channel import key_from_environment

_APART = (
    "connects processes that have a GPU each, and an engine would share one with the trainer: set "
    "rollout.sglang.swap=pull and rollout.sglang.transport=auto, or use fewer GPUs for the trainer."
)


def check_sglang(rollout: RolloutConfig) -> list[str]:
    """Every violation, a sentence or two each; empty when there is none."""
    options = rollout.sglang
    found = _package(rollout)
    found += _transport(options)
    if not options.urls and not machine.elsewhere():
        found += machine.shared_memory_problems()
    if options.fp8 and options.swap != "pull":
        found.append(f"rollout.sglang.fp8=true needs rollout.sglang.swap=pull; it is {options.swap}.")
    if options.fp8 and not options.urls and not machine.gpus():
        found.append("rollout.sglang.fp8=true needs engines with GPUs, and there is none here.")
    if options.nodes > 1 and options.tensor_parallel % options.nodes:
        found.append(
            f"rollout.sglang.tensor_parallel={options.tensor_parallel} workers cannot be dealt out over "
            f"rollout.sglang.nodes={options.nodes}: make them a multiple."
        )
    if _deterministic(options) and not options.urls and not machine.gpus():
        found.append(
            "rollout.sglang.args.enable_deterministic_inference=true is for GPUs, and there is none here: leave it out."
        )
    for name in options.args:
        if instead := refused(name):
            found.append(f"rollout.sglang.args.{name} cannot be given: {instead}.")
    return found + _addresses(options, rollout.engines)


def _deterministic(options: SGLangConfig) -> bool:
    return any(
        value and name.replace("-", "_") == "enable_deterministic_inference" for name, value in options.args.items()
    )


def check_sglang_model(options: SGLangConfig, hf_config: Mapping[str, Any]) -> list[str]:
    """Why the servers cannot shard the model this way."""
    sizes = EngineSizes(tensor=options.tensor_parallel, expert=options.expert_parallel)
    found = [problem.replace("engine.", "rollout.sglang.") for problem in engine_violations(hf_config, sizes)]
    if hf_config.get("model_type") == "qwen3_moe" and tied(hf_config):
        found.append("SGLang's Qwen3-MoE has a head of its own: it cannot serve tie_word_embeddings=true.")
    if options.fp8 and not found:
        try:
            names = quantised_names(hf_config)
            quantised_engine(sglang_layout(hf_config, sizes), names)
        except InputError as error:
            found.append(f"rollout.sglang.fp8=true: {error}")
    if options.expert_parallel > 1 and not options.urls and not machine.gpus():
        found.append(
            f"rollout.sglang.expert_parallel={options.expert_parallel} needs GPUs: SGLang has no such experts on a CPU."
        )
    return found


def check_sglang_gpus(rollout: RolloutConfig, world: int) -> list[str]:
    """Why servers cannot use this machine's GPUs beside ``world`` trainer ranks, or on theirs."""
    options, gpus = rollout.sglang, len(machine.gpus())
    if not gpus or min(options.tensor_parallel, options.nodes) < 1 or options.tensor_parallel % options.nodes:
        return []
    found = _allocator(options)
    if not (taken := engine_gpus(rollout, world)):
        return found
    if options.tensor_parallel > gpus * options.nodes:
        found.append(
            f"rollout.sglang.tensor_parallel={options.tensor_parallel} gives every worker of an engine its own GPU, "
            f"and this machine has {gpus}: lower it, or spread engines over several (rollout.sglang.nodes)."
        )
    elif (last := max(place.stop for place in taken) - 1) >= gpus:
        found.append(f"rollout.sglang.args.base_gpu_id: an engine takes GPU {last}, and the last here is {gpus - 1}.")
    elif options.swap == "distributed" and shared(taken, 1):  # rank 0 alone sends
        found.append(f"rollout.sglang.swap=distributed {_APART}")
    elif options.swap == "pull" and options.transport == "nccl" and shared(taken, world):
        found.append(f"rollout.sglang.transport=nccl {_APART}")
    return found


def _allocator(options: SGLangConfig) -> list[str]:
    """A setting of torch's memory that keeps it from being given back, and from being read by other processes."""
    chosen, near = options.transport, False
    with contextlib.suppress(InputError):  # a host's name that is unknown is a violation of its own
        near = not far_hosts(options)
    cuda_ipc = options.swap == "pull" and (chosen == "cuda_ipc" or (chosen == "auto" and near))
    who = "colocated=true" if options.colocated and not options.urls else f"transport={chosen}" if cuda_ipc else ""
    return [
        f"The environment variable {name} has expandable_segments:True, with which rollout.sglang.{who} does not work: "
        "take it out."
        for name in ("PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_ALLOC_CONF")
        if who and "expandable_segments:true" in os.environ.get(name, "").lower().replace(" ", "")
    ]


def _package(rollout: RolloutConfig) -> list[str]:
    if rollout.sglang.urls:  # the servers' own installation
        found = _router(rollout.sglang.urls.count(",") + 1)
        try:
            key_from_environment()
        except InputError as error:
            found.append(f"rollout.sglang.urls: {error} It is the one that `megatron-rl engine` printed or was given.")
        return found
    if machine.elsewhere():  # where it is installed
        return []
    version = machine.installed("sglang")
    if version is None:
        return [
            'rollout.engine=sglang, but SGLang is not installed: pip install "megatron-rl[sglang]" on a machine with a '
            "GPU, `make sglang` without one; or give rollout.sglang.urls of servers that run elsewhere."
        ]
    try:
        supported(version)
    except InputError as error:
        return [str(error)]
    return _router(rollout.engines)


def _router(engines: int) -> list[str]:
    if engines > 1 and machine.installed("sglang-router") is None:
        return ['More than one engine needs sglang-router, which is not installed: pip install "megatron-rl[sglang]".']
    return []


def _transport(options: SGLangConfig) -> list[str]:
    chosen = options.transport
    found = []
    if options.swap != "pull" and chosen != "auto":
        found.append(
            f"rollout.sglang.transport={chosen} is how bytes are pulled: leave it, or set rollout.sglang.swap=pull."
        )
    if chosen in ("cuda_ipc", "nccl") and not machine.gpus():
        found.append(
            f"rollout.sglang.transport={chosen} takes weights out of GPU memory, and there is no GPU: set auto."
        )
    if options.host and not machine.is_address(options.host):
        found.append(f"rollout.sglang.host is {options.host!r}, which is no IPv4 address of this machine.")
    try:
        far = far_hosts(options)
    except InputError as error:
        return [*found, f"rollout.sglang.urls: {error}"]
    if far and chosen in NEAR:
        found.append(
            f"rollout.sglang.transport={chosen} reads the trainer's memory; {far[0]} is another machine: set auto."
        )
    if far and options.swap == "disk":
        found.append(
            f"rollout.sglang.swap=disk writes to a temporary folder of this machine, which {far[0]} does not see: set "
            "pull."
        )
    return found


def _addresses(options: SGLangConfig, engines: int) -> list[str]:
    found = _urls(options.urls)
    if options.urls or not options.port:
        return found
    if not 0 < options.port <= 65536 - engines:
        return [*found, f"rollout.sglang.port is {options.port}; it must be 0 or a port of 1 to {65536 - engines}."]
    for port in range(options.port, options.port + engines):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError as error:
                found.append(
                    f"rollout.sglang.port={options.port}: port {port} cannot be used ({error.strerror}). Choose "
                    "another, or 0 for free ones."
                )
    return found


def _urls(given: str) -> list[str]:
    found, seen = [], set()
    for url in [part.strip() for part in given.split(",")] if given else []:
        if (place := _place(url)) is None:
            found.append(f"rollout.sglang.urls: {url!r} is no server's address; write http://host:port.")
        elif place in seen:
            found.append(f"rollout.sglang.urls: {url!r} is given twice; every server is one engine.")
        seen.add(place)
    return found


def _place(url: str) -> tuple[str, int] | None:
    """A server's host and port; None for what is not http://host:port."""
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, 80 if parts.port is None else parts.port
    except ValueError:  # a port that is no number or too large
        return None
    more = parts.query or parts.fragment or "@" in parts.netloc or "?" in url or "#" in url
    if parts.scheme != "http" or not host or not port or parts.path not in ("", "/") or more:
        return None
    return host, port
