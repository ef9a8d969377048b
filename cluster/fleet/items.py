"""The items that no leader has, and what has happened to each so far."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from cluster.fleet.gang import MAX_ATTEMPTS, GangTaskError

Lost = Callable[[Any, str], None]
"""Told of an item whose leader died with it alone, and how, before it is handed out again."""


@dataclass(frozen=True)
class Done:
    """An item's result."""

    index: int
    result: Any


@dataclass(frozen=True)
class Returned:
    """An item that came back without a result.

    Attributes:
        index: of the item.
        reason: why.
        alone: its leader died with it, so it is handed out alone from here on.
        blamed: and with no other, so that this counts as a failed attempt.
        fault: of its node, which is why it moves to another.
    """

    index: int
    reason: str
    alone: bool = False
    blamed: bool = False
    fault: Exception | None = None


class Items:
    """The items of a job that wait for a leader, the next one first."""

    def __init__(self, items: Sequence[Any], lost: Lost) -> None:
        self._items, self._lost = items, lost
        self._waiting = deque(range(len(items)))
        self._alone: set[int] = set()
        self._deaths: Counter[int] = Counter()
        self._moves: Counter[int] = Counter()

    def __bool__(self) -> bool:
        return bool(self._waiting)

    def next(self) -> tuple[int, Any, bool]:
        """The next item: its index, the item, and whether it must be alone on its leader."""
        index = self._waiting[0]
        return index, self._items[index], index in self._alone

    def handed_out(self) -> None:
        """The next item is in flight."""
        self._waiting.popleft()

    def takes_back(self, returned: Returned) -> None:
        """An item waits again, before all others.

        Raises:
            GangTaskError: its leader died with it alone, more often than any job counts.
            Exception: the fault of its node, where it met one on node after node.
        """
        index = returned.index
        self._waiting.appendleft(index)
        if returned.alone:
            self._alone.add(index)
        if returned.fault is not None:
            self._moves[index] += 1
            if self._moves[index] == MAX_ATTEMPTS:
                raise returned.fault
        if returned.blamed:
            self._deaths[index] += 1
            self._lost(self._items[index], returned.reason)
            # `lost` may have counted it in the store, so that the next leader gives the item up.
            if self._deaths[index] > MAX_ATTEMPTS:
                raise GangTaskError(f"an item's leader died every time: {returned.reason}")
