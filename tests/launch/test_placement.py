"""What is on which host, and the environment of ranks."""

import pytest

from megatron_rl.launch.placement import Placement


def test_hosts_have_equal_shares_in_their_order() -> None:
    placement = Placement(("a", "b"), ranks=4, engines=2)
    assert [list(placement.ranks_on(host)) for host in (0, 1)] == [[0, 1], [2, 3]]
    assert [list(placement.engines_on(host)) for host in (0, 1)] == [[0], [1]]
    assert placement.environment(3, 1234) == {
        "RANK": "3",
        "LOCAL_RANK": "1",
        "WORLD_SIZE": "4",
        "LOCAL_WORLD_SIZE": "2",
        "MASTER_ADDR": "a",
        "MASTER_PORT": "1234",
        "TORCHELASTIC_USE_AGENT_STORE": "False",
    }


def test_the_last_hosts_only_generate() -> None:
    placement = Placement(("a", "b", "c", "d"), ranks=16, engines=5, rollout=2)
    assert [len(placement.ranks_on(host)) for host in range(4)] == [8, 8, 0, 0]
    assert [list(placement.engines_on(host)) for host in range(4)] == [[], [], [0, 1, 2], [3, 4]]
    assert [placement.host_of_engine(engine) for engine in range(5)] == [2, 2, 2, 3, 3]


@pytest.mark.parametrize("hosts", [1, 2, 3, 7])
@pytest.mark.parametrize("engines", [0, 1, 2, 5, 64])
def test_every_engine_has_one_host(hosts: int, engines: int) -> None:
    placement = Placement(tuple("abcdefg"[:hosts]), ranks=hosts, engines=engines)
    dealt = [engine for host in range(hosts) for engine in placement.engines_on(host)]
    assert dealt == list(range(engines))
    sizes = [len(placement.engines_on(host)) for host in range(hosts)]
    assert max(sizes) - min(sizes) <= 1


def test_engines_on_several_hosts_each() -> None:
    placement = Placement(tuple("abcde"), ranks=8, engines=3, rollout=4, span=2)
    assert [list(placement.engines_on(host)) for host in range(5)] == [[], [0, 1], [0, 1], [2], [2]]
    assert [placement.host_of_engine(engine) for engine in range(3)] == [1, 1, 3]
    everywhere = Placement(tuple("abcd"), ranks=4, engines=1, span=4)
    assert [list(everywhere.engines_on(host)) for host in range(4)] == [[0]] * 4
