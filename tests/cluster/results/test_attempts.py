"""Failed attempts are counted in the store, each once, whoever counts them."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest

from cluster.results import attempts
from cluster.results.attempts import Attempts
from cluster.store import open_store


@pytest.fixture
def counted(tmp_path):
    return Attempts(open_store(str(tmp_path)))


def test_failures_come_back_in_their_order(counted, items):
    for number in range(12):
        counted.record(items[0], f"reason {number}")
    assert counted.failures(items[0]) == [f"reason {number}" for number in range(12)]
    assert counted.failures(items[1]) == []


def test_the_same_reason_twice_is_two_failures(counted, items):
    counted.record(items[0], "rank 0 died")
    counted.record(items[0], "rank 0 died")
    assert len(counted.failures(items[0])) == 2


def test_of_many_that_count_at_once_none_is_lost(counted, items):
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda n: counted.record(items[0], str(n)), range(24)))
    assert sorted(map(int, counted.failures(items[0]))) == list(range(24))


def test_a_retry_round_counts_anew(counted, items):
    counted.record(items[0], "first round")
    again = replace(counted, retry_round=1)
    assert again.failures(items[0]) == []
    again.record(items[0], "second round")
    assert counted.failures(items[0]) == ["first round"]


def test_a_reason_that_no_file_could_hold_is_kept_as_far_as_it_can(counted, items):
    counted.record(items[0], "\ud800" + "x" * 1_000_000)
    (reason,) = counted.failures(items[0])
    assert reason == "?" + "x" * (attempts.REASON_LENGTH - 1)


def test_all_that_failed_in_a_root_is_told_with_its_item(counted, items):
    for item in items[:3]:
        counted.record(item, f"reason {item.index}")
    told = [(item.id, f"reason {item.index}") for item in items[:3]]
    assert sorted(attempts.recorded(counted.store, 10)) == sorted(told)
    assert len(attempts.recorded(counted.store, 2)) == 2
