"""An item is delivered once: its video, then its receipt, whatever happens to the ranks."""

import hashlib
import json
import os
import signal

import pytest

from cluster import manifest, video
from cluster.delivery import Delivery
from cluster.gang import Gang, GangStartError
from cluster.plan import plan_items
from cluster.prompts import Prompt
from cluster.renderer import rank_builder
from cluster.store import open_store
from tests.cluster import ranks


@pytest.fixture
def item(model):
    arguments = {**model.defaults, "num_inference_steps": 4}
    prompt = Prompt(1, "a red circle moving left on a dark background", "one", 3)
    return plan_items([prompt], model, arguments)[0]


def test_a_delivered_item_has_its_video_and_a_receipt_that_describes_it(
    tmp_path, model, item, gang_of_two
):
    store = open_store(str(tmp_path))
    row = Delivery(store, model, None)(gang_of_two, item)
    assert row == manifest.read_receipt(store, item)
    data = store.get(row["key"])
    assert row["sha256"] == hashlib.sha256(data).hexdigest()
    assert row["key"] == f"videos/{item.id[:2]}/{item.id}.{row['sha256'][:16]}.mp4"
    assert video.decode(data).shape == (9, 64, 64, 3)
    expected = {
        "item_id": item.id, "prompt_id": "one", "status": "ok", "bytes": len(data), "nfe": 4,
        "num_inference_steps": 4, "num_frames": 9, "width": 64, "height": 64, "seed": 3,
        "world_size": 2, "attempts": 1, "schedule_id": None, "error": None, "model": "tiny",
    }  # fmt: skip
    assert {name: row[name] for name in expected} == expected
    assert row["render_s"] > 0
    assert list(row) == manifest.SCHEMA.names


def test_a_rank_killed_before_an_item_costs_one_attempt_and_no_row(tmp_path, model, item):
    store = open_store(str(tmp_path))
    with Gang(rank_builder(model), 1) as gang:
        os.kill(gang.pids[0], signal.SIGKILL)
        row = Delivery(store, model, None)(gang, item)
    assert (row["status"], row["attempts"]) == ("ok", 2)
    assert len(list(store.list("receipts/"))) == len(list(store.list("videos/"))) == 1


def test_an_item_that_fails_three_times_is_committed_as_failed_with_the_reason(
    tmp_path, model, item
):
    store = open_store(str(tmp_path))
    with Gang(ranks.build, 1) as gang:  # ranks that have no pipeline to render with
        row = Delivery(store, model, None)(gang, item)
    assert (row["status"], row["attempts"], row["key"]) == ("failed", 3, None)
    assert "rank 0 failed: AttributeError" in row["error"]
    assert json.loads(store.get(manifest.receipt_key(0, item.id)))["status"] == "failed"
    assert not list(store.list("videos/"))


def test_ranks_that_do_not_start_use_up_no_item(tmp_path, model, item):
    store = open_store(str(tmp_path))
    with pytest.raises(GangStartError, match="no weights here"):
        Delivery(store, model, None)(Gang(ranks.build_fails, 1), item)
    assert manifest.open_items(store, [item]) == [item]


def test_an_item_that_is_committed_is_not_paid_for_again(tmp_path, model, item, gang_of_one):
    store = open_store(str(tmp_path))
    first = Delivery(store, model, None)(gang_of_one, item)
    nobody = Gang(ranks.build_fails, 1)  # would fail, were it asked
    assert Delivery(store, model, None)(nobody, item) == first
