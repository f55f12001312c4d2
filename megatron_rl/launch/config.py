"""Options of the machines that a run takes."""

from dataclasses import dataclass

from megatron_rl.option import number


@dataclass
class LaunchConfig:
    """Where a run's processes are: docs/launching.md."""

    nodes: int = number(0, least=0)  # machines; 0: as many as Slurm or torchrun has given this command, else this one
    rollout_nodes: int = number(0, least=0)  # the last so many only generate, the others only train; 0: all do both
    meet_seconds: float = number(300.0, above=0)  # in which every node must have called in
