"""Traffic and predictions of plans whose numbers can be worked out by hand."""

import pytest

from megatron_rl.resharding.layout import Layout, Segment, Shard, TensorSpec
from megatron_rl.resharding.plan import make_plan
from megatron_rl.resharding.report import FABRICS, Fabric, predict, size, traffic

WEIGHT = Segment("w", (0, 0), (1000, 1000), "w", 0, (1000, 1))
BIAS = Segment("b", (0,), (500,), "b", 0, (1,))
SPECS = {"w": TensorSpec((1000, 1000)), "b": TensorSpec((500,), dtype="float32")}
WHOLE = Shard({"w": (1000, 1000), "b": (500,)}, (WEIGHT, BIAS))
FABRIC = Fabric("test", (1e9, 1e8, 1e7), "made up")


def test_bytes_over_each_kind_of_link() -> None:
    layout = Layout(SPECS, (WHOLE,))
    engines = Layout(SPECS, (WHOLE,) * 4)
    places = [(0, 0), (0, 1), (1, 0), (2, 0)]
    plan = make_plan(layout, engines, source_places=[(0, 0)], destination_places=places)
    moved = traffic(plan, [(0, 0)], places)
    each = 2 * 1_000_000 + 4 * 500
    assert moved.links == {"same GPU": each, "same host": each, "across hosts": 2 * each}
    assert moved.bytes == 4 * each and moved.into_busiest == (0, each) and moved.out_of_busiest == (0, 4 * each)
    assert moved.received[1] == (0, each, 0) and moved.sent == {0: (each, each, 2 * each)}
    said = predict(moved, FABRIC)
    assert said.seconds == pytest.approx(2 * each / 1e7)  # one port sends to two other hosts
    assert said.limit == pytest.approx(each / 1e7)
    assert said.busiest == "across hosts, out of trainer rank 0"


def test_a_receiver_can_be_the_busiest() -> None:
    halves = [
        Shard({"w": (500, 1000)}, (Segment("w", (500 * i, 0), (500, 1000), "w", 0, (1000, 1)),)) for i in range(2)
    ]
    specs = {"w": SPECS["w"]}
    source = Layout(specs, tuple(halves))
    engine = Layout(specs, (Shard({"w": (1000, 1000)}, (WEIGHT,)),))
    moved = traffic(make_plan(source, engine), [(0, 0), (0, 1)], [(0, 2)], itemsize=4)
    said = predict(moved, FABRIC)
    assert said.seconds == said.limit == pytest.approx(4e6 / 1e8)
    assert said.busiest == "same host, into engine worker 0"
    assert all(f.rates == tuple(sorted(f.rates, reverse=True)) and f.source for f in FABRICS)


def test_sizes_are_readable() -> None:
    assert [size(n) for n in (0, 999, 1500, 2.5e6, 43.94e9, 1.406e12)] == [
        "0 B",
        "999 B",
        "1.5 kB",
        "2.5 MB",
        "43.9 GB",
        "1.41 TB",
    ]
