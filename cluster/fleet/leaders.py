"""The leaders of a job as the driver sees them: one record each."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import Any


class State(Enum):
    """How far a leader has come. It only moves forward."""

    PLACING = auto()  # asked of Ray, and waits for room on a node
    STARTING = auto()  # on a node, which is tried; then its ranks start
    READY = auto()
    LEAVING = auto()  # gets no more items, and ends with the last it has
    DISCARDED = auto()  # of no more concern; another has its items


@dataclass(eq=False)
class Leader:
    """One leader.

    Attributes:
        actor: Ray's handle.
        state: how far it has come.
        since: when it came there, by `time.monotonic`.
        node: id of its node; '' while it has none.
        pid: its process id there.
        items: indices of the items in flight.
        lone: it has an item that must be alone, and gets no other.
        failures: attempts in a row that failed here.
        lost_several: it died with several items in flight, so that none of them is blamed.
        killed_for: why the driver killed it, if it did.
        beat: the heartbeat that it has not answered yet, if there is one.
        beat_at: when it was last asked for one.
    """

    actor: Any
    state: State = State.PLACING
    since: float = field(default_factory=time.monotonic)
    node: str = ""
    pid: int = 0
    items: set[int] = field(default_factory=set)
    lone: bool = False
    failures: int = 0
    lost_several: bool = False
    killed_for: str | None = None
    beat: Any = None
    beat_at: float = field(default_factory=time.monotonic)

    def enter(self, state: State) -> None:
        """Moves on to a state."""
        self.state, self.since = state, time.monotonic()

    @property
    def discarded(self) -> bool:
        """Whether others have its items, so that its answers count no more."""
        return self.state is State.DISCARDED

    @property
    def ready(self) -> bool:
        """Whether its gang has started."""
        return self.state in (State.READY, State.LEAVING)

    @property
    def idle(self) -> bool:
        """Whether it has a gang and nothing to do."""
        return self.ready and not self.items

    def has_room(self, alone: bool, depth: int) -> bool:
        """Whether it may get one more item.

        Args:
            alone: the item must be the only one in flight here.
            depth: items in flight at a leader, at most.
        """
        most = 0 if alone else depth - 1
        return self.state is State.READY and not self.lone and len(self.items) <= most

    def takes(self, index: int, alone: bool) -> None:
        """An item is handed to it."""
        self.items.add(index)
        self.lone = alone

    def gives_back(self, index: int) -> bool:
        """An item is no longer in flight; returns whether others were in flight beside it."""
        several = len(self.items) > 1
        self.items.discard(index)
        self.lone = False
        return several

    def leaves(self) -> None:
        """It gets no more items."""
        if self.state is State.READY:
            self.enter(State.LEAVING)
