"""Finds the processes of a job, to kill them, and to see that none is left."""

from __future__ import annotations

import os
import select
import signal
from collections.abc import Iterable
from contextlib import suppress

import psutil

LEADER = "ray::LeaderActor"
# The processes that ranks are forked from, and hence they too: the node's, of which leaders have
# forks, and multiprocessing's own, where a leader has it alone.
NODES, OWN = "cluster.fleet.forkserver", "multiprocessing.forkserver"
GONE_WITHIN_S = 60


def owner(address: tuple[str, int]) -> int | None:
    """The process at this end of a TCP connection, or None where it has gone."""
    for connection in psutil.net_connections("tcp"):
        if connection.laddr and tuple(connection.laddr) == address:
            return connection.pid
    return None


def leaders(mark: str) -> list[int]:
    """The leaders of gangs, idle and busy, among the processes that have `mark`."""
    return [pid for pid in marked(mark) if _title(pid).startswith(LEADER)]


def ranks(mark: str) -> list[int]:
    """The ranks of all gangs that have a leader."""
    return [pid for pid in marked(mark) if _is_rank(pid)]


def family(mark: str) -> list[int]:
    """Leaders, what their ranks are forked from, and ranks, also those without a leader."""
    return leaders(mark) + [
        pid for pid in marked(mark) if NODES in _title(pid) or OWN in _title(pid)
    ]


def marked(mark: str) -> list[int]:
    """The processes whose environment has the variable `mark`, as children inherit it."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error, OSError):
            if mark in process.environ() and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process.pid)
    return found


def send(pid: int, what: signal.Signals) -> bool:
    """Sends a signal; False where the process has gone already."""
    try:
        os.kill(pid, what)
    except ProcessLookupError:
        return False
    return True


def left_over(pids: Iterable[int], within_s: float = GONE_WITHIN_S) -> list[int]:
    """Those processes that have not ended within the time; waits for their ends, not longer."""
    return [pid for pid in pids if not _ends(pid, within_s)]


def _is_rank(pid: int) -> bool:
    parents = _parent(pid), _parent(_parent(pid))
    if OWN in _title(pid):
        return OWN in _title(parents[0])
    return all(NODES in _title(one) for one in (pid, *parents))


def _ends(pid: int, within_s: float) -> bool:
    try:
        handle = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    with os.fdopen(handle):
        return bool(select.select([handle], [], [], within_s)[0])


def _parent(pid: int) -> int:
    try:
        return psutil.Process(pid).ppid()
    except psutil.Error:
        return 0


def _title(pid: int) -> str:
    try:
        return " ".join(psutil.Process(pid).cmdline())
    except psutil.Error:
        return ""
