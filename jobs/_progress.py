"""Progress with an ETA: one live line in a terminal, a plain line now and then in a job's log."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Iterator
from typing import TextIO, TypeVar

LOG_EVERY_S = 30.0

T = TypeVar("T")


def progress(
    results: Iterable[T],
    total: int,
    what: str,
    stream: TextIO | None = None,
    first: str = ", starting ranks",
    also: Callable[[], str] = str,
) -> Iterator[T]:
    """Passes `results` on and reports how many of `total` have come, how fast, how long still.

    Args:
        results: what is being waited for.
        total: how many there will be.
        what: 'videos', for the line.
        stream: where to; default standard error.
        first: what is being done until the first of them comes, for the line.
        also: what else there is to say, for the end of the line.
    """
    if total == 0:
        return
    stream = stream or sys.stderr
    live = stream.isatty()
    started = time.monotonic()
    reported = started if live else float("-inf")
    print(f"{what}: 0/{total}{first}", end="" if live else "\n", file=stream, flush=True)
    first_at = started
    for done, result in enumerate(results, start=1):
        yield result
        now = time.monotonic()
        first_at = now if done == 1 else first_at
        if live or done == total or now - reported >= LOG_EVERY_S:
            # The first result took the ranks' start too, which says nothing of the others.
            each = (now - first_at) / (done - 1) if done > 1 else now - started
            within = "" if done > 1 else "under "
            left = f"ETA {within}{duration(each * (total - done))}" if done < total else "done"
            elapsed = duration(now - started)
            line = f"{what}: {done}/{total}, {each:.2f} s each, {elapsed} so far, {left}{also()}"
            print(f"\r\x1b[K{line}" if live else line, end="", file=stream)
            print(end="" if live and done < total else "\n", file=stream, flush=True)
            reported = now


def duration(seconds: float) -> str:
    """Seconds as people say them: '48 s', '12 min 5 s', '3 h 20 min'."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"
