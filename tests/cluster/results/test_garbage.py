"""Only what nobody can commit any more is removed, and only after the grace."""

import os

import pytest

from cluster.results import garbage
from cluster.results.manifest import Manifest
from cluster.store import open_store
from tests.support.manifest_rows import finish, row_of

DAY_S = 86400.0


@pytest.fixture
def store(tmp_path):
    return open_store(str(tmp_path))


@pytest.fixture
def job(store):
    return Manifest(store)


def abandon(store, item, data: bytes = b"drawn, never named", age_s: float = 2 * DAY_S) -> str:
    """Leaves a video as an attempt does that is killed before its receipt; returns its key."""
    key = f"videos/{item.id[:2]}/{item.id}.{data.hex()[:16]}.mp4"
    store.put_new(key, data)
    written = os.stat(store.uri(key)).st_mtime - age_s
    os.utime(store.uri(key), (written, written))
    return key


def removed(store) -> list[str]:
    return [uri for uri, _ in garbage.collect(store, DAY_S)]


def test_a_video_whose_item_was_done_under_another_name_goes(store, job, items):
    finish(job, items)
    key = abandon(store, items[3])
    assert removed(store) == [store.uri(key)]
    assert not store.exists(key)
    assert len(list(store.list("videos/"))) == len(items)


def test_named_videos_stay_however_old(store, job, items):
    finish(job, items)
    for key in store.list("videos/"):
        os.utime(store.uri(key), (0, 0))
    assert removed(store) == []


def test_the_grace_protects_what_was_written_lately(store, job, items):
    finish(job, items)
    abandon(store, items[3], age_s=0)
    assert removed(store) == []


def test_while_the_job_runs_an_open_items_video_stays(store, job, items):
    job.commit(row_of(items[0], job))
    abandon(store, items[1])  # its next attempt may draw the same bytes, and name them
    done = abandon(store, items[0])
    assert removed(store) == [store.uri(done)]


def test_the_video_of_a_failed_item_stays_for_a_retry_round(store, job, items):
    finish(job, items, failed={2})
    abandon(store, items[2])
    assert removed(store) == []


def test_a_healed_video_is_named_by_its_receipt_before_its_part_is_written(store, job, items):
    finish(job, items, failed={2})
    retry_round = Manifest(store, 1)
    key = retry_round.commit(row_of(items[2], retry_round, data=b"healed"))["key"]
    os.utime(store.uri(key), (0, 0))
    other = abandon(store, items[2])
    assert removed(store) == [store.uri(other)]
    assert store.exists(key)


def test_what_is_no_video_of_ours_is_left_alone(store, job, items, tmp_path):
    finish(job, items)
    stranger = tmp_path / "videos" / "notes.txt"
    stranger.write_text("mine")
    os.utime(stranger, (0, 0))
    assert removed(store) == []
