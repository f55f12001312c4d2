"""Which of several ranks that hold the same weights reads them out: one on the destination's machine, where it can."""

from collections import defaultdict
from dataclasses import dataclass

from megatron_rl.resharding.layout import Layout
from megatron_rl.resharding.plan import Plan


@dataclass(frozen=True)
class Nearness:
    """Where the source ranks and the destination's run: ``machine.place()`` of each."""

    places: tuple[str, ...] = ()  # by source rank; empty: not known
    destinations: tuple[str, ...] = ()  # by destination rank; empty: not known


def brought_near(plan: Plan, source: Layout, near: Nearness) -> Plan:
    """The plan, each of its copies read out by a rank at its destination's place where one holds the same shard.

    The copies are the same boxes in the same order, so the owners' hashes of ``plan`` hold for them. Of several near
    ranks the one with the least to send so far takes the next copy.
    """
    if not set(near.destinations) & set(near.places):
        return plan
    replicas: dict[tuple[str, int], list[int]] = defaultdict(list)  # ranks by place and shard, which replicas share
    for rank, shard in enumerate(source.ranks):
        replicas[near.places[rank], id(shard)].append(rank)
    sent = [0] * len(source.ranks)
    copies = []
    for c in plan.copies:
        here = replicas.get((near.destinations[c.destination_rank], id(source.ranks[c.source_rank])), [])
        rank = min(here, key=sent.__getitem__, default=c.source_rank)
        sent[rank] += c.elements
        copies.append(c if rank == c.source_rank else c._replace(source_rank=rank))
    return Plan(plan.tensors, plan.sources, plan.destinations, tuple(copies), plan.unused)
