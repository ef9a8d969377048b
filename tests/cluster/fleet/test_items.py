"""What becomes of items that come back: who is blamed, and when the job ends."""

import pytest

from cluster.fleet.gang import MAX_ATTEMPTS, GangTaskError
from cluster.fleet.items import Items, Returned
from cluster.store import StoreError


@pytest.fixture
def lost() -> list[tuple[str, str]]:
    """What was told of lost items."""
    return []


@pytest.fixture
def items(lost) -> Items:
    """Three items."""
    return Items("abc", lambda item, how: lost.append((item, how)))


def take(items: Items) -> int:
    """Hands out the next item; returns its index."""
    index, _, _ = items.next()
    items.handed_out()
    return index


def test_an_item_that_comes_back_is_the_next(items):
    assert [take(items), take(items)] == [0, 1]
    items.takes_back(Returned(0, "a rank failed"))
    assert items.next() == (0, "a", False)


def test_an_item_whose_leader_died_with_several_is_handed_out_alone_and_not_blamed(items, lost):
    take(items)
    items.takes_back(Returned(0, "killed", alone=True))
    assert items.next() == (0, "a", True)
    assert lost == []


def test_an_item_that_is_blamed_is_told_and_ends_the_job_when_nothing_counts_it(items, lost):
    for _ in range(MAX_ATTEMPTS):
        items.takes_back(Returned(take(items), "killed", alone=True, blamed=True))
    assert lost == [("a", "killed")] * MAX_ATTEMPTS
    with pytest.raises(GangTaskError, match="an item's leader died every time: killed"):
        items.takes_back(Returned(take(items), "killed", alone=True, blamed=True))


def test_an_item_that_meets_a_fault_on_node_after_node_ends_the_job_with_it(items, lost):
    full = StoreError("no space left")
    for _ in range(MAX_ATTEMPTS - 1):
        items.takes_back(Returned(take(items), str(full), fault=full))
    with pytest.raises(StoreError, match="no space left"):
        items.takes_back(Returned(take(items), str(full), fault=full))
    assert lost == []
