"""Which requests of a leader's threads go together, and what happens to those that fail."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from cluster.fleet.batches import Batches


class Gang:
    """Notes what is done together, one batch after the other; the first waits for `begin`."""

    def __init__(self):
        self.done: list[list[object]] = []
        self.begin = threading.Event()

    def __call__(self, requests):
        self.begin.wait()
        self.done.append(sorted(requests))
        return [f"{one} done" for one in requests]


def carried(batches, gang, requests, key=lambda request: "all"):
    """Carries requests through at once, each by a thread; their results in order."""

    def carry(request):
        with batches.place() as place:
            everyone.wait()
            return place.run(key(request), request, gang)

    everyone = threading.Barrier(len(requests))
    with ThreadPoolExecutor(len(requests)) as threads:
        results = [threads.submit(carry, request) for request in requests]
        while batches._coming and not gang.begin.is_set():
            time.sleep(0.001)
        gang.begin.set()
        return [result.result() for result in results]


def test_as_many_go_together_as_a_batch_takes_and_the_rest_after_them():
    gang = Gang()
    requests = list(range(10))
    assert carried(Batches(4), gang, requests) == [f"{one} done" for one in requests]
    assert sorted(map(len, gang.done)) == [2, 4, 4]


def test_only_what_is_alike_goes_together():
    gang = Gang()
    carried(Batches(4), gang, list(range(8)), key=lambda request: str(request % 2))
    assert sorted(gang.done) == [[0, 2, 4, 6], [1, 3, 5, 7]]


def test_what_has_no_key_goes_alone():
    gang = Gang()
    carried(Batches(4), gang, list(range(3)), key=lambda request: None)
    assert sorted(gang.done) == [[0], [1], [2]]


def test_a_batch_that_is_not_full_waits_for_what_is_on_its_way_and_no_longer():
    batches, gang = Batches(2), Gang()
    gang.begin.set()
    with ThreadPoolExecutor(1) as threads, batches.place():
        first = threads.submit(carried, batches, gang, ["first"])
        with pytest.raises(TimeoutError):
            first.result(timeout=0.1)
    # The other has left without a request, as one that has failed before.
    assert first.result(timeout=10) == ["first done"]


def test_one_that_fails_leaves_the_others_their_results():
    def together(requests):
        return [ValueError("bad") if one == 1 else one for one in requests]

    batches = Batches(3)

    def carry(request):
        with batches.place() as place:
            everyone.wait()
            return place.run("all", request, together)

    everyone = threading.Barrier(3)
    with ThreadPoolExecutor(3) as threads:
        good, bad, other = [threads.submit(carry, request) for request in range(3)]
        assert (good.result(), other.result()) == (0, 2)
        with pytest.raises(ValueError, match="bad"):
            bad.result()


def test_what_fails_for_all_is_raised_in_each_thread_as_an_exception_of_its_own():
    def together(requests):
        raise ValueError("no ranks")

    batches, errors = Batches(2), []

    def carry(request):
        with batches.place() as place:
            everyone.wait()
            try:
                place.run("all", request, together)
            except ValueError as error:
                errors.append(error)

    everyone = threading.Barrier(2)
    with ThreadPoolExecutor(2) as threads:
        list(threads.map(carry, range(2)))
    assert [str(error) for error in errors] == ["no ranks"] * 2
    assert errors[0] is not errors[1]


def test_batches_are_halved_when_they_fail_again_and_again_and_not_when_a_rank_was_killed():
    batches = Batches(8)
    batches.failed_whole(8)
    batches.worked()
    batches.failed_whole(8)
    assert batches.most == 8
    batches.failed_whole(8)
    assert batches.most == 4
