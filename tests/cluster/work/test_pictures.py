"""The column `image`: what cells may hold, what is read once, and what a root keeps."""

import hashlib
import json
import os

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cluster.models.model import find_model
from cluster.store import StoreError, open_store
from cluster.work import pictures
from cluster.work.plan import plan_items
from cluster.work.prompts import PromptsError, read_prompts
from cluster.work.rows import plan_rows
from tests.support import saved_pipelines
from tests.support.image_pipelines import picture


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A small Wan 2.2 that draws from images."""
    folder = saved_pipelines.save("Wan 2.2 I2V", tmp_path_factory.mktemp("models") / "wan")
    return find_model(str(folder), dtype="float32")


@pytest.fixture(scope="module")
def kontext(tmp_path_factory):
    folder = saved_pipelines.save("FLUX.1 Kontext", tmp_path_factory.mktemp("models") / "kontext")
    return find_model(str(folder), dtype="float32")


def quietly(results, total):
    return results


def examine(prompts, model, known=None, sized=False):
    pictures.examine(prompts, model, sized, 1, known or {}, quietly)
    return prompts


def rows_of(folder, *rows: dict):
    file = folder / "prompts.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return read_prompts(str(file))


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def test_a_relative_path_begins_at_the_prompts_file(tmp_path, model, monkeypatch):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.png").write_bytes(picture())
    monkeypatch.chdir("/")
    absolute = str(tmp_path / "photos" / "a.png")
    rows = [{"prompt": "a", "image": "photos/a.png"}, {"prompt": "a", "image": absolute}]
    first, second = examine(rows_of(tmp_path, *rows), model)
    assert first.image.sha256 == second.image.sha256 == sha256(picture())
    assert (first.image.uri, second.image.uri) == ("photos/a.png", absolute)
    assert (first.image.width, first.image.height) == (120, 80)


def test_a_picture_lies_on_s3(tmp_path, model, s3_root):
    open_store(s3_root).put_new("photos/a.png", picture())
    uri = f"{s3_root}/photos/a.png"
    (row,) = examine(rows_of(tmp_path, {"prompt": "a", "image": uri}), model)
    assert (row.image.uri, row.image.sha256) == (uri, sha256(picture()))


def parquet(folder, column) -> str:
    table = pa.table({"prompt": ["a", "b"], "image": column})
    pq.write_table(table, folder / "p.parquet")
    return str(folder / "p.parquet")


CELLS = [picture(seed=1), picture(seed=2)]
STRUCT = pa.array([{"bytes": CELLS[0], "path": "x.png"}, {"bytes": CELLS[1], "path": None}])


@pytest.mark.parametrize("column", [pa.array(CELLS), pa.array(CELLS, pa.large_binary()), STRUCT])
def test_a_parquet_file_holds_pictures_as_bytes_or_as_datasets_has_them(tmp_path, model, column):
    prompts = examine(read_prompts(parquet(tmp_path, column)), model)
    assert [row.image.sha256 for row in prompts] == [*map(sha256, CELLS)]
    store = open_store(str(tmp_path / "out"))
    pictures.keep(store, [row.image for row in prompts], prompts.files, quietly)
    for row, cell in zip(prompts, CELLS, strict=True):
        assert store.get(row.image.key) == cell == pictures.fetched(store, row.image).data


def test_a_picture_is_part_of_what_a_row_is(tmp_path, model):
    (tmp_path / "a.png").write_bytes(picture())
    (tmp_path / "same.png").write_bytes(picture())
    (tmp_path / "b.png").write_bytes(picture(seed=1))
    rows = [{"prompt": "a", "image": f"{name}.png", "seed": 1} for name in ("a", "same", "b")]
    prompts = examine(rows_of(tmp_path, *rows), model)
    items = plan_items(prompts, model, model.defaults)
    assert [len(item.rows) for item in items] == [2, 1]
    assert len({row.prompt_id for row in prompts}) == 3
    beside = plan_rows(prompts, model, model.defaults).beside
    assert beside["image"].to_pylist() == ["a.png", "same.png", "b.png"]
    assert beside["image_sha256"].to_pylist()[:2] == [sha256(picture())] * 2
    assert (
        beside["image_key"][0].as_py() == f"images/{sha256(picture())[:2]}/{sha256(picture())}.png"
    )


def test_a_bad_picture_is_one_rows_affair(tmp_path, model):
    (tmp_path / "good.png").write_bytes(picture())
    (tmp_path / "cut.png").write_bytes(picture()[:200])
    (tmp_path / "text.png").write_text("no picture")
    with open(tmp_path / "huge.png", "wb") as huge:
        huge.truncate(pictures.MOST_BYTES + 1)
    os.mkfifo(tmp_path / "pipe.png")  # which nobody ever writes to
    os.symlink("/etc/hostname", tmp_path / "out.png")
    names = ["good.png", "cut.png", "text.png", "huge.png", "gone.png", ".", "pipe.png", "out.png"]
    names += ["../../gone.png"]
    prompts = rows_of(tmp_path, *({"prompt": name, "image": name} for name in names))
    good, *bad = examine(prompts, model)
    assert good.image.error is None
    wrong = ["is damaged", "is not an image", "are the most", "there is no file", "no file"]
    wrong += ["is no file", "is not an image", "there is no file"]
    for row, name, sentence in zip(bad, names[1:], wrong, strict=True):
        assert f"image {name!r}" in row.image.error
        assert sentence in row.image.error
    assert len({item.id for item in plan_items(prompts, model, model.defaults)}) == len(names)
    with pytest.raises(PromptsError, match=r"no image of the 1 rows can be used: line 1: image 'g"):
        examine(rows_of(tmp_path, {"prompt": "a", "image": "gone.png"}), model)


@pytest.mark.parametrize(
    ("value", "sentence"),
    [
        ("https://example.com/a.png", "line 1: image 'https.* is on the web: fetch it first"),
        (7, "line 1: image must be text, not int"),
        ({"url": "a.png"}, "line 1: image .* has other fields than bytes and path"),
        ("ftp://example.com/a.png", "line 1: image 'ftp.* is no address: ftp://... is not supp"),
        ("s3://bucket/../a.png", r"line 1: image 's3.* is no address: key .* segment '\.\.'"),
        ("s3://x", "line 1: image 's3://x' is no address: 's3://x' names no bucket"),
        ("a\\b.png", "line 1: image .* is no address: .* is not a path"),
    ],
)
def test_a_cell_that_holds_no_picture_is_refused_with_its_line(tmp_path, value, sentence):
    with pytest.raises(PromptsError, match=sentence):
        rows_of(tmp_path, {"prompt": "a", "image": value})


def test_rows_without_a_picture_and_models_that_take_none_are_refused(tmp_path, model):
    rows = rows_of(tmp_path, {"prompt": "a", "image": "x.png"}, {"prompt": "b"})
    with pytest.raises(PromptsError, match=r"1 rows have no image \(lines 2\)"):
        examine(rows, model)
    tiny = find_model("tiny")
    with pytest.raises(PromptsError, match=r"1 rows have an image \(lines 1\), and tiny is a Hun"):
        examine(rows, tiny)
    assert examine(rows_of(tmp_path, {"prompt": "b", "image": None}), tiny)[0].image is None


def test_an_edit_has_the_shape_of_its_picture_where_nobody_says_another(tmp_path, kontext):
    (tmp_path / "a.png").write_bytes(picture(160, 90))
    row = {"prompt": "a", "image": "a.png"}
    (own,) = examine(rows_of(tmp_path, row), kontext)
    assert own.overrides == {"height": 752, "width": 1392}
    (by_row,) = examine(rows_of(tmp_path, {**row, "height": 64}), kontext)
    assert by_row.overrides == {"height": 64}
    (by_flag,) = examine(rows_of(tmp_path, row), kontext, sized=True)
    assert by_flag.overrides == {}


def test_a_root_reads_no_address_twice(tmp_path, model):
    (tmp_path / "a.png").write_bytes(picture())
    rows = [{"prompt": "a", "image": "a.png"}, {"prompt": "b", "image": "gone.png"}]
    prompts = examine(rows_of(tmp_path, *rows), model)
    store = open_store(str(tmp_path / "out"))
    pictures.keep(store, [row.image for row in prompts], prompts.files, quietly)
    (tmp_path / "a.png").unlink()
    (tmp_path / "gone.png").write_bytes(picture())
    again = examine(rows_of(tmp_path, *rows), model, pictures.indexed(store))
    assert [row.image for row in again] == [row.image for row in prompts]
    pictures.keep(store, [row.image for row in again], again.files, quietly)  # nothing is missing


def test_a_file_that_cannot_be_read_is_named(tmp_path, model):
    os.symlink("loop.png", tmp_path / "loop.png")
    with pytest.raises(StoreError, match=r"loop\.png cannot be read \(Too many levels"):
        examine(rows_of(tmp_path, {"prompt": "a", "image": "loop.png"}), model)


def test_a_picture_that_changes_while_it_is_read_is_refused(tmp_path, model):
    (tmp_path / "a.png").write_bytes(picture())
    prompts = examine(rows_of(tmp_path, {"prompt": "a", "image": "a.png"}), model)
    (tmp_path / "a.png").write_bytes(picture(seed=1))
    with pytest.raises(PromptsError, match=r"image 'a\.png' was changed while it was"):
        pictures.keep(open_store(str(tmp_path / "out")), [prompts[0].image], (), quietly)
