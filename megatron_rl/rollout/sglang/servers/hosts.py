"""On which machines of a run its SGLang servers are: the first is rank 0's own. Imports no torch."""

import json
import os
from dataclasses import asdict, dataclass

HOSTS = "MEGATRON_RL_HOSTS"  # environment variable of rank 0: a Hosts as JSON, where there is more than one


@dataclass(frozen=True)
class Hosts:
    """How many servers and trainer ranks each machine has.

    Where a server's workers are on ``span`` machines, these follow each other, and each counts it.
    """

    engines: tuple[int, ...]
    ranks: tuple[int, ...]
    control: str = ""  # the address at which the keepers of the other machines call rank 0
    span: int = 1

    def written(self) -> str:
        """For the environment variable."""
        return json.dumps(asdict(self))


def hosts_of(engines: int, ranks: int) -> Hosts:
    """As the environment says; else all on this machine."""
    if HOSTS not in os.environ:
        return Hosts((engines,), (ranks,))
    found = json.loads(os.environ[HOSTS])
    return Hosts(tuple(found["engines"]), tuple(found["ranks"]), found["control"], found["span"])
