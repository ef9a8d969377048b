"""Failed attempts are counted in the store, each once, whoever counts them."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest

from cluster.results import attempts
from cluster.results.manifest import Manifest
from cluster.store import open_store


@pytest.fixture
def job(tmp_path):
    return Manifest(open_store(str(tmp_path)))


def test_failures_come_back_in_their_order(job, items):
    for number in range(12):
        attempts.record_failure(job, items[0], f"reason {number}")
    assert attempts.failures(job, items[0]) == [f"reason {number}" for number in range(12)]
    assert attempts.failures(job, items[1]) == []


def test_the_same_reason_twice_is_two_failures(job, items):
    attempts.record_failure(job, items[0], "rank 0 died")
    attempts.record_failure(job, items[0], "rank 0 died")
    assert len(attempts.failures(job, items[0])) == 2


def test_of_many_that_count_at_once_none_is_lost(job, items):
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda n: attempts.record_failure(job, items[0], str(n)), range(24)))
    assert sorted(map(int, attempts.failures(job, items[0]))) == list(range(24))


def test_a_healing_counts_anew(job, items):
    attempts.record_failure(job, items[0], "first round")
    healing = replace(job, healing=1)
    assert attempts.failures(healing, items[0]) == []
    attempts.record_failure(healing, items[0], "second round")
    assert attempts.failures(job, items[0]) == ["first round"]


def test_a_reason_that_no_file_could_hold_is_kept_as_far_as_it_can(job, items):
    attempts.record_failure(job, items[0], "\ud800" + "x" * 1_000_000)
    (reason,) = attempts.failures(job, items[0])
    assert reason == "?" + "x" * (attempts.REASON_LENGTH - 1)


def test_all_that_failed_in_a_root_is_told_with_its_item(job, items):
    for item in items[:3]:
        attempts.record_failure(job, item, f"reason {item.index}")
    told = [(item.id, f"reason {item.index}") for item in items[:3]]
    assert sorted(attempts.recorded(job.store, 10)) == sorted(told)
    assert len(attempts.recorded(job.store, 2)) == 2
