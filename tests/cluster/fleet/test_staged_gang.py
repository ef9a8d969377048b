"""A gang and its codec: stages overlap, failures stay with the item that met them."""

import os
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from tests.cluster.test_gang import gone

from cluster.fleet.gang import Gang, GangStartError, GangTaskError
from cluster.fleet.staged_gang import StagedGang
from tests.support import ranks


def test_its_processes_start_together_and_end_together():
    with StagedGang(Gang(ranks.build, 2), Gang(ranks.build, 1)) as studio:
        pids = studio.pids
        assert len(set(pids)) == 3
        assert studio.world_size == 2
    assert all(gone(pid) for pid in pids)


def test_a_gang_that_does_not_start_leaves_no_codec_behind():
    codec = Gang(ranks.build, 1)
    codec.launch()
    pids = codec.pids
    with pytest.raises(GangStartError, match="no weights here"):
        StagedGang(Gang(ranks.build_fails, 1), codec).start()
    assert all(gone(pid) for pid in pids)


def test_gang_and_codec_work_at_the_same_time(tmp_path):
    os.mkfifo(tmp_path / "fifo")
    with (
        StagedGang(Gang(ranks.build, 1), Gang(ranks.build, 1)) as studio,
        ThreadPoolExecutor(2) as threads,
    ):
        # One after the other, the first would wait for ever.
        reads = threads.submit(studio.gang.run, ranks.open_fifo, (tmp_path / "fifo", "r"), 60)
        writes = threads.submit(studio.codec.run, ranks.open_fifo, (tmp_path / "fifo", "w"), 60)
        assert (reads.result(), writes.result()) == ("r", "w")


def test_threads_that_share_a_gang_take_turns():
    with Gang(ranks.build, 1) as gang, ThreadPoolExecutor(4) as threads:
        answers = list(threads.map(lambda n: gang.run(ranks.who, n), range(12)))
    assert [payload for _, payload, _ in answers] == list(range(12))
    assert len({pid for _, _, pid in answers}) == 1


def test_what_fails_at_one_stage_leaves_the_other_alone():
    with StagedGang(Gang(ranks.build, 2), Gang(ranks.build, 1)) as studio:
        before = studio.codec.pids
        done = threading.Event()

        def fail() -> None:
            with pytest.raises(GangTaskError, match="latents are wrong"):
                studio.gang.run(ranks.fail_on_rank_1, None)
            done.set()

        thread = threading.Thread(target=fail)
        thread.start()
        while not done.is_set():
            studio.codec.run(ranks.who, None)
        thread.join()
        assert studio.codec.pids == before
        assert studio.gang.run(ranks.who, "again")[1] == "again"
