"""Joins the requests of a leader's threads that can go through its gang together.

Each thread carries an item from stage to stage. Where items go into one forward, a thread waits
with its request until as many as a batch takes are there, or no more are on their way. Knows
nothing of what is done with them.
"""

from __future__ import annotations

import copy
import logging
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

log = logging.getLogger(__name__)

Together = Callable[[Sequence[Any]], Sequence[Any]]
"""Does several requests; returns for each its result, or the exception that it met."""

# Batches in a row that failed though each of their requests did not: more than a rank that was
# killed by chance. A batch that is too large for the memory fails every time.
TOO_MANY = 2


@dataclass(eq=False)
class _Waiting:
    """A request, until it is done.

    Attributes:
        key: requests of one key go together; None for one that goes alone.
        request: whatever it is.
        outcome: its result or its exception.
        done: whether there is one.
    """

    key: str | None
    request: Any
    outcome: Any = None
    done: bool = False


class Batches:
    """Where the threads of a leader meet. One batch is done at a time.

    Args:
        most: requests in a batch; 1 for all of them alone.
    """

    def __init__(self, most: int = 1) -> None:
        self.most = most
        self._changed = threading.Condition()
        self._coming: set[Place] = set()
        self._waiting: list[_Waiting] = []
        self._busy = False
        self._failures = 0

    def worked(self) -> None:
        """A batch was done whole."""
        self._failures = 0

    def failed_whole(self, size: int) -> None:
        """A batch failed of which each request went well alone; halves them where that goes on."""
        self._failures += 1
        if self._failures >= TOO_MANY:
            self.most, self._failures = max(1, size // 2), 0
            log.warning("batches of %d failed, %d are the most from now on", size, self.most)

    @contextmanager
    def place(self) -> Iterator[Place]:
        """A place for an item that is on its way: a batch that is not full waits for it."""
        place = Place(self)
        with self._changed:
            self._coming.add(place)
        try:
            yield place
        finally:
            self._left(place)

    def _left(self, place: Place) -> None:
        with self._changed:
            self._coming.discard(place)
            self._changed.notify_all()

    def _arrived(self, place: Place, one: _Waiting) -> None:
        """In one breath, so that no batch goes without it."""
        with self._changed:
            self._coming.discard(place)
            self._waiting.append(one)
            self._changed.notify_all()

    def _turn(self, one: _Waiting) -> list[_Waiting]:
        """Waits until a request is done, or its thread has a batch to do, which it returns."""
        with self._changed:
            while not one.done:
                members = [] if self._busy else self._next()
                if members:
                    self._busy = True
                    self._waiting = [other for other in self._waiting if other not in members]
                    return members
                self._changed.wait()
        return []

    def _next(self) -> list[_Waiting]:
        """A full batch, or where no more are on their way what there is with the oldest."""
        groups: dict[Any, list[_Waiting]] = {}
        for one in self._waiting:
            groups.setdefault(one if one.key is None else one.key, []).append(one)
        for key, members in groups.items():
            if isinstance(key, _Waiting) or len(members) >= self.most:
                return members[: self.most]
        return [] if self._coming or not groups else next(iter(groups.values()))

    def _do(self, members: Sequence[_Waiting], together: Together) -> None:
        outcomes: Sequence[Any] = ()
        try:
            outcomes = together([one.request for one in members])
        except BaseException as error:
            # One for each thread: an exception that is raised collects notes and a traceback.
            outcomes = [copy.copy(error) for _ in members]
        with self._changed:
            for one, outcome in zip(members, outcomes, strict=True):
                one.outcome, one.done = outcome, True
            self._busy = False
            self._changed.notify_all()


class Place:
    """An item's place in a batch."""

    def __init__(self, batches: Batches) -> None:
        self._batches = batches

    def run(self, key: str | None, request: Any, together: Together) -> Any:
        """Does a request, with others of its key or alone; returns its result.

        Args:
            key: what requests must have in common; None for one that goes alone.
            request: handed to `together`.
            together: does this request, or others that wait here; the same for all.

        Raises:
            Exception: what the request met.
        """
        one = _Waiting(key, request)
        self._batches._arrived(self, one)
        while members := self._batches._turn(one):
            self._batches._do(members, together)
        if isinstance(one.outcome, BaseException):
            raise one.outcome
        return one.outcome
