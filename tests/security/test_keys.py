"""Keys of a root are made of digits and hex digits: no text of a user ever becomes a path."""

import hashlib
import re

from hypothesis import given
from hypothesis import strategies as st

from cluster import manifest
from cluster.model import find_model
from cluster.plan import plan_items
from cluster.prompts import Prompt
from cluster.store.base import is_key
from tests.security.hostile import ESCAPE, FUZZ

HOSTILE = st.sampled_from(["../../etc/passwd", "/etc/passwd", "..", ".tmp-", "a\\b", ESCAPE]) | (
    st.text(st.characters(exclude_categories=["Cs"]), min_size=1)
)
MODEL = find_model("tiny")


@FUZZ
@given(
    prompt=HOSTILE,
    prompt_id=HOSTILE,
    negative=HOSTILE,
    seed=st.none() | st.integers(0, 2**63 - 1),
    sha256=st.binary().map(lambda data: hashlib.sha256(data).hexdigest()),
)
def test_keys_hold_hex_digits_alone(prompt, prompt_id, negative, seed, sha256):
    row = Prompt(1, prompt, prompt_id, seed, {"negative_prompt": negative})
    (item,) = plan_items([row], MODEL, MODEL.defaults)
    keys = {
        manifest.video_key(item.id, sha256): r"videos/[0-9a-f]{2}/[0-9a-f]{32}\.[0-9a-f]{16}\.mp4",
        manifest.receipt_key(item.shard, item.id): r"receipts/[0-9]{6}/[0-9a-f]{32}\.json",
        manifest.part_key(item.shard): r"manifest/parts/part-[0-9]{6}\.parquet",
        manifest.failures_key(item.shard): r"failures/part-[0-9]{6}\.parquet",
    }
    for key, pattern in keys.items():
        assert re.fullmatch(pattern, key)
        assert is_key(key)
    assert item.prompt == prompt
    assert item.prompt_id == prompt_id
