"""How weights get from this trainer to these servers: which transport, and at which address they find rank 0.

Imports no torch.
"""

from collections.abc import Sequence
from urllib.parse import urlsplit

from megatron_rl.errors import InputError
from megatron_rl.rollout.config import FAR, NEAR, SGLangConfig
from megatron_rl.system import machine


def hosts(options: SGLangConfig) -> list[str]:
    """Of the servers that run already."""
    urls = filter(None, (part.strip() for part in options.urls.split(",")))
    return [host for url in urls if (host := urlsplit(url).hostname)]


def far_hosts(options: SGLangConfig) -> list[str]:
    """Those that are other machines. Raises InputError for a name that is unknown."""
    return [host for host in hosts(options) if not machine.is_here(host)]


def control_host(options: SGLangConfig) -> str:
    """This machine's address for the servers' workers; empty where all of them reach a Unix socket."""
    far = far_hosts(options)
    return options.host or (machine.address_towards(far[0]) if far else "")


def chosen_transport(options: SGLangConfig, places: Sequence[str], elsewhere: bool = False) -> str:
    """The transport for trainer ranks at ``places`` (``machine.place()`` of each).

    ``elsewhere``: servers that the run starts are on other machines.

    Raises InputError for one that does not reach from there to the servers.
    """
    far = far_hosts(options)
    apart = "trainer ranks run" if set(places) != {machine.place()} else "servers run" if elsewhere else ""
    apart = f"the server at {far[0]} runs" if far else apart
    if options.swap != "pull":  # rank 0 reads the ranks' memory
        if set(places) != {machine.place()} or elsewhere:
            raise InputError(f"rollout.sglang.swap={options.swap} needs all trainer ranks on one machine: use pull.")
        return "shared_memory"
    if options.transport == "auto":
        return (FAR if apart else NEAR)[bool(machine.gpus())]
    if apart and options.transport in NEAR:
        raise InputError(
            f"rollout.sglang.transport={options.transport} reads the trainer's memory, but {apart} on another machine, "
            "or in a container without --pid=host and --ipc=host: "
            f"set it to {FAR[0]}, {FAR[1]} or files, or to auto."
        )
    return options.transport
