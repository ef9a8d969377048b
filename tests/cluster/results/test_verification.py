"""Verify finds every change to what a manifest names, whatever was done to it."""

import hashlib
import json

import pytest

from cluster.results import manifest, verification
from cluster.results.manifest import Manifest
from cluster.store import open_store
from cluster.work.plan import SPEC_KEY
from tests.support.manifest_rows import finish


@pytest.fixture
def store(tmp_path):
    return open_store(str(tmp_path))


@pytest.fixture
def job(store):
    return Manifest(store)


def checked(store, share: float = 1.0) -> list[tuple[str, str | None]]:
    return [finding for findings in verification.verify(store, share) for finding in findings]


def problems(store) -> dict[str, str]:
    return {uri: problem for uri, problem in checked(store) if problem is not None}


def test_verify_is_content_with_what_was_committed(store, job, items):
    finish(job, items, failed={1})
    assert problems(store) == {}
    assert len(checked(store)) == 1 + 2 + 7 + 6  # _SUCCESS, part and failures, receipts, videos


def test_progress_knows_how_many_steps_there_will_be(store, job, items):
    before = finish(job, items, failed={1, 2})
    finish(Manifest(store, 1), items[1:3], failed={1}, before=before)
    assert len(list(verification.verify(store))) == verification.expected_steps(store)


def test_a_healed_root_is_checked_with_all_that_it_had_before(store, job, items, tmp_path):
    before = finish(job, items, failed={1, 2})
    finish(Manifest(store, 1), items[1:3], failed={1}, before=before)
    assert problems(store) == {}
    # 2 _SUCCESS, 4 files, 7 + 2 receipts, 5 + 1 videos
    assert len(checked(store)) == 2 + 4 + 9 + 6
    for path in (
        f"receipts/000000/{items[2].id}.r1.json",
        "failures/part-000000.parquet",
        "failures/part-000000-r1.parquet",
        "manifest/parts/part-000000-r1.parquet",
        "manifest/_SUCCESS",
    ):
        data = (tmp_path / path).read_bytes()
        (tmp_path / path).unlink()
        assert "missing" in problems(store)[str(tmp_path / path)], path
        (tmp_path / path).write_bytes(data)


def test_a_sample_reads_fewer_rows_and_all_of_the_manifest(store, job, items, tmp_path):
    finish(job, items)
    assert len(checked(store, 1e-9)) == 2
    (tmp_path / "manifest/parts/part-000000.parquet").write_bytes(b"x")
    assert [problem for _, problem in checked(store, 1e-9) if problem]


def test_verify_names_a_video_with_one_byte_changed(store, job, items, tmp_path):
    finish(job, items)
    video = sorted((tmp_path / "videos").rglob("*.mp4"))[3]
    data = bytearray(video.read_bytes())
    data[5] ^= 1
    video.write_bytes(data)
    found = problems(store)
    assert list(found) == [str(video)]
    assert "do not have the sha256" in found[str(video)]


@pytest.mark.parametrize(
    "pattern",
    [
        "videos/**/*.mp4",
        "receipts/**/*.json",
        "manifest/parts/*.parquet",
        "failures/*.parquet",
        "manifest/_SUCCESS",
    ],
)
def test_verify_names_whatever_is_missing_cut_or_replaced(store, job, items, tmp_path, pattern):
    finish(job, items, failed={1})
    file = sorted(tmp_path.glob(pattern))[0]
    data = file.read_bytes()
    for spoiled in (data[:-3], b"", b"{}", b"[" * 100_000, b'{"parts": [{"key": 5}]}'):
        file.write_bytes(spoiled)
        assert str(file) in problems(store)
    file.unlink()
    assert "missing" in problems(store)[str(file)]


@pytest.mark.parametrize("pattern", ["receipts/**/*.json", "manifest/_SUCCESS"])
def test_verify_names_a_file_whose_content_was_changed_with_care(
    store, job, items, tmp_path, pattern
):
    finish(job, items)
    file = sorted(tmp_path.glob(pattern))[0]
    whole = json.loads(file.read_text())
    for name, value in whole.items():
        changed = value + 1 if isinstance(value, int | float) else "other"
        file.write_text(json.dumps({**whole, name: changed}))
        assert problems(store), name
    file.write_text(json.dumps(whole))
    assert problems(store) == {}


def test_verify_names_a_part_that_is_not_the_jobs(store, job, items, tmp_path):
    finish(job, items)
    extra = tmp_path / "manifest" / "parts" / "part-000099.parquet"
    extra.write_bytes(store.get(job.part_key(0)))
    assert "is not named" in problems(store)[str(extra)]


def test_a_part_of_another_kind_is_named_even_if_its_hash_fits(store, job, items, tmp_path):
    success = finish(job, items)
    (tmp_path / job.part_key(0)).write_bytes(b"no parquet")
    changed = json.loads(success.to_json())
    changed["parts"][0]["sha256"] = hashlib.sha256(b"no parquet").hexdigest()
    (tmp_path / "manifest" / "_SUCCESS").write_text(json.dumps(changed))
    assert "not a Parquet file" in problems(store)[str(tmp_path / job.part_key(0))]


def test_rows_of_several_settings_must_name_a_schedule_of_their_steps(store, job, items):
    finish(job, items)
    (row, *_) = manifest.read_rows(store.get("manifest/parts/part-000000.parquet"))
    right = {"id": row["schedule_id"], "grid": {"num_inference_steps": row["num_inference_steps"]}}
    other = {**right, "grid": {"num_inference_steps": 1}}
    for schedules, sentence in (
        ([right], None),
        ([other], "which is for 1"),
        ([{**right, "id": "another"}], "which job.json does not hold"),
    ):
        store.put(SPEC_KEY, json.dumps({"schedules": schedules}).encode())
        found = problems(store)
        if sentence is None:
            assert found == {}
        else:
            assert len(found) == len(items)
            assert all(sentence in problem for problem in found.values())
