"""python -m jobs.export: what the tools that people load data with find in it."""

import hashlib
import io
import json
import tarfile
from pathlib import Path

import duckdb
import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from cluster.media import image
from cluster.results import manifest
from cluster.results.datasets import layouts
from cluster.results.manifest import Manifest
from cluster.store import Store, StoreError, open_store
from cluster.work.plan import WorkItem, plan_items
from cluster.work.prompts import Prompt
from jobs.export import __main__ as export
from tests.support.manifest_rows import row_of

ODD = 'a "red" circle\n\x1b <b>& ü'
FORMATS = tuple(layouts.FORMATS)


def planned(model) -> list[WorkItem]:
    prompts = [Prompt(line, f"{ODD} {line}", f"id/{line}") for line in range(1, 10)]
    return plan_items(prompts, model, model.defaults)


def render(root: str, items: list[WorkItem], ending: str = "mp4") -> None:
    """A finished root: item 2 was given up and retried, item 5 given up for good."""
    store = open_store(root)

    def committed(job: Manifest, some: list[WorkItem], failed: set[int], before=None):
        for item in some:
            shown = item.index % 4 / 4
            metrics = {"ssim": shown} | ({"psnr": 30.0 + item.index} if item.index % 2 else {})
            status = "failed" if item.index in failed else "ok"
            data = picture(item.index) if ending == "png" else item.id.encode() * 100
            job.commit(row_of(item, job, status, data, ending, metrics=metrics))
        for shard, members in manifest.by_shard(some).items():
            job.close_shard(shard, members)
        return job.finish(manifest.by_shard(some), before)

    first = committed(Manifest(store), items, {2, 5})
    committed(Manifest(store, 1), [items[2], items[5]], {5}, first)


def picture(shade: int) -> bytes:
    return image.encode(np.full((1, 16, 16, 3), 10 * shade, np.uint8))


@pytest.fixture(scope="module")
def root(model, tmp_path_factory) -> str:
    """A finished root of nine rows, eight of them `ok`."""
    root = str(tmp_path_factory.mktemp("rendered") / "out")
    render(root, planned(model))
    return root


@pytest.fixture(scope="module")
def expected(root) -> list[dict]:
    """The rows that an export holds, read by hand from the parts."""
    files = sorted(Path(root, "manifest", "parts").glob("*.parquet"))
    rows = [row for file in files for row in pq.read_table(file).to_pylist()]
    return sorted(rows, key=lambda row: row["index"])


@pytest.fixture(scope="module")
def exported(root, tmp_path_factory):
    """Folder of the whole root in a format."""
    folders: dict[str, Path] = {}

    def folder(layout: str) -> Path:
        if layout not in folders:
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(layouts, "MOST_BYTES", 10_000)  # three videos a tar
                patch.setattr(layouts, "ROWS_OF_A_PART", 3)
                folders[layout] = tmp_path_factory.mktemp(layout)
                assert run(root, layout, folders[layout]) == 0
        return folders[layout]

    return folder


def run(root: str, layout: str, output: object, *more: str) -> int:
    return export.main([root, "--format", layout, "--output", str(output), *more])


def contents(folder: str | Path) -> dict[str, bytes]:
    store = open_store(str(folder))
    return {key: store.get(key) for key in store.list()}


def load(*arguments, cache: Path, **named):
    """A dataset as `datasets` reads it, videos as their bytes."""
    import datasets

    found = datasets.load_dataset(*arguments, split="train", cache_dir=str(cache), **named)
    for name, kind in (("video", datasets.Video), ("mp4", datasets.Video)):
        if name in found.column_names:
            found = found.cast_column(name, kind(decode=False))
    return found


def test_ok_rows_alone_are_exported_retried_ones_at_their_place(expected, exported):
    assert [row["index"] for row in expected] == [0, 1, 2, 3, 4, 6, 7, 8]
    metadata = pq.read_table(exported("videofolder") / "metadata.parquet")
    assert metadata.drop_columns(["file_name"]).to_pylist() == expected


def test_a_videofolder_is_read_by_datasets(expected, exported, tmp_path):
    folder = exported("videofolder")
    found = load("videofolder", data_dir=str(folder), cache=tmp_path)
    assert set(found.column_names) == {"video", *expected[0]}
    for row, sample in zip(expected, found, strict=True):
        video = sample.pop("video")
        data = video["bytes"] or Path(video["path"]).read_bytes()
        assert hashlib.sha256(data).hexdigest() == row["sha256"]
        assert sample == row


