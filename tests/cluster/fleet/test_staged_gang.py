"""A gang and its encoders: stages overlap, failures stay with the item that met them."""

import os
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from cluster.fleet.gang import Gang, GangStartError, GangTaskError
from cluster.fleet.staged_gang import StagedGang
from tests.support import ranks
from tests.support.processes import gone


def test_its_processes_start_together_and_end_together():
    with StagedGang(Gang(ranks.build, 2), Gang(ranks.build, 1)) as gang:
        pids = gang.pids
        assert len(set(pids)) == 3
        assert gang.world_size == 2
    assert all(gone(pid) for pid in pids)


def test_a_gang_that_does_not_start_leaves_no_encoders_behind():
    encoders = Gang(ranks.build, 1)
    encoders.launch()
    pids = encoders.pids
    with pytest.raises(GangStartError, match="no weights here"):
        StagedGang(Gang(ranks.build_fails, 1), encoders).start()
    assert all(gone(pid) for pid in pids)


def test_gang_and_encoders_work_at_the_same_time(tmp_path):
    os.mkfifo(tmp_path / "fifo")
    with (
        StagedGang(Gang(ranks.build, 1), Gang(ranks.build, 1)) as gang,
        ThreadPoolExecutor(2) as threads,
    ):
        # One after the other, the first would wait for ever.
        reads = threads.submit(gang.gang.run, ranks.open_fifo, (tmp_path / "fifo", "r"), 60)
        writes = threads.submit(gang.encoders.run, ranks.open_fifo, (tmp_path / "fifo", "w"), 60)
        assert (reads.result(), writes.result()) == ("r", "w")


def test_threads_that_share_a_gang_take_turns():
    with Gang(ranks.build, 1) as gang, ThreadPoolExecutor(4) as threads:
        answers = list(threads.map(lambda n: gang.run(ranks.who, n), range(12)))
    assert [payload for _, payload, _ in answers] == list(range(12))
    assert len({pid for _, _, pid in answers}) == 1


def test_what_fails_at_one_stage_leaves_the_other_alone():
    with StagedGang(Gang(ranks.build, 2), Gang(ranks.build, 1)) as gang:
        before = gang.encoders.pids
        done = threading.Event()

        def fail() -> None:
            with pytest.raises(GangTaskError, match="latents are wrong"):
                gang.gang.run(ranks.fail_on_rank_1, None)
            done.set()

        thread = threading.Thread(target=fail)
        thread.start()
        while not done.is_set():
            gang.encoders.run(ranks.who, None)
        thread.join()
        assert gang.encoders.pids == before
        assert gang.gang.run(ranks.who, "again")[1] == "again"
