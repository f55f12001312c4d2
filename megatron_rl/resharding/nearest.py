"""Which of the ranks that hold the same weights read them out for a destination: near ones, and no more than help."""

from collections import defaultdict
from dataclasses import dataclass

from megatron_rl.resharding.layout import Layout
from megatron_rl.resharding.plan import Plan


@dataclass(frozen=True)
class Nearness:
    """Where the source ranks run, and where a destination's do: ``machine.place()`` of each."""

    places: tuple[str, ...] = ()  # by source rank; empty: not known
    destinations: tuple[str, ...] = ()  # machines that the destination is on
    workers: int = 1  # ranks of the destination
    number: int = 0  # of the destination, from 0: several take turns over the replicas


def readers(source: Layout, near: Nearness) -> tuple[int, ...]:
    """The source ranks that read out for the destination, ascending: together they hold every shard.

    Of the ranks that hold a shard those at the destination's places come first. There are at least as many readers as
    the destination has workers, where there are so many, so that all can receive at a time; all others need no
    connection to it. Destination n takes the n-th of equal replicas, n + 1 the next.
    """
    holders: dict[int, list[int]] = defaultdict(list)  # of each shard, which replicas share
    for rank, shard in enumerate(source.ranks):
        holders[id(shard)].append(rank)
    each = -(-near.workers // len(holders))
    chosen = []
    for ranks in holders.values():
        close = [rank for rank in ranks if near.places and near.places[rank] in near.destinations] or ranks
        first = near.number * each
        chosen += [close[(first + i) % len(close)] for i in range(min(each, len(close)))]
    return tuple(sorted(chosen))


def read_by(plan: Plan, source: Layout, ranks: tuple[int, ...]) -> Plan:
    """The plan, each of its copies read out by one of ``ranks``, which hold every shard.

    The copies are the same boxes in the same order, so the owners' hashes of ``plan`` hold for them. Of several ranks
    that hold a shard the one with the least to send so far takes the next copy.
    """
    holding: dict[int, list[int]] = defaultdict(list)
    for rank in ranks:
        holding[id(source.ranks[rank])].append(rank)
    sent = dict.fromkeys(ranks, 0)
    copies = []
    for c in plan.copies:
        rank = min(holding[id(source.ranks[c.source_rank])], key=sent.__getitem__)
        sent[rank] += c.elements
        copies.append(c if rank == c.source_rank else c._replace(source_rank=rank))
    return Plan(plan.tensors, plan.sources, plan.destinations, tuple(copies), plan.unused)
