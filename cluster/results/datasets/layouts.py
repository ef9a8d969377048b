"""From a finished render root to the layouts that training and analysis tools read.

    videofolder   metadata.parquet above videos/{id[:2]}/{id}.{sha256[:16]}.mp4, as Hugging Face's
                  VideoFolder (of a model of images: ImageFolder) has it
    webdataset    part-{n:06d}.tar of {id}.mp4, {id}.txt (the prompt) and {id}.json (the row)
    parquet       part-{n:06d}.parquet of the rows alone; their `uri` says where the videos are

Where rows were drawn from images, a VideoFolder has them as files, by `image_key`, a tar as
{id}.input.png (.jpg, ...), and Parquet as a column `image` of Hugging Face's Image, in parts of at
most MOST_BYTES. README.md is a dataset card, see `card`.

Rows are the manifest's `ok` rows in plan order, each metric a column `metrics.NAME`. An export is a
list of files that follows from the manifest and the condition alone, names and bytes, and each is
created once: what is there is done. Its own memory is out of the loaders' sight:

    .export/job.json   what is exported, created once
    .export/_SUCCESS   {rows, files}, once every file is there
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
import math
import tarfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, time
from functools import partial
from typing import Any, Protocol, runtime_checkable

import pyarrow as pa
import pyarrow.parquet as pq

from cluster.results.datasets.dataset import read_checked
from cluster.results.manifest import Success, at_once
from cluster.results.parts import EXTRA
from cluster.store import Store
from meancache.json_values import canonical_json

JOB_KEY = ".export/job.json"
SUCCESS_KEY = ".export/_SUCCESS"
METADATA_KEY = "metadata.parquet"
CARD_KEY = "README.md"
IMAGE_KEY = "image_key"
# A tar is no larger, nor what is in memory at once.
MOST_BYTES = 256 * 2**20
MOST_AT_ONCE = 128
ROWS_OF_A_PART = 100_000


@dataclass(frozen=True, slots=True)
class File:
    """A file of an export; there may be a million of them.

    Attributes:
        key: where it goes.
        start: the first of the export's rows that it is made of.
        stop: after the last of them.
        size: bytes of the videos that it holds.
        make: (source, those rows) -> its content.
    """

    key: str
    start: int
    stop: int
    size: int
    make: Callable[[Store, pa.Table], bytes]


@runtime_checkable
class SeveralAtOnce(Protocol):
    """A store where each write is a commit, of as many files as one likes."""

    def put_all(self, files: Mapping[str, bytes]) -> None:
        """Creates or replaces all of them, or none."""


@dataclass(frozen=True)
class Export:
    """Rows on their way from a render root to another layout.

    Attributes:
        source: the render root.
        target: where the files go.
        rows: those to export, of a `dataset.flattened` table.
        stages: the files; those of a stage are begun when all of the stage before are there.
    """

    source: Store
    target: Store
    rows: pa.Table
    stages: Sequence[Sequence[File]]

    @property
    def files(self) -> int:
        """How many files there will be."""
        return sum(map(len, self.stages))

    def finished(self) -> bool:
        """Whether all of it is there."""
        return self.target.exists(SUCCESS_KEY)

    def missing(self) -> list[list[File]]:
        """The files that are not there yet, by stage."""
        there = set(self.target.list())
        return [[file for file in stage if file.key not in there] for stage in self.stages]

    def write(self, stages: Iterable[Sequence[File]]) -> Iterator[str]:
        """Writes files; yields the key of each when it is there.

        Raises:
            StoreError: a store failed, or a video is not the one that the manifest names.
        """
        for stage in stages:
            for batch in _batches(stage):
                if isinstance(self.target, SeveralAtOnce):
                    made = at_once(self._made, batch)
                    keys = [file.key for file in batch]
                    self.target.put_all(dict(zip(keys, made, strict=True)))
                    yield from keys
                else:
                    yield from at_once(self._write, batch)

    def finish(self) -> None:
        """Writes `_SUCCESS`, when all files are there."""
        content = {"rows": self.rows.num_rows, "files": self.files}
        self.target.put_new(SUCCESS_KEY, canonical_json(content))

    def _write(self, file: File) -> str:
        self.target.put_new(file.key, self._made(file))
        return file.key

    def _made(self, file: File) -> bytes:
        return file.make(self.source, self.rows.slice(file.start, file.stop - file.start))


def specification(success: Success, layout: str, condition: str | None) -> dict[str, Any]:
    """What an export is: the content of its job.json."""
    return {
        "schema": 1,
        "kind": "export",
        "format": layout,
        "where": condition,
        "rows": success.rows,
        "manifest": hashlib.sha256(success.to_json()).hexdigest(),
    }


Sizes = Mapping[str, int]
"""Bytes of each image that a root keeps, by its key."""


def _videofolder(rows: pa.Table, sizes: Sizes) -> list[list[File]]:
    named = zip(rows["key"].to_pylist(), rows["bytes"].to_pylist(), strict=True)
    videos: dict[str, File] = {}  # of which rows may share some
    for row, (key, size) in enumerate(named):
        videos.setdefault(key, File(key, row, row + 1, size, _video))
    images: dict[str, File] = {}
    keys = rows[IMAGE_KEY].to_pylist() if IMAGE_KEY in rows.column_names else []
    for row, key in enumerate(keys):
        if key is not None:
            images.setdefault(key, File(key, row, row + 1, sizes.get(key, 0), _image))
    files = [*videos.values(), *images.values()]
    return [files, [File(METADATA_KEY, 0, rows.num_rows, 0, _metadata)]]


def _webdataset(rows: pa.Table, sizes: Sizes) -> list[list[File]]:
    tars: list[File] = []
    names = _names(rows["item_id"].to_pylist(), rows["index"].to_pylist())
    start = held = 0
    images = _image_sizes(rows, sizes)
    both = (video + image for video, image in zip(rows["bytes"].to_pylist(), images, strict=True))
    for row, size in enumerate([*both, MOST_BYTES]):
        if row > start and held + size > MOST_BYTES:
            make = partial(_tar, names[start:row])
            tars.append(File(f"part-{len(tars):06d}.tar", start, row, held, make))
            start, held = row, 0
        held += size
    return [tars]


def _names(ids: Sequence[str], indices: Sequence[int]) -> list[str]:
    """A name a row: its item's id, with the index behind where a row before it has that name."""
    seen: set[str] = set()
    names = []
    for item_id, index in zip(ids, indices, strict=True):
        names.append(f"{item_id}-{index}" if item_id in seen else item_id)
        seen.add(item_id)
    return names