def test_a_videofolder_needs_no_name_of_its_layout(expected, exported, tmp_path):
    found = load(str(exported("videofolder")), cache=tmp_path)
    assert found["item_id"] == [row["item_id"] for row in expected]


@pytest.mark.parametrize(("layout", "files"), [("videofolder", "metadata"), ("parquet", "part-*")])
def test_tables_are_read_alike_by_duckdb_polars_and_pyarrow(expected, exported, layout, files):
    pattern = str(exported(layout) / f"{files}.parquet")
    by_duckdb = duckdb.sql(f"select * from '{pattern}' order by index").to_arrow_table()
    tables = [pq.read_table(file) for file in sorted(exported(layout).glob(f"{files}.parquet"))]
    readings = {
        "duckdb": by_duckdb.to_pylist(),
        "polars": pl.read_parquet(pattern).to_dicts(),
        "pyarrow": [row for table in tables for row in table.to_pylist()],
    }
    for rows in readings.values():
        for row, found in zip(expected, rows, strict=True):
            name = found.pop("file_name", row["key"])
            assert name == row["key"]
            assert found == row


def test_flat_parquet_is_read_by_datasets(expected, exported, tmp_path):
    assert len(list(exported("parquet").glob("*.parquet"))) == 3
    assert load(str(exported("parquet")), cache=tmp_path).to_list() == expected


def samples_of(rows: list[dict]) -> dict[str, dict]:
    return {row["item_id"]: {**row, "created_at": row["created_at"].isoformat()} for row in rows}


def test_tars_are_read_by_webdataset(expected, exported):
    import webdataset

    tars = sorted(map(str, exported("webdataset").glob("*.tar")))
    assert len(tars) == 3
    samples = list(webdataset.WebDataset(tars, shardshuffle=False))
    wanted = samples_of(expected)
    assert [sample["__key__"] for sample in samples] == list(wanted)
    for sample in samples:
        row = wanted[sample["__key__"]]
        assert json.loads(sample["json"]) == row
        assert sample["txt"].decode() == row["prompt"]
        assert hashlib.sha256(sample["mp4"]).hexdigest() == row["sha256"]


def test_tars_are_read_by_datasets(expected, exported, tmp_path):
    found = load("webdataset", data_dir=str(exported("webdataset")), cache=tmp_path)
    wanted = samples_of(expected)
    assert found["__key__"] == list(wanted)
    for sample in found:
        row = wanted[sample["__key__"]]
        assert sample["json"] == row
        assert hashlib.sha256(sample["mp4"]["bytes"]).hexdigest() == row["sha256"]


def test_pictures_make_an_imagefolder(model, tmp_path, capsys):
    items = planned(model)
    render(str(tmp_path / "out"), items, "png")
    assert run(str(tmp_path / "out"), "videofolder", tmp_path / "dataset") == 0
    assert "load_dataset('imagefolder'" in capsys.readouterr().out
    found = load("imagefolder", data_dir=str(tmp_path / "dataset"), cache=tmp_path / "cache")
    for sample in found:
        with Image.open(io.BytesIO(picture(sample["index"]))) as shown:
            assert np.array_equal(np.asarray(sample["image"]), np.asarray(shown))


def test_tars_tell_nothing_of_the_machine(exported):
    for path in exported("webdataset").glob("*.tar"):
        with tarfile.open(path) as tar:
            for member in tar:
                assert (member.mtime, member.uid, member.uname) == (0, 0, "")


def test_a_render_on_its_way_is_exported_where_that_is_asked_for(model, tmp_path, capsys):
    root = tmp_path / "out"
    render(str(root), planned(model))
    for success in (root / "manifest").glob("_SUCCESS*"):
        success.unlink()
    assert run(str(root), "parquet", tmp_path / "none") == 2
    assert "or --unfinished for the rows that it has so far" in capsys.readouterr().err
    assert run(str(root), "parquet", tmp_path / "some", "--unfinished") == 0
    assert pq.read_table(tmp_path / "some" / "part-000000.parquet").num_rows == 8


