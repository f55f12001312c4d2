"""Which sequences go through the model together, and on which data-parallel rank. Pure Python, deterministic."""

from bisect import bisect_left, insort
from collections.abc import Iterable, Sequence
from heapq import heapify, heappop, heappush
from operator import itemgetter

from megatron_rl.actor.rows import TrainingRow
from megatron_rl.errors import InputError


def assign(
    lengths: Sequence[int],
    ranks: int,
    max_tokens: int,
    *,
    multiple: int = 1,
    count_multiple: int = 1,
    packing: bool = True,
) -> list[list[list[int]]]:
    """Indices of the sequences of each micro-batch of each data-parallel rank: [rank][micro-batch][sequence].

    Every sequence appears once. A micro-batch holds at most max_tokens tokens, each length rounded up to
    ``multiple`` (context parallelism cuts a sequence into 2 x ranks equal parts). Every rank gets the same
    number of micro-batches, a multiple of ``count_multiple`` (interleaved pipelines need one); tokens are
    balanced over micro-batches and ranks. A micro-batch is empty only when there are fewer sequences than
    micro-batches. packing=False puts one sequence into each micro-batch.

    Raises InputError when a sequence is longer than max_tokens.
    """
    sizes = [-(-length // multiple) * multiple for length in lengths]
    longest = max(range(len(sizes)), key=sizes.__getitem__, default=None)
    if longest is not None and sizes[longest] > max_tokens:
        rounded = f" (a multiple of {multiple})" if multiple > 1 else ""
        raise InputError(
            f"Sequence {longest} of the batch is {lengths[longest]} tokens long, but actor.micro_batch_tokens is "
            f"{max_tokens}. Set actor.micro_batch_tokens to at least {sizes[longest]}{rounded} or shorten "
            "data.max_prompt_tokens or rollout.max_new_tokens."
        )
    bins = [[index] for index in range(len(sizes))]
    if packing:
        bins = _pack(sizes, max_tokens, ranks * count_multiple)
    bins += [[] for _ in range(-len(bins) % (ranks * count_multiple) if bins else ranks * count_multiple)]

    loads = [sum(sizes[index] for index in bin) for bin in bins]
    largest_first = sorted(range(len(bins)), key=lambda b: (-loads[b], bins[b]))
    rounds = [largest_first[i : i + ranks] for i in range(0, len(bins), ranks)]
    shares = partition([[(loads[b], [b]) for b in bins_of_round] for bins_of_round in rounds], ranks)
    return [[bins[b] for b in sorted(share, key=lambda b: (-loads[b], bins[b]))] for share in shares]


def group_by_prompt(
    prompts: Sequence[bytes], heads: Sequence[int], tails: Sequence[int], limit: int, units: Sequence[int] = ()
) -> list[list[int]]:
    """Sequences that start with one prompt, in groups of at most ``limit`` tokens: the prompt's once, the rest's each.

    Sequence i has ``heads[i]`` tokens that are ``prompts[i]`` and ``tails[i]`` others. One without a prompt, or longer
    than the limit, is a group of its own. Those of one of ``units`` (-1: of none) are a group whatever their size.
    """
    groups: list[list[int]] = []
    open_group: dict[bytes, tuple[list[int], int]] = {}
    of_unit: dict[int, list[int]] = {}
    for i, (prompt, head, tail) in enumerate(zip(prompts, heads, tails, strict=True)):
        if units and units[i] >= 0:
            if units[i] not in of_unit:
                groups.append(of_unit.setdefault(units[i], []))
            of_unit[units[i]].append(i)
            continue
        group, size = open_group.get(prompt, ([], 0))
        if not prompt or not group or size + tail > limit:
            groups.append(group := [])
            size = head
        group.append(i)
        open_group[prompt] = group, size + tail
    return groups


def _pack(sizes: list[int], max_tokens: int, step: int) -> list[list[int]]:
    """Balanced bins of at most max_tokens, as few as possible among the multiples of ``step``."""
    if not sizes:
        return []
    count = -(-_best_fit_decreasing(sizes, max_tokens) // step) * step
    while True:
        bins = partition([[(size, [index])] for index, size in enumerate(sizes)], count)
        if all(sum(sizes[index] for index in bin) <= max_tokens for bin in bins):
            return [sorted(bin) for bin in bins]
        count += step  # balanced bins overflow where lopsided ones would just fit; with one sequence each they cannot


def _best_fit_decreasing(sizes: list[int], capacity: int) -> int:
    """Number of bins that best-fit decreasing fills: at most 11/9 of the least possible, plus one."""
    free: list[int] = []  # ascending
    for size in sorted(sizes, reverse=True):
        place = bisect_left(free, size)
        insort(free, (free.pop(place) if place < len(free) else capacity) - size)
    return len(free)


def partition(states: list[list[tuple[int, list[int]]]], count: int) -> list[list[int]]:
    """Karmarkar and Karp's largest differencing method: ``count`` sets with nearly equal sums.

    states: partial partitions, each of at most ``count`` (sum, members). One item per state partitions freely;
    ``count`` items per state puts one item of each state into every set. The two states whose sums differ most
    are merged, the largest sum of one with the smallest of the other, until one is left.
    Returns the members of each set; sets beyond the number of items are empty.
    """
    heap = []
    for order, state in enumerate(states):
        state = sorted(state, key=itemgetter(0), reverse=True)
        heap.append((-_spread(state, count), order, state))
    heapify(heap)
    order = len(states)
    while len(heap) > 1:
        state = _merge(heappop(heap)[2], heappop(heap)[2], count)
        heappush(heap, (-_spread(state, count), order, state))
        order += 1
    final = heap[0][2] if heap else []
    return [members for _, members in final] + [[] for _ in range(count - len(final))]


def _spread(state: list[tuple[int, list[int]]], count: int) -> int:
    return state[0][0] - (state[-1][0] if len(state) == count else 0)


def _descending(part: tuple[int, list[int]]) -> int:
    return -part[0]


def _merge(
    first: list[tuple[int, list[int]]], second: list[tuple[int, list[int]]], count: int
) -> list[tuple[int, list[int]]]:
    """Sums are descending and empty sets are left out, so only the last sets of ``first`` meet sets of ``second``.

    The most frequent case, a single set, is put in its place in ``first``, without sorting.
    """
    overlap = max(0, len(first) + len(second) - count)
    if len(second) == 1:
        ((total, members),) = second
        if overlap:
            least, others = first.pop()
            total, members = least + total, others + members
        insort(first, (total, members), key=_descending)
        return first
    keep = len(first) - overlap
    merged = first[:keep] + second[: len(second) - overlap]
    for (sum_a, members_a), (sum_b, members_b) in zip(
        first[keep:], reversed(second[len(second) - overlap :]), strict=True
    ):
        merged.append((sum_a + sum_b, members_a + members_b))
    merged.sort(key=itemgetter(0), reverse=True)
    return merged


def spared(parts: Iterable[Iterable[Iterable[TrainingRow]]]) -> list[int]:
    """Where prompts are shared: of every one that another row of its micro-batch computes, its positions.

    ``parts``: a mini-batch's rows by rank and micro-batch.
    """
    found = []
    for rows in (batch for part in parts for batch in part):
        seen: set[bytes] = set()
        for row in rows:
            if (prompt := row.shared()) in seen:
                found.append(row.prompt)
            seen.add(prompt)
    return found
