"""A store in a directory of a file system that has hard links."""

from __future__ import annotations

import errno
import os
import re
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from cluster.store.base import (
    TEMPORARY,
    UNSAFE,
    Entry,
    MissingKey,
    Store,
    StoreError,
    TooLarge,
    check_key,
    check_prefix,
    is_key,
    probe,
    short,
)


class LocalStore(Store):
    """Objects as files under a directory of a file system that has hard links.

    A write makes a hidden temporary file beside the final one, so a process killed at any moment
    leaves no partial object, at worst a `.tmp-*` file that no method shows. Those are not swept: a
    slow writer's file cannot be told from a dead one's. `list` follows no links to directories.
    """

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root).expanduser().absolute()
        if self.root.exists() and not self.root.is_dir():
            raise StoreError(f"{self.root} is a file, not a directory: give another root")

    def __repr__(self) -> str:
        return f"LocalStore({str(self.root)!r})"

    def get(self, key: str) -> bytes:
        return read_file(self._path(key))

    def put_new(self, key: str, data: bytes) -> bool:
        path = self._path(key)
        with _explaining_os(path, "written"), _temporary_file(path, data) as temporary:
            try:
                os.link(temporary, path)
                created = True
            except FileExistsError:
                if path.is_dir():
                    raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR)) from None
                created = False
            except OSError as error:
                if error.errno not in _NO_LINKS:
                    raise
                raise StoreError(
                    f"{path} cannot be created: its file system has no hard links "
                    f"({error.strerror}), without which nothing keeps two writers apart; give the "
                    "bucket behind a mount (gcsfuse, s3fs, rclone) as gs:// or s3://, or a "
                    "folder on another disk"
                ) from error
            _sync_directory(path.parent)  # in both cases: the answer must outlive a power cut
        return created or self._same_or_raise(key, data)

    def put(self, key: str, data: bytes) -> None:
        path = self._path(key)
        with _explaining_os(path, "written"), _temporary_file(path, data) as temporary:
            os.replace(temporary, path)
            _sync_directory(path.parent)

    def exists(self, key: str) -> bool:
        path = self._path(key)
        with _explaining_os(path, "looked up"):
            return path.is_file()

    def list(self, prefix: str = "") -> Iterator[str]:
        check_prefix(prefix)
        folder, slash, start = prefix.rpartition("/")
        return self._walk(folder + slash, start)

    def entries(self, prefix: str = "") -> Iterator[Entry]:
        keys = self.list(prefix)
        with _explaining_os(self.root, "listed"):
            for key in keys:
                try:
                    found = os.stat(f"{self.root}/{key}")
                except FileNotFoundError:
                    continue  # deleted since
                yield Entry(key, found.st_size, found.st_mtime)

    def _walk(self, folder: str, start: str) -> Iterator[str]:
        """Yield the keys under `folder` ('' or 'a/b/') whose next name begins with `start`.

        A folder of a million files is one pass of scandir and one sort: no file is looked up.
        """
        path = self.root / folder
        with _explaining_os(path, "listed"):
            try:
                with os.scandir(path) as entries:
                    names = [name for entry in entries if (name := _listed(entry, start))]
            except (FileNotFoundError, NotADirectoryError):
                return
        names.sort()  # with its slash a directory comes where its keys do: a-b, then a/b, then a0
        for name in names:
            if name.endswith("/"):
                yield from self._walk(folder + name, "")
            else:
                yield folder + name

    def delete(self, key: str) -> None:
        path = self._path(key)
        with _explaining_os(path, "deleted"), suppress(FileNotFoundError):
            path.unlink()

    def uri(self, key: str) -> str:
        return str(self._path(key))

    def probe(self) -> None:
        new = [path for path in (self.root, *self.root.parents) if not path.is_dir()]
        try:
            with _explaining_os(self.root, "created"):
                _make_directory(self.root)
            probe(self)
        finally:
            with suppress(OSError):  # another process has written there meanwhile
                for path in new:
                    path.rmdir()

    def _path(self, key: str) -> Path:
        check_key(key)
        return self.root / key


