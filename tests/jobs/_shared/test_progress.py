"""Progress in a job's log: plain lines, none lost, with an ETA."""

import fcntl
import io
import os
import struct
import termios
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import TextIO

import pytest

from cluster.fleet.draining import Stopped
from jobs._shared import progress as _progress
from jobs._shared.progress import Staffing, counted, duration, progress


class Listened(io.StringIO):
    """A log that tells when it has been given another line."""

    def __init__(self) -> None:
        super().__init__()
        self.lines = threading.Semaphore(0)

    def write(self, text: str) -> int:
        written = super().write(text)
        for _ in range(text.count("\n")):
            self.lines.release()
        return written


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_log_gets_a_first_and_a_last_line_and_not_one_for_each_result():
    log = io.StringIO()
    assert list(progress(range(100), 100, "videos", log)) == list(range(100))
    lines = log.getvalue().splitlines()
    assert lines[0] == "videos: 0/100"
    assert lines[1].startswith("videos: 1/100")
    assert lines[-1].startswith("videos: 100/100")
    assert lines[-1].endswith("done")
    assert len(lines) == 3
    assert "\r" not in log.getvalue()


def test_a_terminal_gets_one_line_that_changes():
    terminal = Terminal()
    list(progress(range(3), 3, "videos", terminal))
    text = terminal.getvalue()
    assert text.count("\n") == 1
    assert text.endswith("\n")
    assert text.count("\r") > 3
    assert text.rpartition("\r")[2].lstrip().startswith("videos: 3/3")


def in_a_terminal(columns: int, use: Callable[[TextIO], object]) -> str:
    """What a terminal so wide has been sent."""
    leader, follower = os.openpty()
    fcntl.ioctl(follower, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    with os.fdopen(follower, "w") as terminal:
        use(terminal)
    sent = b""
    with suppress(OSError):  # which says that all was read
        while data := os.read(leader, 10_000):
            sent += data
    os.close(leader)
    return sent.decode()


def test_in_a_narrow_terminal_the_line_that_changes_stays_one():
    also = ", 2 gangs, 1 failed"
    sent = in_a_terminal(
        30, lambda terminal: [*progress(range(3), 3, "videos", terminal, also=lambda: also)]
    )
    *changing, last = sent.removesuffix("\r\n").split("\r")
    assert max(len(line) for line in changing) <= 30
    assert last.endswith("done, 2 gangs, 1 failed")


def test_a_terminal_of_no_width_is_one_too():
    sent = in_a_terminal(0, lambda terminal: [*progress(range(3), 3, "videos", terminal)])
    assert "videos: 3/3" in sent


def test_a_log_gets_lines_while_nothing_comes(monkeypatch):
    monkeypatch.setattr(_progress, "LOG_EVERY_S", 0.01)
    log = Listened()

    def results():
        for _ in range(3):
            log.lines.acquire()  # the first line, and two more, and nothing has come
        yield 1

    assert list(progress(results(), 1, "videos", log, also=lambda: ", 2 gangs")) == [1]
    lines = log.getvalue().splitlines()
    assert len(lines) >= 4
    assert all(line.startswith("videos: 0/1, 2 gangs") for line in lines[:3])
    assert lines[-1].startswith("videos: 1/1")


def test_the_last_line_is_said_once_however_long_the_end_takes(monkeypatch):
    monkeypatch.setattr(_progress, "LOG_EVERY_S", 0.01)
    log = io.StringIO()

    def results():
        yield 1
        for thread in threading.enumerate():
            if thread.name == "progress":
                thread.join()  # nothing is left to be said

    assert list(progress(results(), 1, "videos", log)) == [1]
    assert log.getvalue().count("videos: 1/1") == 1


def test_an_error_has_a_line_of_its_own_in_a_terminal():
    terminal = Terminal()

    def results():
        yield 1
        raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"):
        list(progress(results(), 2, "videos", terminal))
    assert terminal.getvalue().endswith("\n")


def test_what_else_there_is_to_say_ends_the_line():
    log = io.StringIO()
    seen = []
    for _ in progress(range(2), 2, "videos", log, also=lambda: f", {len(seen)} failed"):
        seen.append(1)
    assert log.getvalue().splitlines()[-1].endswith("done, 2 failed")


def test_nothing_to_wait_for_is_nothing_to_say():
    log = io.StringIO()
    assert list(progress([], 0, "videos", log)) == []
    assert log.getvalue() == ""


def test_durations_read_as_people_say_them():
    said = [duration(seconds) for seconds in (0.4, 48, 725, 12000)]
    assert said == ["0 s", "48 s", "12 min 5 s", "3 h 20 min"]


def test_before_the_first_result_it_says_what_is_being_done():
    staffing = Staffing("fitting")
    said = [str(staffing)]
    for count in (0, 1, 2, 0):
        staffing.staffed(count)
        said.append(str(staffing))
    assert said == [
        *(", starting ranks", ", starting ranks"),
        *(", fitting on 1 gang", ", fitting on 2 gangs", ""),
    ]


@pytest.fixture
def clock(monkeypatch):
    """The time that progress sees, to be set."""
    now = [0.0]
    monkeypatch.setattr(_progress.time, "monotonic", lambda: now[0])
    return now


def test_the_time_ahead_is_never_said_to_be_none(clock):
    line = _progress._Line(3, "videos", io.StringIO(), str, 0.0)
    said = {}
    for moment, comes in ((10, True), (14, True), (15, False), (18, False), (40, False)):
        clock[0] = moment
        if comes:
            line.count()
        said[moment] = line._text()
    assert "ETA under 20 s" in said[10]  # the first took the start of the ranks too
    assert "4.00 s each, ETA 4 s" in said[14]
    assert "ETA 3 s" in said[15]
    assert "ETA 4 s" in said[18]
    assert "15.00 s each, ETA 15 s" in said[40]  # the rate as if the next came now


def test_after_the_first_result_a_time_that_has_passed_is_not_said(clock):
    line = _progress._Line(2, "videos", io.StringIO(), str, 0.0)
    clock[0] = 5.0
    line.count()
    assert "ETA under 5 s" in line._text()
    clock[0] = 20.0
    assert "ETA" not in line._text()


def test_what_is_done_at_once_is_done_without_a_word():
    log = io.StringIO()
    assert list(progress(range(3), 3, "parts", log, after_s=1000)) == [0, 1, 2]
    assert log.getvalue() == ""


@pytest.mark.parametrize("error", [Stopped, KeyboardInterrupt])
def test_who_stops_it_is_told_how_far_it_came(error):
    def results():
        yield from range(9)
        raise error

    with pytest.raises(error) as stopped:
        list(progress(results(), 30, "videos", io.StringIO()))
    assert stopped.value.__notes__ == ["9 of 30 videos done"]


def test_counts_are_in_the_singular_and_the_plural():
    said = [counted(1, "video"), counted(2, "video"), counted(2, "trajectory")]
    assert said == ["1 video", "2 videos", "2 trajectories"]
