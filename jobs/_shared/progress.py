"""Progress with an ETA: one live line in a terminal, a plain line every half minute in a log."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TextIO, TypeVar

from tqdm import tqdm

from cluster.fleet.draining import Stopped

LOG_EVERY_S = 30.0
LIVE_EVERY_S = 1.0
# What is usually done before anybody wonders.
QUIET_S = 2.0

T = TypeVar("T")


@dataclass
class Staffing:
    """How many gangs there are, as the fleet tells, and what that means for whoever waits.

    Attributes:
        doing: what gangs do, such as 'fitting'.
    """

    doing: str = "rendering"
    count: int | None = None
    _begun: bool = False

    def staffed(self, count: int) -> None:
        """Takes note of how many gangs are ready; the fleet's `Staffed`."""
        self._begun = self._begun or count > 0
        self.count = count

    def __str__(self) -> str:
        if not self.count:  # the last are dismissed, or others start
            return "" if self._begun else ", starting ranks"
        return f", {self.doing} on {counted(self.count, 'gang')}"


def progress(
    results: Iterable[T],
    total: int,
    what: str,
    stream: TextIO | None = None,
    also: Callable[[], str] = str,
    after_s: float = 0.0,
) -> Iterator[T]:
    """Passes `results` on and reports how many of `total` have come, how fast, how long still.

    Says so also while none comes: a video may take minutes, and silence would look like a hang.
    Where the wait is interrupted, the exception's note says how far it came.

    Args:
        results: what is being waited for.
        total: how many there will be.
        what: 'videos', for the line.
        stream: where to; default standard error.
        also: what else there is to say, for the end of the line.
        after_s: seconds that it may take without a word.
    """
    if total == 0:
        return
    line = _Line(total, what, stream or sys.stderr, also, after_s)
    try:
        with line:
            for result in results:
                yield result
                line.count()
    except (Stopped, KeyboardInterrupt) as error:
        error.add_note(f"{line.done} of {total} {what} done")
        raise


class _Line:
    """What is said of a wait: when a result comes, and by a thread every now and then."""

    def __init__(
        self, total: int, what: str, stream: TextIO, also: Callable[[], str], after_s: float
    ) -> None:
        self.done = 0
        self._total, self._what, self._also, self._stream = total, what, also, stream
        self._bar = None
        self._after_s = after_s
        if stream.isatty():
            self._bar = tqdm(
                desc=what,
                total=total,
                file=stream,
                leave=False,
                dynamic_ncols=True,
                miniters=total + 1,  # it is refreshed here
                bar_format="{desc}: {n_fmt}/{total_fmt} |{bar:10}|{postfix}",
                delay=1e-9,  # without a first line of its own
            )
        self._started = self._first_at = self._last_at = time.monotonic()
        self._turn = threading.Lock()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._repeat, name="progress", daemon=True)

    def __enter__(self) -> None:
        self.say()
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()
        if self._bar is not None:
            self._bar.close()
            if 0 < self.done < self._total:  # it was interrupted: the last line stays
                print(self._text(), file=self._stream, flush=True)

    def count(self) -> None:
        """One more has come."""
        with self._turn:
            self.done += 1
            self._last_at = time.monotonic()
            if self.done == 1:
                self._first_at = self._last_at
            if self.done == self._total:
                self._over.set()  # the last line is said once, however long the end takes
            if self._bar is not None or self.done in (1, self._total):
                self._print()

    def say(self) -> None:
        """Says how far it has come, unless all has been said."""
        with self._turn:
            if not self._over.is_set():
                self._print()

    def _print(self) -> None:
        if time.monotonic() - self._started < self._after_s:
            return
        if self._bar is None or self.done == self._total:
            if self._bar is not None:
                self._bar.close()
            print(self._text(), file=self._stream, flush=True)
        else:
            self._bar.n = self.done
            self._bar.set_postfix_str(self._pace().removeprefix(", "), refresh=False)
            self._bar.refresh()

    def _text(self) -> str:
        return f"{self._what}: {self.done}/{self._total}{self._pace()}"

    def _pace(self) -> str:
        now, also = time.monotonic(), self._also()
        elapsed = now - self._started
        so_far = f", {duration(elapsed)} so far" if elapsed >= 1 else ""
        if not self.done:
            return also + (so_far if elapsed >= LOG_EVERY_S else "")
        if self.done == self._total:
            each = f", {self._each():.2f} s each" if self.done > 1 else ""  # one is mostly start
            return f"{each}{so_far}, done{also}"
        return f"{self._eta(now)}{so_far}{also}"

    def _each(self) -> float:
        """Seconds a result; the first took the start of the ranks too, and counts only alone."""
        if self.done == 1:
            return self._last_at - self._started
        return (self._last_at - self._first_at) / (self.done - 1)

    def _eta(self, now: float) -> str:
        """The seconds a result, and what is still to come: never 0 while something is."""
        each, left, waited = self._each(), self._total - self.done, now - self._last_at
        if self.done == 1:  # the others are faster, by how much is not known
            ahead = each * left - waited
            return f", ETA under {duration(ahead)}" if ahead >= 1 else ""
        if waited >= each:  # it has become slower: as if the next came now
            each = (now - self._first_at) / self.done
            waited = 0.0
        return f", {each:.2f} s each, ETA {duration(max(1.0, each * left - waited))}"

    def _repeat(self) -> None:
        while not self._over.wait(LOG_EVERY_S if self._bar is None else LIVE_EVERY_S):
            self.say()


def counted(count: int, noun: str) -> str:
    """'1 video', '3 videos', '2 trajectories'."""
    many = f"{noun[:-1]}ies" if noun.endswith("y") else f"{noun}s"
    return f"{count} {noun if count == 1 else many}"


def duration(seconds: float) -> str:
    """Seconds as people say them: '48 s', '12 min 5 s', '3 h 20 min'."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"
