"""Finds the files that prompts are given in: one, a folder's or a glob's, plain or compressed."""

from __future__ import annotations

import glob
import gzip
import io
import os
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath
from typing import IO, Any

import pyarrow as pa

from cluster.store import (
    MissingKey,
    StoreError,
    is_remote,
    local_path,
    open_store,
    read,
    split_uri,
)
from cluster.work.values import PromptsError
from meancache.json_values import shown

ENDINGS = ("txt", "jsonl", "ndjson", "csv", "tsv", "parquet")
COMPRESSED = ("gz", "zst")
# The limit of an unpacked file: a few hundred bytes can unpack to as much as one likes.
MAX_BYTES = 4 * 2**30
_CHUNK = 2**20
_WILD = "*?["


@dataclass(frozen=True)
class PromptFile:
    """A file of prompts.

    Attributes:
        uri: where it is.
        name: what messages call it.
        ending: one of ENDINGS.
        compression: one of COMPRESSED, or None.
    """

    uri: str
    name: str
    ending: str
    compression: str | None

    @property
    def folder(self) -> str:
        """Where it lies, which relative paths in it begin at; '' for the working directory."""
        folder = self.uri.rpartition("/")[0]
        return "/" if not folder and self.uri.startswith("/") else folder

    def read(self) -> bytes:
        """Its content, unpacked. Raises PromptsError."""
        try:
            data = read(self.uri)
            return data if self.compression is None else _unpacked(data, self.compression)
        except StoreError as error:
            raise PromptsError(f"prompts {_shown(self.uri)}: {error}") from error
        except (OSError, EOFError, zlib.error, pa.ArrowException) as error:
            raise PromptsError(
                f"prompts {_shown(self.uri)}: not a whole .{self.compression} file "
                f"({shown(str(error))})"
            ) from error


def find_files(uri: str) -> list[PromptFile]:
    """The files that a path or the uri of an object names, a folder's and a glob's by name.

    Files whose names begin with a dot or an underscore are no part of a folder, nor of a glob that
    does not ask for them: they are what Spark and file systems leave there.

    Raises:
        PromptsError: there is none, or one of a kind that is not read.
    """
    try:
        found = _in_bucket(uri) if is_remote(uri) else _on_disk(uri)
    except StoreError as error:
        raise PromptsError(f"prompts {_shown(uri)}: {error}") from error
    if not found:
        what = "matches" if any(mark in uri for mark in _WILD) else "is in"
        raise PromptsError(f"prompts {_shown(uri)}: no file {what} it")
    return [_prompt_file(one, name, uri) for one, name in found]


def _on_disk(uri: str) -> list[tuple[str, str]]:
    """(path, name) of each file."""
    path = local_path(uri)
    if path.is_dir():
        names = sorted(name for name in os.listdir(path) if name[0] not in "._")
        for name in names:
            if (path / name).is_dir():
                raise PromptsError(
                    f"prompts {_shown(uri)}: holds the folder {_shown(name)}; give a glob such as "
                    f"{_shown(uri)}/*/*.parquet"
                )
        for name in names:
            _check_file(path / name)
        return [(str(path / name), name) for name in names]
    if path.exists() or not any(mark in uri for mark in _WILD):
        _check_file(path)
        return [(uri, uri)]
    found = [one for one in sorted(glob.glob(str(path), recursive=True)) if os.path.isfile(one)]
    named = [(one, os.path.basename(one)) for one in found]
    marks = path.name.startswith("_")  # asked for
    return [(one, name) for one, name in named if marks or not name.startswith("_")]


def _check_file(path: Path) -> None:
    """Refuses what is there and is no file: a pipe would be waited for without end."""
    if path.exists() and not path.is_file():
        raise PromptsError(f"prompts {_shown(str(path))}: a pipe or a device, not a file")


def _in_bucket(uri: str) -> list[tuple[str, str]]:
    scheme, bucket, key = split_uri(uri)
    root = f"{scheme}://{bucket}"
    if any(mark in key for mark in _WILD):
        parts = PurePosixPath(key).parts
        fixed = next(n for n, part in enumerate(parts) if any(mark in part for mark in _WILD))
        folder, pattern = "/".join((root, *parts[:fixed])), parts[fixed:]
        found = [one.split("/") for one in open_store(folder).list()]
        marks = pattern[-1].startswith("_")  # asked for
        keys = [
            "/".join(names)
            for names in found
            if _matches(names, pattern) and (marks or not names[-1].startswith("_"))
        ]
    elif key and open_store(root).exists(key):
        return [(uri, uri)]
    else:
        folder = uri.removesuffix("/")
        keys = [one for one in open_store(folder).list() if one[0] not in "._"]
        if not keys:
            raise MissingKey(f"there is no object {uri}: check the key")
    return [(f"{folder}/{one}", one) for one in sorted(keys)]


def _matches(names: Sequence[str], pattern: Sequence[str]) -> bool:
    """Whether a path matches a pattern, a name each, where `**` stands for any names."""
    if not pattern:
        return not names
    if pattern[0] == "**":
        return any(_matches(names[start:], pattern[1:]) for start in range(len(names) + 1))
    if not names or (names[0].startswith(".") and not pattern[0].startswith(".")):
        return False
    return fnmatchcase(names[0], pattern[0]) and _matches(names[1:], pattern[1:])


def _prompt_file(uri: str, name: str, given: str) -> PromptFile:
    """Raises PromptsError where the file is of no kind that is read."""
    name = uri if uri == given else name
    endings = name.lower().split(".")[1:]
    compression = endings.pop() if endings and endings[-1] in COMPRESSED else None
    if not endings or endings[-1] not in ENDINGS:
        within = "" if uri == given else f": {_shown(name)}"
        glob_of = "" if uri == given else f"; leave others out by a glob, {_shown(_of(given))}"
        raise PromptsError(
            f"prompts {_shown(given)}{within}: the file's ending must be one of "
            f"{', '.join(f'.{ending}' for ending in ENDINGS)}, or one of these and .gz or .zst"
            f"{glob_of}"
        )
    ending = "jsonl" if endings[-1] == "ndjson" else endings[-1]
    return PromptFile(uri, _shown(name), ending, compression)


def _of(given: str) -> str:
    """A glob of some of the files that a folder or a glob names."""
    folder = given.rpartition("/")[0] if any(mark in given for mark in _WILD) else given.rstrip("/")
    return f"{folder or '.'}/*.csv"


def _unpacked(data: bytes, compression: str) -> bytes:
    """The content of a compressed file. Raises PromptsError where it is more than MAX_BYTES."""
    stream: Any
    if compression == "gz":
        stream = gzip.GzipFile(fileobj=io.BytesIO(data))
    else:
        stream = pa.CompressedInputStream(pa.BufferReader(data), "zstd")
    with stream:
        return _limited(stream)


def _limited(stream: IO[bytes]) -> bytes:
    pieces = []
    length = 0
    while piece := stream.read(_CHUNK):
        pieces.append(piece)
        length += len(piece)
        if length > MAX_BYTES:
            raise PromptsError(f"the file unpacks to more than {MAX_BYTES / 2**30:g} GiB")
    return b"".join(pieces)


def _shown(text: str) -> str:
    return text if text.isprintable() else shown(text)
