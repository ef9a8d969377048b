"""Progress in a job's log: plain lines, none lost, with an ETA."""

import io
import threading

import pytest

from jobs._shared import progress as _progress
from jobs._shared.progress import duration, progress


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
    assert lines[0] == "videos: 0/100, starting ranks"
    assert "videos: 1/100" in lines[1]
    assert "ETA under" in lines[1]  # the first result took the start of the ranks too
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
    assert text.count("\r") == 4


def test_in_a_narrow_terminal_the_line_that_changes_stays_one(monkeypatch):
    monkeypatch.setenv("COLUMNS", "30")
    terminal = Terminal()
    list(progress(range(3), 3, "videos", terminal, also=lambda: ", 2 gangs, goodput 97%"))
    *changing, last = terminal.getvalue().split("\r\x1b[K")[1:]
    assert {len(line) for line in changing} == {29}
    assert last.endswith("done, 2 gangs, goodput 97%\n")


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
