"""The column `image`: what a row may hold there, and where a job keeps the pictures.

A picture is given by its bytes or its address. Each is read and checked when the job is planned; a
job then keeps a copy of its own under its root, by the hash of its bytes, since leaders on other
machines see neither the driver's folders nor a Parquet file's cells, and originals may change. An
address that the root knows is not read again when the job is resumed.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq

from cluster.media.picture import MOST_BYTES, Picture, examined, named
from cluster.models.model import Model, ModelError
from cluster.models.sharing import check_image
from cluster.store import (
    MissingKey,
    Store,
    StoreError,
    TooLarge,
    is_remote,
    local_path,
    open_store,
    read,
)
from cluster.work import values
from cluster.work.prompt_files import PromptFile
from cluster.work.values import PromptsError
from meancache.json_values import shown

if TYPE_CHECKING:
    from cluster.work.prompts import Prompt

NAMED_ROWS = 5
IMAGE = "image"
# Beside a row in the manifest of a job with pictures.
COLUMNS = ("image", "image_key", "image_sha256")
KEPT = "images/"
INDEX = "images/index/"
# Rows of a Parquet file with pictures in it that are in memory at once.
BATCH = 64
READS_AT_ONCE = 16
_INDEX = pa.schema(
    [
        *((name, pa.string()) for name in ("address", "sha256", "ending", "error")),
        *((name, pa.int32()) for name in ("width", "height")),
    ],
    metadata={b"schema": b"1"},
)

Shown = Callable[[Iterator[Any], int], Iterable[Any]]
"""Shows how far an iterator of so many results is, as `jobs._shared.progress` does."""


def of_value(value: Any, folder: str) -> Picture | None:
    """The picture that a cell names: examined where it holds bytes, else with its address.

    Args:
        value: a path, the uri of an object, bytes, or Hugging Face's {bytes, path}.
        folder: of the prompts file, which relative paths begin at.

    Raises:
        PromptsError: it is none of these.
    """
    name = None
    if isinstance(value, Mapping):
        if not set(value) <= {"bytes", "path"}:
            raise PromptsError(f"image {shown(dict(value))} has other fields than bytes and path")
        name, value = value.get("path"), value.get("bytes") or value.get("path")
    if value is None or value == "":
        return None
    if isinstance(value, bytes):
        return examined(None if name is None else values.text(IMAGE, name), value)
    address = values.text(IMAGE, value)
    if address.startswith(("http:", "https:")):
        raise PromptsError(f"image {shown(address)} is on the web: fetch it first, and give a path")
    resolved = _resolved(address, folder)
    try:
        # Neither touches the network; what cannot be an address is no failure of a store.
        if "://" in resolved:
            open_store(resolved)
        else:
            local_path(resolved)
    except StoreError as error:
        raise PromptsError(f"image {shown(address)} is no address: {error}") from None
    return Picture(address, address=resolved)


def _resolved(address: str, folder: str) -> str:
    if is_remote(address) or address.startswith(("/", "~")) or "://" in address:
        return address
    return f"{folder}/{address}" if folder else address


def check_images(prompts: Iterable[Prompt], model: Model) -> None:
    """Refuses rows with images for a model that takes none, and rows without for one that does.

    Raises:
        PromptsError: names the first of them.
    """
    takes = model.kind.takes_image
    wrong = [one.line for one in prompts if (one.image is not None) != takes]
    if wrong:
        lines = ", ".join(map(str, wrong[:NAMED_ROWS])) + ", ..." * (len(wrong) > NAMED_ROWS)
        raise PromptsError(
            f"{len(wrong)} rows have no image (lines {lines}), and {model.id} is a "
            f"{model.pipeline}, which starts from one: give each a path, an s3:// uri "
            "(or gs://, az://) or bytes in the column image"
            if takes
            else f"{len(wrong)} rows have an image (lines {lines}), and {model.id} is a "
            f"{model.pipeline}, which takes text alone: leave the column image out, give it "
            "another name, or choose a pipeline that takes one"
        )


def examine(
    prompts: list[Prompt],
    model: Model,
    sized: bool,
    gang_size: int,
    known: Mapping[str, Picture],
    progress: Shown,
) -> None:
    """Reads and checks the images of rows, in place; where the output's size follows the image's,
    and nobody says another, each row gets its own.

    Args:
        prompts: the rows.
        model: what draws from them.
        sized: whether a size was given for all rows.
        gang_size: ranks that share an output.
        known: images by address that need not be read, of `indexed`.
        progress: shows how far it is.

    Raises:
        PromptsError: rows have images and the model takes none, or the other way round, or no
            image of any row can be used.
        ModelError: the model cannot draw from an image of a row's size, or takes no size.
        StoreError: a store, or a file that is there, cannot be read.
    """
    check_images(prompts, model)
    if not model.kind.takes_image:
        return
    if not model.kind.sized and (sized or any(_sizes(one.overrides) for one in prompts)):
        raise ModelError(
            f"{model.id} is a {model.pipeline}, which takes no height and no width: the shape of "
            "each image decides; leave them out"
        )
    found = look_at((one.image for one in prompts), known, progress)
    for place, row in enumerate(prompts):
        image = row.image
        assert image is not None
        if image.address is not None:
            image = replace(found[image.address], uri=image.uri, address=image.address)
        overrides = row.overrides
        if not image.error:
            check_image(model, image.width, image.height, gang_size)
        if not (sized or image.error or _sizes(overrides)):
            overrides = {**model.size_for(image.width, image.height), **overrides}
        prompts[place] = replace(row, image=image, overrides=overrides)
    bad = [one for one in prompts if one.image is not None and one.image.error]
    if len(bad) == len(prompts):
        some = "; ".join(f"line {one.line}: {one.image.error}" for one in bad[:NAMED_ROWS])  # type: ignore[union-attr]
        raise PromptsError(f"no image of the {len(bad)} rows can be used: {some}")


def _sizes(overrides: Mapping[str, Any]) -> set[str]:
    return {"height", "width"} & {*overrides}


def look_at(
    pictures: Iterable[Picture | None], known: Mapping[str, Picture], progress: Shown
) -> dict[str, Picture]:
    """Reads and checks the pictures that have an address; many at once.

    Args:
        pictures: of the rows.
        known: pictures by address that need not be read, of `indexed`.
        progress: shows how far it is.

    Returns:
        By address, what is known of each; one that is missing, damaged or too large says so.

    Raises:
        StoreError: a store, or a file that is there, cannot be read.
    """
    given = {one.address: one for one in pictures if one is not None and one.address is not None}
    new = [one for address, one in given.items() if address not in known]
    with ThreadPoolExecutor(READS_AT_ONCE) as pool:
        found = {one.address: one for one in progress(pool.map(_examined, new), len(new))}
    return {address: found.get(address) or known[address] for address in given if address}


def _examined(given: Picture) -> Picture:
    assert given.address is not None
    try:
        data = read(given.address, MOST_BYTES)
    except (MissingKey, TooLarge) as error:
        return replace(given, error=f"image {named(given)}: {error}")
    return replace(examined(given.uri, data), address=given.address)


def indexed(store: Store) -> dict[str, Picture]:
    """The pictures by address that a root's job has read before. Raises StoreError."""
    found: dict[str, Picture] = {}
    for key in store.list(INDEX):
        try:
            table = pq.read_table(io.BytesIO(store.get(key)))
            rows = table.cast(_INDEX).to_pylist()
        except (pa.ArrowException, OSError, ValueError) as error:
            raise StoreError(f"{store.uri(key)} is damaged ({shown(str(error))})") from error
        for row in rows:
            found.setdefault(row["address"], Picture(None, **row))
    return found