def test_rows_that_share_a_video_are_samples_of_their_own(model, tmp_path):
    prompts = [Prompt(line, "a", f"id-{line}", 1) for line in range(3)]
    (item,) = plan_items(prompts, model, model.defaults)
    job = Manifest(open_store(str(tmp_path / "out")))
    job.commit(row_of(item, job))
    bytes_ = pa.table({"extra.data": pa.array([b"\xff", None, b""])})
    job.close_shard(0, [item], bytes_)
    job.finish([0])
    for layout in FORMATS:
        assert run(str(tmp_path / "out"), layout, tmp_path / layout) == 0
    metadata = pq.read_table(tmp_path / "videofolder" / "metadata.parquet")
    assert metadata["prompt_id"].to_pylist() == ["id-0", "id-1", "id-2"]
    assert len(list((tmp_path / "videofolder").rglob("*.mp4"))) == 1
    with tarfile.open(tmp_path / "webdataset" / "part-000000.tar") as tar:
        names = [name for name in tar.getnames() if name.endswith(".json")]
        first = json.load(tar.extractfile(names[0]))
    assert names == [f"{item.id}{more}.json" for more in ("", "-1", "-2")]
    assert first["extra.data"] == "/w=="


@pytest.mark.parametrize("layout", FORMATS)
def test_a_condition_leaves_the_rows_that_meet_it(root, expected, tmp_path, layout):
    condition = "metrics.ssim >= 0.5 and metrics.psnr < 37"
    assert run(root, layout, tmp_path, "--where", condition) == 0
    wanted = [
        row["item_id"]
        for row in expected
        if row["metrics.ssim"] >= 0.5 and (row["metrics.psnr"] or 99) < 37
    ]
    assert wanted
    there = contents(tmp_path)
    if layout == "webdataset":
        (tar,) = (data for key, data in there.items() if key.endswith(".tar"))
        with tarfile.open(fileobj=io.BytesIO(tar)) as opened:
            names = opened.getnames()
        found = [name.removesuffix(".json") for name in names if name.endswith(".json")]
    else:
        (table,) = (data for key, data in there.items() if key.endswith(".parquet"))
        found = pq.read_table(io.BytesIO(table))["item_id"].to_pylist()
    assert found == wanted
    assert len([key for key in there if key.startswith("videos/")]) in (0, len(wanted))


class EndingError(Exception):
    """In place of a kill."""


@pytest.mark.parametrize("layout", FORMATS)
def test_an_export_killed_after_any_file_is_resumed_to_the_same_bytes(
    root, exported, tmp_path, monkeypatch, layout
):
    monkeypatch.setattr(layouts, "MOST_BYTES", 10_000)
    monkeypatch.setattr(layouts, "ROWS_OF_A_PART", 3)
    monkeypatch.setattr(layouts, "MOST_AT_ONCE", 1)
    whole = contents(exported(layout))
    for number in range(len(whole)):
        output = tmp_path / str(number)
        with monkeypatch.context() as patch:
            end_after(patch, number)
            with pytest.raises(EndingError):
                run(root, layout, output)
        left = {path: path.stat().st_ino for path in output.rglob("*") if path.is_file()}
        assert len(left) == number
        if layout == "videofolder":  # whoever finds the table finds all of its videos
            assert number == len(whole) - 1 or not (output / "metadata.parquet").exists()
        assert run(root, layout, output) == 0
        assert contents(output) == whole
        assert all(path.stat().st_ino == inode for path, inode in left.items())


def end_after(patch: pytest.MonkeyPatch, files: int) -> None:
    """Ends an export when it has created so many files (besides the probe of its store)."""
    store = type(open_store("/"))
    put_new = store.put_new
    made: list[str] = []

    def counted(self: Store, key: str, data: bytes) -> bool:
        if not key.startswith(".probe"):
            if len(made) == files:
                raise EndingError
            made.append(key)
        return put_new(self, key, data)

    patch.setattr(store, "put_new", counted)


@pytest.mark.parametrize("layout", FORMATS)
def test_a_finished_export_writes_nothing_and_says_so(root, tmp_path, capsys, layout):
    assert run(root, layout, tmp_path) == 0
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()}
    assert run(root, layout, tmp_path) == 0
    assert "nothing to do" in capsys.readouterr().out
    assert before == {path: path.stat().st_mtime_ns for path in before}


