"""The driver's loop: hands items out to gangs over one Ray cluster, and yields their results.

One Ray actor leads each gang; its ranks are its child processes. A leader has one item in flight,
or, where there are encoders beside its gang, as many as there are stages to keep busy. So a leader
that dies costs those and no others, and a driver that stops has nothing queued. Knows nothing of
what is done to an item: that is the job's `Work`.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import ExitStack, suppress
from typing import Any

from cluster.fleet.actor import Work
from cluster.fleet.beginning import begin
from cluster.fleet.connection import connect
from cluster.fleet.dispatch import hand_out
from cluster.fleet.draining import Drain, Stopped, draining
from cluster.fleet.errors import FleetError
from cluster.fleet.gangs import Gangs
from cluster.fleet.items import Done, Items, Lost
from cluster.fleet.placement import Placement, placement
from cluster.fleet.shared_output import SharedOutput
from cluster.fleet.supervisor import Supervisor
from cluster.fleet.waiting import Waiting
from cluster.store import Store

# How often it is looked at whether nodes have come or gone.
NODES_EVERY_S = 5.0

Staffed = Callable[[int], None]
"""Told of how many gangs have started."""


def warn(sentence: str) -> None:
    """Tells people, on a line of its own beside the line of progress."""
    print(f"\n{sentence}", file=sys.stderr, flush=True)


def run(
    work: Work,
    items: Sequence[Any],
    gangs: Gangs,
    lost: Lost = lambda item, how: None,
    staffed: Staffed = lambda gangs: None,
    store: Store | None = None,
    say: Callable[[str], None] = warn,
) -> Generator[Any, None, None]:
    """Does all items with as many gangs as asked for; yields results as they come, unordered.

    On SIGTERM nothing more is handed out, what the gangs finish within the grace is still
    yielded, and then `Stopped` is raised.

    Args:
        work: what to do with each item.
        items: anything that pickles.
        gangs: which gangs.
        lost: told of each item whose leader died with it. Where there were several, none is blamed,
            but each is handed out alone from there on.
        staffed: told, whenever it is looked at, how many gangs are ready or at work.
        store: the output, which every node that gets a gang must share with this process.
        say: told in a sentence of a node that is left out, and of waiting for room.

    Raises:
        FleetError: the cluster has no room for one gang, no node shares the output, or no gang
            could start within `gangs.wait_s`.
        GangError: the ranks of a gang do not start, or an item's leader died again and again.
        StoreError: the store fails on every node.
        Stopped: the driver was asked to stop before all was done.
        Exception: whatever an item's work raised.
    """
    if not items:
        return
    begin(gangs)
    where = placement(gangs.size, gangs.on_gpus)
    with ExitStack() as stack:
        shared = None if store is None else stack.enter_context(SharedOutput(store).offered())
        supervisor = stack.enter_context(Supervisor(work, gangs, where, shared, say))
        drain = stack.enter_context(draining())
        size = _Size(gangs, where, len(items))
        waiting = Waiting(where, gangs.wait_s, say)
        yield from _loop(Items(items, lost), supervisor, size, waiting, drain, staffed)


def _loop(
    items: Items,
    supervisor: Supervisor,
    size: _Size,
    waiting: Waiting,
    drain: Drain,
    staffed: Staffed,
) -> Generator[Any, None, None]:
    for _ in range(size.least):
        supervisor.hire()
    results: list[Any] = []
    while items or supervisor.working or results:
        if not drain.requested:
            hand_out(items, supervisor)
        if not items or drain.requested:
            supervisor.dismiss_idle()
        elif not supervisor.starting and supervisor.hired < size.most(supervisor):
            supervisor.hire()
        if items or supervisor.working:
            staffed(supervisor.staffed)
        # Only now, so that no gang waits for what the job does with a result.
        yield from results
        results.clear()
        unfinished = bool(items) or supervisor.working
        if drain.requested and unfinished and (drain.over or not supervisor.working):
            raise Stopped
        for outcome in supervisor.outcomes():
            if isinstance(outcome, Done):
                results.append(outcome.result)
            else:
                items.takes_back(outcome)
        waiting.look(supervisor.leaders)


class _Size:
    """How many gangs to begin with, and how many to have at most, as nodes come and go."""

    def __init__(self, gangs: Gangs, where: Placement, items: int) -> None:
        self._asked, self._where, self._items = gangs.most, where, items
        self._room = self._looked = 0.0
        self.least = min(gangs.least or max(1, sum(where.gangs_by_node().values())), items)

    def most(self, supervisor: Supervisor) -> int:
        """How many gangs there may be now."""
        now = time.monotonic()
        if self._asked is None and now - self._looked >= NODES_EVERY_S:
            self._looked = now
            room = self._where.gangs_by_node()
            self._room = sum(n for node, n in room.items() if node not in supervisor.nodes.excluded)
        return min(self._asked or max(1, int(self._room)), self._items)


def fits(gang_size: int) -> bool:
    """Whether the cluster has room for a gang of this size now; joins it, or starts one."""
    connect()
    with suppress(FleetError):
        placement(gang_size)
        return True
    return False
