"""Nodes that cannot hold a gang: which they are, and when none is left."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

from cluster.fleet import placement
from cluster.fleet.errors import FleetError
from cluster.fleet.gang import MAX_ATTEMPTS
from cluster.fleet.placement import Placement


class Nodes:
    """What the nodes have shown so far in this job.

    A node is excluded at once for a fault of its own (a full disk, an output that it does not
    share), and else after MAX_ATTEMPTS starts in a row that failed there. Where no gang has ever
    started anywhere, one failed start is enough: the fault may well be the model's, and what no
    node could do is not tried again on each.

    Attributes:
        excluded: ids of the nodes that get no more leaders.
        proven: some gang has started.
    """

    def __init__(self, where: Placement, say: Callable[[str], None]) -> None:
        self.excluded: set[str] = set()
        self.proven = False
        self._where, self._say = where, say
        self._failures: Counter[str] = Counter()

    def works(self, node: str) -> None:
        """A gang has started there."""
        self.proven = True
        self._failures.pop(node, None)
        self._failures.pop("", None)

    def at_fault(self, node: str, error: Exception) -> None:
        """The node cannot hold gangs. Raises the error when no other is left, or none is known."""
        if node in self.excluded:
            return
        if not node:  # nothing could be left out, and the next leader would fare no better
            raise error
        self.excluded.add(node)
        name = placement.node_name(node)
        if set(self._where.gangs_by_node()) - self.excluded:
            self._say(f"node {name} is left out from here on, and the others go on: {error}")
        elif isinstance(error, FleetError):
            raise FleetError(f"no node of the cluster can hold a gang; {name}: {error}")
        else:
            raise error

    def failed_start(self, node: str, error: Exception, died: bool) -> None:
        """A gang did not start there.

        Args:
            node: its id, or '' where it is not known.
            error: why.
            died: the leader died of it, which may be somebody's doing: it counts, and no more.

        Raises:
            Exception: the error, when no other node is left.
        """
        self._failures[node] += 1
        if self._failures[node] >= MAX_ATTEMPTS or not (self.proven or died):
            self.at_fault(node, error)
