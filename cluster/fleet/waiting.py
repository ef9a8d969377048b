"""Waiting for room on the cluster is not working: says what is waited for, and ends it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from datetime import datetime, timedelta

from cluster.fleet.errors import FleetError
from cluster.fleet.leaders import Leader, State
from cluster.fleet.placement import Placement
from cluster.fleet.runtime_environment import trial

# A cluster with room places a leader within seconds.
SAID_AFTER_S = 15.0
SAID_EVERY_S = 300.0


class Waiting:
    """Looks whether every leader waits for room, and since when.

    Args:
        where: the gangs may be.
        wait_s: how long to wait; None for ever.
        say: tells people.
    """

    def __init__(self, where: Placement, wait_s: float | None, say: Callable[[str], None]) -> None:
        self._where, self._wait_s, self._say = where, wait_s, say
        self._said_at = float("-inf")
        self._tried = False

    def look(self, leaders: Iterable[Leader]) -> None:
        """Says what is waited for, when it is time to.

        Raises:
            FleetError: `wait_s` has passed, or the job's runtime environment starts no Python.
        """
        leaders = list(leaders)
        if not leaders or any(leader.state is not State.PLACING for leader in leaders):
            return
        now = time.monotonic()
        waited = now - min(leader.since for leader in leaders)
        if self._wait_s is not None and waited >= self._wait_s:
            raise FleetError(
                f"no gang could start within the {self._wait_s / 60:g} minutes of --wait: "
                f"{self._sentence(waited)}"
            )
        if waited >= SAID_AFTER_S and not self._tried and self._where.has_room(self._where.free()):
            self._tried = True
            if (refusal := trial()) is not None:
                raise refusal
        if waited >= SAID_AFTER_S and now - self._said_at >= SAID_EVERY_S:
            self._said_at = now
            self._say(f"waiting, not working: {self._sentence(waited)}")

    def _sentence(self, waited: float) -> str:
        since = datetime.now() - timedelta(seconds=waited)
        free = self._where.free()
        if self._where.has_room(free):
            why = (
                "although there is room Ray starts no process: its runtime environment may take "
                "long or not start, see raylet.out in the session's logs on the nodes"
            )
        elif not free.total:
            why = (
                "an autoscaler may start a node, if its configuration has such a kind; "
                "--device cpu does without"
            )
        else:
            why = (
                "other jobs hold the rest, or this one's own --entrypoint-num-cpus or "
                "--entrypoint-num-gpus"
            )
        return f"since {since:%H:%M} a gang needs {self._where.need()}, and {free}; {why}"
