"""SIGTERM is heard once as a request, twice as an order."""

import os
import signal

import pytest

from cluster.fleet.draining import Stopped, draining, grace_s, stoppable


def test_a_first_sigterm_asks_and_a_second_ends_the_grace(monkeypatch):
    monkeypatch.setenv("RAY_JOB_STOP_WAIT_TIME_S", "1000")
    with draining() as drain:
        assert not drain.requested
        os.kill(os.getpid(), signal.SIGTERM)
        assert drain.requested
        assert not drain.over
        os.kill(os.getpid(), signal.SIGTERM)
        assert drain.over


def test_a_grace_that_leaves_no_time_is_over_at_once(monkeypatch):
    monkeypatch.setenv("RAY_JOB_STOP_WAIT_TIME_S", "0.5")
    with draining() as drain:
        os.kill(os.getpid(), signal.SIGTERM)
        assert drain.over


@pytest.mark.parametrize(("value", "seconds"), [("60", 60), ("soon", 3), ("-1", 0)])
def test_the_grace_is_that_of_ray_job_stop(monkeypatch, value, seconds):
    monkeypatch.setenv("RAY_JOB_STOP_WAIT_TIME_S", value)
    assert grace_s() == seconds


def test_where_nothing_is_in_flight_sigterm_stops_at_once_and_the_handler_goes():
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(Stopped), stoppable():
        os.kill(os.getpid(), signal.SIGTERM)
    assert signal.getsignal(signal.SIGTERM) == before
