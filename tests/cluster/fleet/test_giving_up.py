"""An item that ends its leader costs three attempts, one failed row, and no other item."""

import os
import signal

import pytest

from cluster.fleet import driver as fleet
from cluster.fleet.delivery import Delivery
from cluster.results.manifest import Manifest
from cluster.store import open_store
from jobs.benchmark.null import NullRenderer


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