def _listed(entry: os.DirEntry[str], start: str) -> str | None:
    """Return the name of an object, or of a directory with a slash, if it begins with `start`."""
    name = entry.name
    if not name.startswith(start) or not is_key(name):
        return None
    if entry.is_dir(follow_symlinks=False):
        return name + "/"
    return name if entry.is_file() else None


# A directory that was there may be gone: the probe of another job removes those that it made.
_ATTEMPTS = 3

# What link() answers on file systems that have none: FUSE mounts of buckets, FAT, some of SMB.
_NO_LINKS = {errno.EPERM, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP, errno.EMLINK, errno.EXDEV}

_OS_FIXES = {
    errno.EACCES: "change its permissions or use another root",
    errno.EEXIST: "a file is in the way of a directory, use another root",
    errno.EFBIG: "raise the limit on file sizes (ulimit -f) or use another root",
    errno.EIO: "check the disk or use another root",
    errno.EISDIR: "a directory is in the way of a file, use another key",
    errno.ENOTDIR: "a file is in the way of a directory, use another root",
    errno.EDQUOT: "free some space or use another root",
    errno.ENOSPC: "free some space or use another root",
    errno.EPERM: "use a root you may write to, on a file system with hard links",
    errno.EMFILE: "raise the limit on open files (ulimit -n)",
    errno.ENAMETOOLONG: "use a root with a shorter path",
    errno.EOPNOTSUPP: "use a root on a file system with hard links",
    errno.EROFS: "use a root you may write to",
    errno.ESTALE: "mount the file system again and run it again",
}


@contextmanager
def _explaining_os(path: Path, done: str) -> Iterator[None]:
    """Turn an OSError into a StoreError: `path` could not be `done`."""
    try:
        yield
    except OSError as error:
        fix = _OS_FIXES.get(error.errno or 0, "check the path and its file system")
        raise StoreError(f"{path} cannot be {done} ({error.strerror}): {fix}") from error


_REMOTE = "s3://bucket/path (or gs://, az://)"


def local_path(path: str) -> Path:
    """Return a local path made absolute, so that it means the same in every process."""
    if scheme := re.match(r"[A-Za-z][A-Za-z0-9+.-]*://", path):
        raise StoreError(f"{scheme[0]}... is not supported: give a local path or {_REMOTE}")
    if not path or UNSAFE.search(path):
        raise StoreError(f"{short(path)} is not a path: give a local path or {_REMOTE}")
    return Path(path).expanduser().absolute()


def read_file(path: Path, most: int | None = None) -> bytes:
    """The bytes of a file. Raises TooLarge where they are more than `most`."""
    with _explaining_os(path, "read"):
        try:
            if most is None:
                return path.read_bytes()
            if path.exists() and not path.is_file():  # a device or a pipe may have no end
                raise MissingKey(f"{path} is no file: check the path")
            with path.open("rb") as file:
                size = os.fstat(file.fileno()).st_size
                if size > most:
                    raise TooLarge.than(most, str(path), size)
                return file.read()
        except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
            raise MissingKey(f"there is no file {path}: check the path") from None


@contextmanager
def _temporary_file(path: Path, data: bytes) -> Iterator[Path]:
    """Write `data`, durably, to a hidden file beside `path`; remove it at the end."""
    temporary = path.parent / f"{TEMPORARY}{secrets.token_hex(8)}"
    try:
        with _new_file(temporary) as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        yield temporary
    finally:
        temporary.unlink(missing_ok=True)


def _new_file(path: Path) -> BinaryIO:
    """A new file in a directory that is made where there is none."""
    for _ in range(_ATTEMPTS - 1):
        _make_directory(path.parent)
        with suppress(FileNotFoundError):
            return open(path, "xb")  # not mkstemp: others may read what we publish
    return open(path, "xb")


def _make_directory(path: Path) -> None:
    """Create a directory and its parents so that their names survive a power cut."""
    for attempt in range(_ATTEMPTS):
        if path.is_dir():
            return
        try:
            _make_directory(path.parent)
            path.mkdir(exist_ok=True)
            _sync_directory(path.parent)
        except FileNotFoundError:
            if attempt + 1 == _ATTEMPTS:
                raise


def _sync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
