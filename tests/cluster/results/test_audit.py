"""Audits: which items, and what is read of them later."""

import hashlib
from datetime import UTC, datetime, timedelta

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.results.audit import fidelity, is_chosen, read_audits
from cluster.results.manifest import Manifest, by_shard
from cluster.store import StoreError, open_store
from meancache.quality import MOST_DECIBELS
from tests.support.manifest_rows import row_of

IDS = [hashlib.sha256(str(number).encode()).hexdigest()[:32] for number in range(20_000)]


@pytest.mark.parametrize("share", [0.01, 0.1, 0.5])
def test_the_share_of_items_that_was_asked_for_is_audited(share):
    chosen = sum(is_chosen(one, share) for one in IDS)
    # Five standard deviations of a fair draw.
    assert abs(chosen - share * len(IDS)) < 5 * (len(IDS) * share * (1 - share)) ** 0.5


@given(st.floats(0, 1), st.floats(0, 1), st.sampled_from(IDS))
def test_a_larger_share_holds_the_smaller_one(one, other, item_id):
    small, large = sorted((one, other))
    assert is_chosen(item_id, large) or not is_chosen(item_id, small)


def test_all_and_none_are_shares_too():
    ends = ["0" * 32, "f" * 32, *IDS[:100]]
    assert all(is_chosen(one, 1.0) for one in ends)
    assert not any(is_chosen(one, 0.0) for one in ends)


def test_a_video_that_equals_its_full_run_has_a_number_that_json_can_hold():
    frames = np.random.default_rng(0).integers(0, 256, (2, 16, 16, 3), dtype=np.uint8)
    assert fidelity(frames, frames) == {"psnr": MOST_DECIBELS, "ssim": pytest.approx(1.0)}


def test_audited_rows_are_read_from_a_manifest_in_the_order_of_their_rendering(tmp_path, items):
    job = Manifest(open_store(str(tmp_path / "root")))
    begin = datetime(2026, 1, 1, tzinfo=UTC)
    for item in items:
        audited = item.index in (1, 4)
        job.commit(
            row_of(
                item,
                job,
                schedule_id="a" * 64,
                metrics={"psnr": 30.0 + item.index, "ssim": 0.9} if audited else {},
                created_at=(begin - timedelta(days=item.index)).isoformat(),
            )
        )
    assert read_audits(job.store) == []
    for shard, members in by_shard(items).items():
        job.close_shard(shard, members)
    found = read_audits(job.store)
    assert [one.psnr for one in found] == [34.0, 31.0]
    assert found[1].created_at == begin - timedelta(days=1)


def test_a_damaged_part_is_named(tmp_path):
    store = open_store(str(tmp_path))
    store.put_new("manifest/parts/part-000000.parquet", b"PAR1")
    with pytest.raises(StoreError, match=r"part-000000\.parquet is damaged: .*; see jobs\.verify"):
        read_audits(store)
