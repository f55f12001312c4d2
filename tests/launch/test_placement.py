"""The ranks of a run and their environment."""

import socket

from megatron_rl.launch.placement import Placement, here


def test_all_ranks_are_on_this_machine_and_meet_at_a_port_that_is_held() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        placement = here(3, listener)
        port = listener.getsockname()[1]
    assert placement == Placement(("127.0.0.1",), 3, 0, ("127.0.0.1", port))
    assert list(placement.here) == [0, 1, 2]
    assert placement.environment(2) == {
        "RANK": "2",
        "LOCAL_RANK": "2",
        "WORLD_SIZE": "3",
        "LOCAL_WORLD_SIZE": "3",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }


def test_hosts_have_equal_shares_in_their_order() -> None:
    placements = [Placement(("a", "b"), 4, index, ("a", 1234)) for index in (0, 1)]
    assert [list(placement.here) for placement in placements] == [[0, 1], [2, 3]]
    found = placements[1].environment(3)
    assert (found["RANK"], found["LOCAL_RANK"], found["LOCAL_WORLD_SIZE"], found["WORLD_SIZE"]) == ("3", "1", "2", "4")
    assert (found["MASTER_ADDR"], found["MASTER_PORT"]) == ("a", "1234")
