"""Which leader gets the next item."""

import pytest

from cluster.fleet.dispatch import choose
from cluster.fleet.leaders import Leader, State

DEPTH = 4


def ready(*items: int, failures: int = 0, lone: bool = False) -> Leader:
    """A leader whose gang has started, with items in flight."""
    return Leader(None, State.READY, items=set(items), failures=failures, lone=lone)


def test_the_leader_with_the_fewest_items_in_flight_gets_the_next():
    leaders = [ready(1, 2), ready(3), ready(4, 5)]
    assert choose(leaders, False, DEPTH) is leaders[1]


def test_a_leader_without_failures_comes_before_an_idle_one_with_some():
    leaders = [ready(failures=1), ready(1, 2)]
    assert choose(leaders, False, DEPTH) is leaders[1]


def test_an_item_that_must_be_alone_waits_for_an_idle_leader():
    assert choose([ready(1)], True, DEPTH) is None
    leaders = [ready(1), ready()]
    assert choose(leaders, True, DEPTH) is leaders[1]


def test_a_leader_with_such_an_item_gets_no_other():
    assert choose([ready(1, lone=True)], False, DEPTH) is None


def test_a_full_leader_gets_no_more():
    assert choose([ready(1, 2, 3, 4)], False, DEPTH) is None


@pytest.mark.parametrize("state", [state for state in State if state is not State.READY])
def test_only_a_leader_whose_gang_has_started_and_stays_gets_items(state):
    assert choose([Leader(None, state)], False, DEPTH) is None
