"""Keys of a root are made of digits and hex digits: no text of a user ever becomes a path."""

import hashlib
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.models.model import find_model
from cluster.results.attempts import Attempts
from cluster.results.manifest import Manifest, video_key
from cluster.store import open_store
from cluster.store.base import is_key
from cluster.work.plan import plan_items
from cluster.work.prompts import Prompt
from tests.support.hostile import ESCAPE, FUZZ

HOSTILE = st.sampled_from(["../../etc/passwd", "/etc/passwd", "..", ".tmp-", "a\\b", ESCAPE]) | (
    st.text(st.characters(exclude_categories=["Cs"]), min_size=1)
)
MODEL = find_model("tiny")


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return open_store(str(tmp_path_factory.mktemp("root")))


@FUZZ
@given(
    prompt=HOSTILE,
    prompt_id=HOSTILE,
    negative=HOSTILE,
    seed=st.none() | st.integers(0, 2**63 - 1),
    retry_round=st.integers(0, 9),
    video=st.binary(),
)
def test_keys_hold_hex_digits_alone(store, prompt, prompt_id, negative, seed, retry_round, video):
    row = Prompt(1, prompt, prompt_id, seed, {"negative_prompt": negative})
    (item,) = plan_items([row], MODEL, MODEL.defaults)
    manifest = Manifest(store, retry_round)
    keys = {
        video_key(item.id, hashlib.sha256(video).hexdigest()): (
            r"videos/[0-9a-f]{2}/[0-9a-f]{32}\.[0-9a-f]{16}\.mp4"
        ),
        manifest.receipt_key(item.shard, item.id): r"receipts/0{6}/[0-9a-f]{32}(\.r[1-9])?\.json",
        manifest.part_key(item.shard): r"manifest/parts/part-0{6}(-r[1-9])?\.parquet",
        manifest.failures_key(item.shard): r"failures/part-0{6}(-r[1-9])?\.parquet",
        manifest.success_key: r"manifest/_SUCCESS(\.r[1-9])?",
    }
    for key, pattern in keys.items():
        assert re.fullmatch(pattern, key)
        assert is_key(key)
    assert (item.prompt, item.prompt_id) == (prompt, prompt_id)


def test_a_failed_attempt_is_counted_under_hex_digits_too(store):
    row = Prompt(1, ESCAPE, "../../etc/passwd")
    (item,) = plan_items([row], MODEL, MODEL.defaults)
    Attempts(store).record(item, f"{ESCAPE} \ud800")
    (key,) = store.list("attempts/")
    assert re.fullmatch(r"attempts/0{6}/[0-9a-f]{32}\.r0\.1\.json", key)
