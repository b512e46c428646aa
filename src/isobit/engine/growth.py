"""A cache that grows with what is asked for: how many blocks there shall be when requests arrive."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable, Sequence

from isobit.engine.blocks import BlockPool, blocks_for
from isobit.engine.request import Request
from isobit.errors import IsobitError
from isobit.shortage import shortages

Reserve = Callable[[int, int], int]  # of a runner


def make_room(
    pool: BlockPool, reserve: Reserve, arrived: Sequence[Request], others: Iterable[Request], sequences: int
) -> dict[int, IsobitError]:
    """A cache that grows has room for each of these requests, and for those that run beside it if there is memory.

    Args:
        pool: its blocks.
        reserve: gives it memory (:meth:`isobit.engine.flight.Runner.reserve`).
        arrived: the new requests; one or more.
        others: those that are there.
        sequences: that take part in a step at most.

    Returns:
        Why there is none, by the ids of requests that it lacks for.
    """
    needs = {one.id: blocks_for(one.longest, pool.size) for one in arrived}
    beside = heapq.nlargest(sequences, [*needs.values(), *(blocks_for(one.longest, pool.size) for one in others)])
    # The scheduler keeps a block free for each that runs when it takes in another.
    problem = _grow(pool, reserve, max(needs.values()), sum(beside) + len(beside) - 1)
    if problem is None:
        return {}
    return {id: why for id, need in needs.items() if (why := _grow(pool, reserve, need, need))}


def _grow(pool: BlockPool, reserve: Reserve, least: int, wanted: int) -> IsobitError | None:
    """So many blocks; or why there are not even ``least``."""
    if wanted <= pool.count:
        return None
    try:
        with shortages():
            pool.grow(max(pool.count, reserve(least, wanted)))
    except IsobitError as error:
        return None if least <= pool.count else error
    return None