def _parquet(rows: pa.Table, sizes: Sizes) -> list[list[File]]:
    parts: list[File] = []
    make = _rows if IMAGE_KEY not in rows.column_names else _rows_with_images
    start = held = 0
    for row, size in enumerate([*_image_sizes(rows, sizes), 0]):
        full = held + size > MOST_BYTES or row - start == ROWS_OF_A_PART
        if row > start and (full or row == rows.num_rows):
            parts.append(File(f"part-{len(parts):06d}.parquet", start, row, held, make))
            start, held = row, 0
        held += size
    return [parts]


def _image_sizes(rows: pa.Table, sizes: Sizes) -> list[int]:
    if IMAGE_KEY not in rows.column_names:
        return [0] * rows.num_rows
    return [sizes.get(key, 0) for key in rows[IMAGE_KEY].to_pylist()]


# A format is what plans its files, by stage, from the rows and the sizes of their images.
FORMATS: dict[str, Callable[[pa.Table, Sizes], list[list[File]]]] = {
    "videofolder": _videofolder,
    "webdataset": _webdataset,
    "parquet": _parquet,
}


def _batches(files: Sequence[File]) -> Iterator[list[File]]:
    """Files that are made at once: few enough for the memory."""
    batch: list[File] = []
    held = 0
    for file in files:
        if batch and (len(batch) == MOST_AT_ONCE or held + file.size > MOST_BYTES):
            yield batch
            batch, held = [], 0
        batch.append(file)
        held += file.size
    if batch:
        yield batch


