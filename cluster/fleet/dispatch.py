"""Hands items to leaders: which leader gets the next item."""

from __future__ import annotations

from collections.abc import Iterable

from cluster.fleet.items import Items
from cluster.fleet.leaders import Leader
from cluster.fleet.supervisor import Supervisor


def hand_out(items: Items, supervisor: Supervisor) -> None:
    """Hands out items, in their order, while a leader has room for the next one."""
    while items:
        index, item, alone = items.next()
        leader = choose(supervisor.leaders, alone, supervisor.depth)
        if leader is None:
            return
        supervisor.assign(leader, index, item, alone)
        items.handed_out()


def choose(leaders: Iterable[Leader], alone: bool, depth: int) -> Leader | None:
    """The leader that gets the next item; None where none has room for it.

    An item that failed is better tried elsewhere than where it, or another, failed: hence the
    leader with the fewest failures in a row, and of these the one with the fewest items in flight.
    """
    free = [leader for leader in leaders if leader.has_room(alone, depth)]
    return min(free, key=lambda one: (one.failures, len(one.items)), default=None)
