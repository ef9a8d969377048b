"""Gangs over a real Ray cluster: every item once, whatever the number of gangs."""

import os
import signal

import pytest
import ray

from cluster import fleet
from cluster.gang import Gang, GangError
from cluster.store import StoreError
from tests.cluster import ranks


@pytest.fixture(scope="module")
def cluster():
    fleet.connect()
    yield
    ray.shutdown()


def identify(gang: Gang, item: int) -> tuple[int, int, int]:
    """The item, the leader that did it, and the size of its gang."""
    return item, os.getpid(), gang.run(ranks.who, None)[0][1]


def die_once(gang: Gang, item) -> int:
    """Kills its leader the first time that item 3 is tried."""
    number, folder = item
    mark = folder / "died"
    if number == 3 and not mark.exists():
        mark.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return number


def refuse(gang: Gang, item: int) -> None:
    """An item's work that raises."""
    raise ValueError("a bug")


@pytest.mark.usefixtures("cluster")
def test_every_item_is_done_once_by_gangs_of_the_asked_size():
    results = list(fleet.run(identify, range(9), fleet.Gangs(ranks.build, 2, 2, 2)))
    assert sorted(item for item, _, _ in results) == list(range(9))
    assert {size for _, _, size in results} == {2}
    assert 1 <= len({leader for _, leader, _ in results}) <= 2


@pytest.mark.usefixtures("cluster")
def test_a_leader_that_is_killed_loses_no_item(tmp_path):
    items = [(number, tmp_path) for number in range(6)]
    results = list(fleet.run(die_once, items, fleet.Gangs(ranks.build, 1, 1, 1)))
    assert (tmp_path / "died").exists()
    assert sorted(results) == list(range(6))


@pytest.mark.usefixtures("cluster")
def test_work_that_raises_ends_the_job():
    with pytest.raises(ValueError, match="a bug"):
        list(fleet.run(refuse, [1], fleet.Gangs(ranks.build, 1, 1, 1)))


@pytest.mark.usefixtures("cluster")
def test_ranks_that_cannot_start_end_the_job_with_their_reason():
    with pytest.raises(GangError, match="rank 0 failed: RuntimeError: no weights here"):
        list(fleet.run(identify, [1], fleet.Gangs(ranks.build_fails, 1, 1, 1)))


def look_for_a_variable() -> None:
    """What only the driver's environment has."""
    raise StoreError("no credentials were found")


@pytest.mark.usefixtures("cluster")
def test_what_workers_lack_is_said_before_a_gang_is_started():
    fleet.on_a_worker(os.getpid)
    with pytest.raises(fleet.FleetError, match=r"no credentials were found.*node's environment"):
        fleet.on_a_worker(look_for_a_variable)


def test_no_items_need_no_cluster():
    assert list(fleet.run(identify, [], fleet.Gangs(ranks.build, 1))) == []


@pytest.mark.parametrize(("text", "count"), [("4", (4, 4)), ("2:8", (2, 8))])
def test_counts_of_gangs(text, count):
    assert fleet.parse_count(text) == count


@pytest.mark.parametrize("text", ["0", "3:2", "two", "1:2:3", "-1", ""])
def test_what_is_no_count_of_gangs_is_refused(text):
    with pytest.raises(fleet.FleetError, match="must be A or A:B"):
        fleet.parse_count(text)