def test_another_export_in_the_same_place_is_refused(root, tmp_path, capsys):
    assert run(root, "parquet", tmp_path, "--where", "seed > 0") == 0
    before = contents(tmp_path)
    assert run(root, "parquet", tmp_path) == 2
    assert 'where is "seed > 0" there and null here' in capsys.readouterr().err
    assert run(root, "webdataset", tmp_path, "--where", "seed > 0") == 2
    assert contents(tmp_path) == before


@pytest.mark.parametrize(
    ("condition", "sentence"),
    [
        ("metrics.lpips < 1", "no column 'metrics.lpips'; there are item_id, prompt_id"),
        ("num_frames = 9", "with == for equal"),
        ("num_frames == 17", "none of the 8 rows"),
    ],
)
def test_a_condition_that_leaves_nothing_is_refused_before_anything_is_written(
    root, tmp_path, capsys, condition, sentence
):
    assert run(root, "videofolder", tmp_path / "dataset", "--where", condition) == 2
    assert sentence in capsys.readouterr().err.splitlines()[-1]
    assert not (tmp_path / "dataset").exists()


@pytest.mark.parametrize(
    ("output", "sentence"),
    [
        ("out", "is the root that is exported"),
        ("out/", "is the root that is exported"),
        ("other/../out", "is the root that is exported"),
        ("link", "is the root that is exported"),
        ("out/dataset", "lies inside the root that is exported"),
        ("link/dataset", "lies inside the root that is exported"),
        (".", "holds the root that is exported"),
    ],
)
def test_an_export_into_its_own_root_or_around_it_is_refused(
    model, tmp_path, monkeypatch, capsys, output, sentence
):
    render(str(tmp_path / "out"), planned(model))
    (tmp_path / "link").symlink_to("out")
    before = sorted(tmp_path.rglob("*")), contents(tmp_path)
    monkeypatch.chdir(tmp_path)
    assert run("out", "videofolder", output) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f"--output {output} {sentence}" in line
    assert line.endswith(": give a folder beside it")
    assert (sorted(tmp_path.rglob("*")), contents(tmp_path)) == before


def test_a_folder_beside_the_root_may_begin_with_its_name(model, tmp_path):
    render(str(tmp_path / "out"), planned(model))
    assert run(str(tmp_path / "out"), "parquet", tmp_path / "out-dataset") == 0


def test_in_a_bucket_too_an_export_stays_out_of_its_root(new_s3_root, capsys):
    source = new_s3_root()
    for output in (source, f"{source}/", f"{source}/dataset", source.rpartition("/")[0]):
        assert run(source, "parquet", output) == 2
        assert "give a folder beside it" in capsys.readouterr().err
    assert not contents(source)


def test_an_output_that_is_a_url_is_refused(root, capsys):
    assert run(root, "parquet", f"file://{root}") == 2
    assert "file://... is not supported: give a local path" in capsys.readouterr().err


def test_a_root_that_is_not_finished_is_refused(tmp_path, capsys):
    assert run(str(tmp_path / "out"), "parquet", tmp_path / "dataset") == 2
    assert "give the --output of a jobs.render that has finished" in capsys.readouterr().err


@pytest.mark.parametrize("layout", ["videofolder", "webdataset"])
def test_a_damaged_video_is_named_and_never_exported(model, tmp_path, capsys, layout):
    root, dataset = tmp_path / "out", tmp_path / "dataset"
    render(str(root), planned(model))
    video = sorted((root / "videos").rglob("*.mp4"))[3]
    good = video.read_bytes()
    video.write_bytes(b"other")
    assert run(str(root), layout, dataset) == 1
    assert f"{video} is damaged" in capsys.readouterr().err
    assert b"other" not in b"".join(contents(dataset).values())
    assert not (dataset / "metadata.parquet").exists()
    video.write_bytes(good)
    assert run(str(root), layout, dataset) == 0


def test_a_key_that_leads_out_of_the_root_is_not_followed(model, tmp_path):
    store = open_store(str(tmp_path / "out"))
    job, (item, *_) = Manifest(store), planned(model)
    (tmp_path / "secret").write_bytes(b"secret")
    sha256 = hashlib.sha256(b"secret").hexdigest()
    job.commit(row_of(item, job, key="../secret", sha256=sha256))
    job.close_shard(0, [item])
    job.finish([0])
    assert run(str(tmp_path / "out"), "videofolder", tmp_path / "dataset") == 1
    assert not (tmp_path / "dataset" / "metadata.parquet").exists()


