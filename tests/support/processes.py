"""The ends of processes."""

from __future__ import annotations

import os
import select

GONE_WITHIN_S = 30


def gone(pid: int) -> bool:
    """Whether a process ends within GONE_WITHIN_S; waits for its end, not for time to pass."""
    try:
        handle = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    with os.fdopen(handle):
        return bool(select.select([handle], [], [], GONE_WITHIN_S)[0])
