"""An item is tried MAX_ATTEMPTS times, whoever tries it, and then given up."""

import os
import signal
from collections.abc import Sequence
from dataclasses import dataclass, field

import pytest

from cluster.fleet import driver as fleet
from cluster.fleet.delivery import Delivery
from cluster.fleet.gang import MAX_ATTEMPTS, GangTaskError, NodeFaultError, TryAgainError
from cluster.fleet.giving_up import CountedWork
from cluster.results.attempts import Attempts, close_round, open_round
from cluster.results.manifest import Manifest
from cluster.store import open_store
from cluster.work.plan import WorkItem
from jobs.benchmark.null import NullRenderer

FOLDER = "work/attempts/"


@dataclass
class Work(CountedWork):
    """Work whose attempts fail as `failures` says, one after the other, and then succeed."""

    counted: Attempts
    failures: list[Exception]
    numbers: list[int] = field(default_factory=list)

    @property
    def attempts(self) -> Attempts:
        return self.counted

    def committed(self, item: WorkItem) -> str | None:
        return None

    def attempt(self, gang: None, item: WorkItem, number: int) -> str:
        self.numbers.append(number)
        if self.failures:
            raise self.failures.pop(0)
        return "done"

    def give_up(self, gang: None, item: WorkItem, reasons: Sequence[str]) -> str:
        return f"given up: {', '.join(reasons)}"


@pytest.fixture
def store(tmp_path):
    return open_store(str(tmp_path))


@pytest.fixture
def item(items) -> WorkItem:
    return items[0]


def test_a_failed_attempt_is_counted_and_the_item_tried_again(store, item):
    work = Work(Attempts(store, FOLDER), [GangTaskError("rank 0 died")])
    with pytest.raises(TryAgainError, match="rank 0 died"):
        work(None, item)
    assert work.attempts.failures(item) == ["rank 0 died"]
    assert work(None, item) == "done"
    assert work.numbers == [1, 2]


def test_failures_of_ranks_leaders_and_earlier_jobs_count_alike(store, item):
    Work(Attempts(store, FOLDER), []).lost(item, "the gang's leader died")
    Attempts(store, FOLDER).record(item, "in a job before")
    work = Work(Attempts(store, FOLDER), [GangTaskError("rank 0 died")] * MAX_ATTEMPTS)
    with pytest.raises(TryAgainError):
        work(None, item)
    assert work(None, item) == "given up: the gang's leader died, in a job before, rank 0 died"
    assert work.numbers == [3]


def test_what_says_nothing_of_the_item_does_not_count(store, item):
    work = Work(Attempts(store, FOLDER), [NodeFaultError("its disk is full")])
    with pytest.raises(NodeFaultError):
        work(None, item)
    assert work.attempts.failures(item) == []


def test_a_job_that_ended_with_failures_is_tried_anew_and_one_that_was_killed_goes_on(store, item):
    first = open_round(store, FOLDER)
    first.record(item, "rank 0 died")
    assert open_round(store, FOLDER).failures(item) == ["rank 0 died"]  # after a kill
    close_round(first)
    close_round(first)  # by another driver
    again = open_round(store, FOLDER)
    assert (again.retry_round, again.failures(item)) == (1, [])


class Poisoned(Delivery):
    """A delivery in which one item kills its leader, every time."""

    def attempt(self, gang, item, number):
        if item.prompt_id == "id-3":
            os.kill(os.getpid(), signal.SIGKILL)
        return super().attempt(gang, item, number)


@pytest.mark.slow
@pytest.mark.usefixtures("shared_cluster")
def test_an_item_that_kills_its_leader_every_time_is_given_up_and_the_others_are_done(
    tmp_path, model, items
):
    work = Poisoned(Manifest(open_store(str(tmp_path))), model, None)
    gangs = fleet.Gangs(NullRenderer, 1, 1, 1, NullRenderer)
    rows = {row["prompt_id"]: row for row in fleet.run(work, items, gangs, work.lost)}
    assert len(rows) == len(items)
    bad = rows.pop("id-3")
    assert (bad["status"], bad["attempts"]) == ("failed", 3)
    assert "the gang's leader died" in bad["error"]
    assert {row["status"] for row in rows.values()} == {"ok"}
