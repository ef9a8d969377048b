"""The roots that jobs read and write, and what a store's failure means before a job has begun."""

from __future__ import annotations

import os
import posixpath
import re
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import quote

from cluster.store import (
    LocalStore,
    MissingKey,
    Store,
    StoreError,
    is_remote,
    open_store,
    split_uri,
)
from meancache.calibration import Calibration
from meancache.errors import CalibrationError, InputError

# Set by `ray job submit` in the environment of the job's driver.
SUBMITTED_MARK = "RAY_JOB_CONFIG_JSON_ENV_VAR"
# In the store's sentences about them.
CREDENTIALS = re.compile("credential|AWS_ACCESS_KEY_ID|AZURE_STORAGE_")


class RefusedError(InputError):
    """A store cannot be used for what was asked, and nothing was begun."""


@contextmanager
def refusing() -> Iterator[None]:
    """Until here nothing is begun: a store that fails is an input that cannot be used.

    Raises:
        RefusedError: for each StoreError.
    """
    try:
        yield
    except StoreError as error:
        raise RefusedError(str(error)) from error


@contextmanager
def begun() -> Iterator[None]:
    """The opposite: a part of a larger job is refused by its store, and the job can be resumed.

    Raises:
        StoreError: for each RefusedError.
    """
    try:
        yield
    except RefusedError as error:
        raise StoreError(str(error)) from error


def open_output(output: str) -> Store:
    """The store of an --output, after a probe.

    Raises:
        StoreError: it cannot be used, or would be gone when the job ends.
    """
    local = not is_remote(output)
    if local and not os.path.isabs(output) and SUBMITTED_MARK in os.environ:
        raise StoreError(
            f"--output {output!r} is a relative path, but a submitted job runs in a "
            "temporary copy of its working directory: give s3://bucket/prefix, or an absolute "
            "path that all nodes share"
        )
    store = open_store(output)
    try:
        store.probe()
    except StoreError as error:
        if SUBMITTED_MARK in os.environ and CREDENTIALS.search(str(error)):
            raise StoreError(
                f"{error}; a submitted job has the credentials of the cluster's nodes, not those "
                "of the shell that it was submitted from"
            ) from error
        raise
    return store


def check_apart(source: Store, root: str, target: Store, output: str) -> None:
    """Refuses to write a copy of a root into the root itself, or around it.

    Whoever loads the copy would find the root's own videos in it, and the root would hold files
    that its manifest does not know.

    Args:
        source: the store at `root`, which is read.
        root: as it was given.
        target: the store at `output`, which nothing has been written to.
        output: as it was given.

    Raises:
        RefusedError: one of the two holds the other.
    """
    read, written = _place(source), _place(target)
    if read == written:
        relation = "is the root that is exported"
    elif written.startswith(f"{read}/"):
        relation = f"lies inside the root that is exported, {root}"
    elif read.startswith(f"{written}/"):
        relation = f"holds the root that is exported, {root}"
    else:
        return
    raise RefusedError(f"--output {output} {relation}: give a folder beside it")


def _place(store: Store) -> str:
    """Where a store is: one name for all ways to it, without a slash at the end."""
    if isinstance(store, LocalStore):
        return os.path.realpath(store.root).rstrip("/")
    return store.uri("x").removesuffix("/x")


def read_graph(folder: str) -> Calibration:
    """The graph that a calibration finished, of its ROOT/graph. Raises CalibrationError."""
    store = open_store(folder)
    try:
        return Calibration.from_parquet(store.get("statistics.parquet"))
    except MissingKey as error:
        raise CalibrationError(
            f"{store.uri('statistics.parquet')} does not exist; give the ROOT/graph that "
            "jobs.calibrate finished"
        ) from error


def to_look_at(store: Store, key: str) -> str:
    """Where a page is: a link for a browser, or how to get it out of a bucket."""
    uri = store.uri(key)
    if not is_remote(uri):
        return f"file://{quote(uri)}"
    scheme, bucket, name = split_uri(uri)
    there, here = map(shlex.quote, (name, posixpath.basename(name)))
    commands = {
        "s3": f"aws s3 cp {shlex.quote(uri)} .",
        "gs": f"gcloud storage cp {shlex.quote(uri)} .",
        "az": f"az storage blob download -c {bucket} -n {there} -f {here}",
    }
    return f"{uri} ({commands[scheme]})"
