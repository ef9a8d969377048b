"""Decides whether an item is tried again or given up: after MAX_ATTEMPTS failed attempts.

Failures are counted in the store, whether a rank failed or the whole leader died, so no restart
and no second driver gives an item more attempts than the others.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

from cluster.fleet.gang import MAX_ATTEMPTS, GangTaskError, TryAgainError
from cluster.results.attempts import Attempts
from cluster.work.plan import WorkItem


class CountedWork(ABC):
    """A `Work` whose failed attempts are counted; subclasses say what an attempt is."""

    @property
    @abstractmethod
    def attempts(self) -> Attempts:
        """Where they are counted."""

    @abstractmethod
    def committed(self, item: WorkItem) -> Any | None:
        """The item's result, if there is one: another driver or a dead leader may have got it."""

    @abstractmethod
    def attempt(self, gang: Any, item: WorkItem, number: int) -> Any:
        """Attempt `number` at the item, from 1; commits and returns its result.

        Raises:
            GangTaskError: it failed, perhaps by the item's own fault, and counts.
            Exception: any other failure; it says nothing of the item and does not count.
        """

    @abstractmethod
    def give_up(self, gang: Any, item: WorkItem, reasons: Sequence[str]) -> Any:
        """Commits that the item failed for good, and why each time; returns its result."""

    def __call__(self, gang: Any, item: WorkItem) -> Any:
        """Does one item, or gives it up.

        Returns:
            The result that counts.

        Raises:
            TryAgainError: this attempt failed, and is counted.
            GangStartError: the gang's ranks do not start; the item stays open.
            NodeFaultError: the node is at fault; the item stays open.
            StoreError: the store failed; nothing is committed and the item stays open.
        """
        result = self.committed(item)
        if result is not None:
            return result
        reasons = self.attempts.failures(item)
        if len(reasons) >= MAX_ATTEMPTS:
            return self.give_up(gang, item, reasons)
        try:
            return self.attempt(gang, item, len(reasons) + 1)
        except GangTaskError as error:
            self.attempts.record(item, str(error))
            raise TryAgainError(str(error)) from error

    def lost(self, item: WorkItem, how: str) -> None:
        """Counts the attempt of a leader that died with the item; a `Lost`."""
        self.attempts.record(item, how)