def keep(
    store: Store, pictures: Iterable[Picture], files: Sequence[PromptFile], progress: Shown
) -> None:
    """Copies the pictures of a job under its root, where they are not there yet.

    Args:
        store: the root.
        pictures: of the rows, examined.
        files: the prompts files, of which some pictures are cells.
        progress: shows how far it is.

    Raises:
        PromptsError: one is no longer what it was when it was examined.
        StoreError: a store failed.
    """
    pictures = list(pictures)
    known = indexed(store)
    there = {key for key in store.list(KEPT) if not key.startswith(INDEX)}
    wanted = {one.key: one for one in pictures if one.key is not None and one.key not in there}
    by_address = [one for one in wanted.values() if one.address is not None]
    cells = {one.sha256: one for one in wanted.values() if one.address is None}

    def copy(one: Picture) -> None:
        assert one.address is not None
        data = read(one.address, MOST_BYTES)
        if hashlib.sha256(data).hexdigest() != one.sha256:
            raise PromptsError(f"image {named(one)} was changed while it was read: run it again")
        store.put_new(str(one.key), data)

    with ThreadPoolExecutor(READS_AT_ONCE) as pool:
        for _ in progress(pool.map(copy, by_address), len(by_address)):
            pass
    if cells:
        for file in files:
            for data in _cells(file):
                one = cells.pop(hashlib.sha256(data).hexdigest(), None)
                if one is not None:
                    store.put_new(str(one.key), data)
    if cells:
        raise PromptsError("the prompts were changed while their images were read: run it again")
    _write_index(store, [one for one in pictures if one.address and one.address not in known])


def _write_index(store: Store, pictures: Collection[Picture]) -> None:
    rows = {one.address: {name: getattr(one, name) for name in _INDEX.names} for one in pictures}
    if rows:
        ordered = [rows[address] for address in sorted(rows, key=str)]
        sink = io.BytesIO()
        pq.write_table(pa.Table.from_pylist(ordered, schema=_INDEX), sink, compression="zstd")
        digest = hashlib.sha256("\n".join(map(repr, ordered)).encode()).hexdigest()
        key = f"{INDEX}{digest[:16]}.parquet"
        if not store.exists(key):
            store.put_new(key, sink.getvalue())


def _cells(file: PromptFile) -> Iterator[bytes]:
    """The pictures that a Parquet file holds."""
    if file.ending != "parquet":
        return
    parquet = pq.ParquetFile(io.BytesIO(file.read()))
    if IMAGE not in parquet.schema_arrow.names:
        return
    for batch in parquet.iter_batches(BATCH, columns=[IMAGE]):
        for value in batch.column(0).to_pylist():
            data = value.get("bytes") if isinstance(value, dict) else value
            if isinstance(data, bytes):
                yield data


def fetched(store: Store, picture: Picture) -> Picture:
    """The picture with its file, as the root keeps it. Raises StoreError where it is damaged."""
    assert picture.key is not None
    data = store.get(picture.key)
    if hashlib.sha256(data).hexdigest() != picture.sha256:
        raise StoreError(f"{store.uri(picture.key)} is damaged: it has another sha256")
    return replace(picture, data=data)


def of_row(row: Mapping[str, Any]) -> Picture | None:
    """The picture that a row of a manifest was drawn from, as its root keeps it, or None."""
    if row.get("image_key") is None:
        return None
    ending = str(row["image_key"]).rpartition(".")[2]
    return Picture(row["image"], row["image_sha256"], ending)