def _video(source: Store, rows: pa.Table) -> bytes:
    return read_checked(source, rows["key"][0].as_py(), rows["sha256"][0].as_py())


def _image(source: Store, rows: pa.Table) -> bytes:
    return read_checked(source, rows[IMAGE_KEY][0].as_py(), rows["image_sha256"][0].as_py())


def _images(source: Store, rows: pa.Table) -> list[bytes | None]:
    """The image of each row."""
    named = zip(rows[IMAGE_KEY].to_pylist(), rows["image_sha256"].to_pylist(), strict=True)
    return at_once(lambda one: None if one[0] is None else read_checked(source, *one), named)


def _rows_with_images(source: Store, rows: pa.Table) -> bytes:
    """Rows whose image is one to Hugging Face's `datasets` too."""
    names = [None if key is None else key.rpartition("/")[2] for key in rows[IMAGE_KEY].to_pylist()]
    column = pa.StructArray.from_arrays(
        [pa.array(_images(source, rows), pa.binary()), pa.array(names, pa.string())],
        names=["bytes", "path"],
        mask=pa.array([name is None for name in names]),
    )
    place = rows.schema.get_field_index("image")
    rows = rows.rename_columns(
        ["image_uri" if one == "image" else one for one in rows.column_names]
    )
    rows = rows.add_column(place, "image", column)
    features = {"info": {"features": {"image": {"_type": "Image"}}}}
    metadata = {**(rows.schema.metadata or {}), b"huggingface": json.dumps(features).encode()}
    return _rows(source, rows.replace_schema_metadata(metadata))


def _rows(source: Store, rows: pa.Table) -> bytes:
    sink = io.BytesIO()
    pq.write_table(rows, sink, compression="zstd")
    return sink.getvalue()


def _metadata(source: Store, rows: pa.Table) -> bytes:
    return _rows(source, rows.add_column(0, "file_name", rows["key"]))


def _tar(names: Sequence[str], source: Store, rows: pa.Table) -> bytes:
    """A sample a row, with nothing in it of this machine or this hour."""
    named = list(zip(rows["key"].to_pylist(), rows["sha256"].to_pylist(), strict=True))
    videos = at_once(lambda one: read_checked(source, *one), named)
    has_images = IMAGE_KEY in rows.column_names
    images = _images(source, rows) if has_images else [None] * rows.num_rows
    sink = io.BytesIO()
    with tarfile.open(fileobj=sink, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for name, row, video, image in zip(names, _json_rows(rows), videos, images, strict=True):
            members = {
                row["key"].rpartition(".")[2]: video,
                "txt": row["prompt"].encode(),
                "json": canonical_json(row),
            }
            if image is not None:
                members[f"input.{row[IMAGE_KEY].rpartition('.')[2]}"] = image
            for ending, data in members.items():
                member = tarfile.TarInfo(f"{name}.{ending}")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
    return sink.getvalue()


def _json_rows(rows: pa.Table) -> list[dict[str, Any]]:
    """Rows as JSON holds them: times and decimals as text, bytes in base64, NaN as null."""
    for place, field in enumerate(rows.schema):
        # Python's times have fewer digits than some columns of nanoseconds.
        if field.name.startswith(EXTRA) and pa.types.is_temporal(field.type):
            rows = rows.set_column(place, field.name, rows[field.name].cast(pa.string()))
    return [{name: _json_value(value) for name, value in row.items()} for row in rows.to_pylist()]


def _json_value(value: Any) -> Any:
    match value:
        case None | bool() | int() | str():
            return value
        case float():
            return value if math.isfinite(value) else None
        case dict():
            return {name: _json_value(inner) for name, inner in value.items()}
        case list():
            return [_json_value(inner) for inner in value]
        case bytes():
            return base64.b64encode(value).decode()
        case date() | time():
            return value.isoformat()
    return str(value)