@pytest.mark.usefixtures("s3_endpoint")
def test_an_export_goes_from_bucket_to_bucket(model, new_s3_root, tmp_path, capsys):
    source, target = new_s3_root(), new_s3_root()
    render(source, planned(model))
    for layout in FORMATS:
        assert run(source, layout, f"{target}/{layout}") == 0
        assert run(source, layout, tmp_path / layout) == 0
        assert contents(f"{target}/{layout}") == contents(tmp_path / layout)
    with pytest.raises(StoreError):
        open_store(target).get("parquet/_SUCCESS")
    assert "not-a-secret" not in "".join(capsys.readouterr())


def with_images(model, root: Path) -> list[bytes]:
    """A root of four rows, whose second has no image; returns the images."""
    prompts = [Prompt(line, "a", f"id-{line}", line) for line in range(4)]
    items = plan_items(prompts, model, model.defaults)
    job = Manifest(open_store(str(root)))
    images = [picture(shade) for shade in range(4)]
    keys = [f"images/{n}/{n}.png" for n in range(4)]
    for item, key, data in zip(items, keys, images, strict=True):
        job.store.put_new(key, data)
        job.commit(row_of(item, job, metrics={"psnr": 30.0 + item.index, "ssim": 0.5}))
    hashes = [hashlib.sha256(data).hexdigest() for data in images]
    columns = {"image": ["a.png", None, None, "b"], "image_key": keys, "image_sha256": hashes}
    columns = {name: [*values[:1], None, *values[2:]] for name, values in columns.items()}
    beside = pa.table({name: pa.array(values, pa.string()) for name, values in columns.items()})
    job.close_shard(0, items, beside)
    job.finish([0])
    return images


def test_images_are_exported_beside_what_was_drawn_from_them(model, tmp_path, monkeypatch):
    import datasets

    images = with_images(model, tmp_path / "out")
    monkeypatch.setattr(layouts, "MOST_BYTES", 2 * len(images[0]) + 10)
    for layout in FORMATS:
        assert run(str(tmp_path / "out"), layout, tmp_path / layout) == 0
    parts = sorted((tmp_path / "parquet").glob("part-*.parquet"))
    assert len(parts) == 2  # by the bytes of their images
    found = load("parquet", data_files=[*map(str, parts)], cache=tmp_path / "cache")
    assert isinstance(found.features["image"], datasets.Image)
    assert found["image_uri"] == ["a.png", None, None, "b"]
    for row, data in zip(found, [images[0], None, *images[2:]], strict=True):
        assert (row["image"] is None) == (data is None)
        if data is not None:
            with Image.open(io.BytesIO(data)) as shown:
                assert np.array_equal(np.asarray(row["image"]), np.asarray(shown))
    metadata = pq.read_table(tmp_path / "videofolder" / "metadata.parquet").to_pylist()
    for row, data in zip(metadata, images, strict=True):
        if row["image_key"] is not None:
            assert (tmp_path / "videofolder" / row["image_key"]).read_bytes() == data
    members = []
    for path in sorted((tmp_path / "webdataset").glob("*.tar")):
        with tarfile.open(path) as tar:
            members += [
                tar.extractfile(one).read() for one in tar if one.name.endswith(".input.png")
            ]
    assert members == [images[0], *images[2:]]


def test_an_export_has_a_card_of_what_is_in_it(model, root, exported, tmp_path):
    with_images(model, tmp_path / "out")
    assert run(str(tmp_path / "out"), "parquet", tmp_path / "dataset") == 0
    card = (tmp_path / "dataset" / "README.md").read_text()
    assert "task_categories: [image-to-video]" in card
    assert (
        "4 of 4 rows were rendered in full too: PSNR 31.5 dB in the mean, 30.0 dB at worst" in card
    )
    assert f"`{model.id}`" in card
    assert "To be added by whoever publishes this" in card
    for layout in FORMATS:
        card = (exported(layout) / "README.md").read_text()
        assert card.startswith("---\nlicense: other")
        assert "`metrics.psnr`" in card
