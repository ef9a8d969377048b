"""How long tasks have taken, and hence how long one may take before its gang counts as hung."""

from __future__ import annotations

import threading
from collections import deque

# Until anything is known of the machine: a 720p video on one GPU takes half an hour.
TASK_DEADLINE_S = 3600.0
# Tasks of one size differ by the load of the machine, and not by more than this.
PATIENCE = 5.0
# Small tasks are at the mercy of a busy machine; below this a hang costs little.
FLOOR_S = 60.0
REMEMBERED = 20


class Pace:
    """Sizes and durations of the last tasks that succeeded. Threads may share it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._known: deque[tuple[float, float]] = deque(maxlen=REMEMBERED)

    @property
    def known(self) -> bool:
        """Whether a deadline would be more than a guess."""
        return bool(self._known)

    def observe(self, size: float, seconds: float) -> None:
        """Remembers a task that succeeded.

        Args:
            size: of the task, in a unit of the caller's.
            seconds: how long it took.
        """
        with self._lock:
            self._known.append((size, seconds))

    def deadline_s(self, size: float) -> float:
        """PATIENCE times the slowest task remembered that was no smaller, at least FLOOR_S.

        Work grows faster than size does (attention with its square), so nothing is concluded from
        smaller tasks: where all were smaller, the deadline is TASK_DEADLINE_S.
        """
        with self._lock:
            slowest = max(
                (seconds for known, seconds in self._known if known >= size), default=None
            )
        return TASK_DEADLINE_S if slowest is None else max(FLOOR_S, PATIENCE * slowest)
