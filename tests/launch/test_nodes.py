"""Which machines a command has been given, by the environment of Slurm and of torchrun."""

import re
from dataclasses import replace

import pytest

from megatron_rl.errors import InputError
from megatron_rl.launch.check import check_launch
from megatron_rl.launch.config import LaunchConfig
from megatron_rl.launch.nodes import ALONE, given, planned
from megatron_rl.rollout.config import RolloutConfig, SGLangConfig

STEP = {
    "SLURM_JOB_ID": "4711",
    "SLURM_JOB_NUM_NODES": "4",
    "SLURM_STEP_ID": "0",
    "SLURM_STEP_NUM_NODES": "4",
    "SLURM_STEP_NUM_TASKS": "4",
    "SLURM_NODEID": "2",
    "SLURM_RESTART_COUNT": "1",
}
TORCHRUN = {
    "TORCHELASTIC_RUN_ID": "abc",
    "LOCAL_WORLD_SIZE": "1",
    "GROUP_WORLD_SIZE": "2",
    "GROUP_RANK": "1",
    "MASTER_PORT": "29500",
}


def test_a_step_of_slurm_is_on_all_its_nodes() -> None:
    nodes = given(LaunchConfig(), STEP)
    assert (nodes.count, nodes.index, nodes.job, nodes.number) == (4, 2, "slurm4711.0.1", 4711)
    assert given(LaunchConfig(nodes=4), STEP) == nodes


def test_torchrun_starts_a_supervisor_a_node() -> None:
    nodes = given(LaunchConfig(), TORCHRUN)
    assert (nodes.count, nodes.index, nodes.job) == (2, 1, "torchrun-abc.0")


def test_else_a_command_is_alone() -> None:
    assert given(LaunchConfig(), {}) == ALONE
    batch = {"SLURM_JOB_ID": "4711", "SLURM_JOB_NUM_NODES": "1"}
    assert given(LaunchConfig(), batch) == ALONE
    assert given(LaunchConfig(nodes=1), batch | {"SLURM_JOB_NUM_NODES": "2"}) == ALONE


@pytest.mark.parametrize(
    ("asked", "env", "said"),
    [
        (0, STEP | {"SLURM_STEP_NUM_TASKS": "32"}, "32 times on 4 nodes: start it once on each"),
        (0, TORCHRUN | {"LOCAL_WORLD_SIZE": "8"}, "8 times on a node: start it once"),
        (2, STEP, "launch.nodes=2, but this command has been started on 4"),
        (2, {}, "launch.nodes=2, and this command runs on this machine alone"),
        (2, {"SLURM_JOB_ID": "1"}, "by srun --nodes=2"),
        (0, {"SLURM_JOB_ID": "1", "SLURM_JOB_NUM_NODES": "3"}, "This job has 3 nodes"),
    ],
)
def test_what_does_not_fit_says_what_to_do(asked: int, env: dict[str, str], said: str) -> None:
    with pytest.raises(InputError, match=said):
        given(LaunchConfig(nodes=asked), env)


def test_a_check_plans_for_the_nodes_of_its_job() -> None:
    assert planned(LaunchConfig(), {"SLURM_JOB_NUM_NODES": "3"}) == 3
    assert planned(LaunchConfig(nodes=8), {"SLURM_JOB_NUM_NODES": "3"}) == 8
    assert planned(LaunchConfig(), TORCHRUN) == 2
    assert planned(LaunchConfig(), {}) == 1


def test_how_the_same_is_started_again() -> None:
    command = "megatron-rl train runs/mine/config.yaml run.resume=auto"
    assert ALONE.again(command) == command
    assert given(LaunchConfig(), STEP).again(command) == (
        "sbatch --nodes=4 slurm/train.sbatch runs/mine/config.yaml run.resume=auto"
    )
    assert given(LaunchConfig(), TORCHRUN).again(command).startswith("torchrun --nnodes 2 --nproc-per-node 1 …")


SGLANG = RolloutConfig(engine="sglang", engines=4)


def spread(nodes: int, engines: int = 2, urls: str = "") -> RolloutConfig:
    return RolloutConfig(
        engine="sglang", engines=engines, sglang=SGLangConfig(nodes=nodes, tensor_parallel=4, urls=urls)
    )


@pytest.mark.parametrize(
    ("launch", "rollout", "ranks", "said"),
    [
        ((2, 2), SGLANG, 8, "launch.rollout_nodes=2 of 2 nodes leave none to train on"),
        ((3, 0), SGLANG, 8, "8 trainer ranks .* cannot be dealt out over 3 nodes: make them a multiple of 3"),
        ((4, 1), SGLANG, 8, "over 3 nodes"),
        ((4, 2), RolloutConfig(engine="sglang", engines=1), 8, "rollout.engines=1 leaves some of the 2 rollout nodes"),
        ((2, 1), RolloutConfig(engine="sglang", sglang=SGLangConfig(urls="http://a:1")), 8, "set one of them"),
        ((2, 1), RolloutConfig(engine="sglang", sglang=SGLangConfig(colocated=True)), 8, "colocated shares GPUs"),
        ((2, 0), RolloutConfig(engine="sglang", sglang=SGLangConfig(swap="disk")), 8, "swap=disk needs all trainer"),
        ((2, 0), RolloutConfig(engine="sglang", sglang=SGLangConfig(transport="cuda_ipc")), 8, "set it to auto"),
        ((4, 3), spread(2), 8, "sglang.nodes=2 nodes for an engine, and 3 nodes can have .* a multiple of 2"),
        ((1, 0), spread(2), 8, "1 node can have engines: make them a multiple of 2"),
        ((5, 4), spread(2, engines=1), 8, "leaves some of the 4 rollout nodes .* nothing to do: start 2 at least"),
        ((2, 0), spread(2, urls="http://a:1"), 8, "rollout.sglang.nodes=2 is of engines that are started"),
    ],
)
def test_placements_that_cannot_be(
    launch: tuple[int, int], rollout: RolloutConfig, ranks: int, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SLURM_JOB_NUM_NODES", raising=False)
    (found,) = check_launch(LaunchConfig(*launch), rollout, ranks, True)
    assert re.search(said, found), found


def test_placements_that_can_be() -> None:
    for launch, ranks in (((4, 0), 8), ((4, 2), 16), ((1, 0), 3)):
        assert check_launch(LaunchConfig(*launch), SGLANG, ranks, True) == []
    assert check_launch(LaunchConfig(6, 4), spread(2), 8, True) == []
    assert check_launch(LaunchConfig(6, 3), replace(spread(2), engine="embedded", engines=3), 9, True) == []
    (said,) = check_launch(LaunchConfig(4, 2), SGLANG, 8, False)
    assert "generates nothing" in said
