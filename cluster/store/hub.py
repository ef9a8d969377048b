"""A dataset on the Hugging Face Hub as the place where an export goes, by huggingface_hub.

No place for a job: each write is a commit of a repository, which takes a second or more, and the
Hub allows for about a hundred of them an hour. An export writes many files a commit. The token is
the one that huggingface_hub finds (HF_TOKEN, or `hf auth login`), and is never part of a message.
"""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

from huggingface_hub import CommitOperationAdd, HfApi
from huggingface_hub.errors import (
    EntryNotFoundError,
    HfHubHTTPError,
    HFValidationError,
    LocalTokenNotFoundError,
    RepositoryNotFoundError,
)

from cluster.store.base import (
    Entry,
    MissingKey,
    Store,
    StoreError,
    check_key,
    check_prefix,
    is_key,
)

PREFIX = "hf://"
_DATASET = re.compile(r"hf://datasets/([\w.-]{1,96}/[\w.-]{1,96})/?")

# What its versions raise where no answer comes, of requests or of httpx.
_NETWORK = (*HfHubHTTPError.__bases__, OSError)

T = TypeVar("T")


class HubStore(Store):
    """The files of a dataset's main branch; it is created, private, by the first write."""

    def __init__(self, uri: str) -> None:
        found = _DATASET.fullmatch(uri)
        if found is None:
            raise StoreError(
                f"{uri!r} names no dataset: write hf://datasets/OWNER/NAME, for an export alone"
            )
        self.dataset = found[1]
        endpoint = os.environ.get("HF_ENDPOINT")
        self._api = HfApi(endpoint=endpoint)

    def __repr__(self) -> str:
        return f"HubStore({self._root!r})"

    def get(self, key: str) -> bytes:
        check_key(key)
        with tempfile.TemporaryDirectory() as folder:
            path = self._ask(
                key,
                lambda: self._api.hf_hub_download(
                    self.dataset, key, repo_type="dataset", local_dir=folder
                ),
            )
            return Path(path).read_bytes()

    def put_new(self, key: str, data: bytes) -> bool:
        check_key(key)
        try:
            return self._same_or_raise(key, data)
        except MissingKey:
            self.put_all({key: data})
            return True

    def put(self, key: str, data: bytes) -> None:
        self.put_all({key: data})

    def put_all(self, files: Mapping[str, bytes]) -> None:
        """Create or replace several objects in one commit: all of them are there, or none.

        Raises StoreError where that fails.
        """
        for key in files:
            check_key(key)
        added = [CommitOperationAdd(key, data) for key, data in files.items()]
        first, more = next(iter(files)), f" and {len(files) - 1} more" * (len(files) > 1)
        self._ask(
            first,
            lambda: self._api.create_commit(
                self.dataset, added, commit_message=f"Add {first}{more}", repo_type="dataset"
            ),
        )

    def exists(self, key: str) -> bool:
        check_key(key)
        return key in set(self.list())

    def list(self, prefix: str = "") -> Iterator[str]:
        return (entry.key for entry in self.entries(prefix))

    def entries(self, prefix: str = "") -> Iterator[Entry]:
        check_prefix(prefix)
        try:
            names = self._ask(
                prefix, lambda: self._api.list_repo_files(self.dataset, repo_type="dataset")
            )
        except MissingKey:
            return iter(())
        found = sorted(name for name in names if name.startswith(prefix) and is_key(name))
        return (Entry(name, 0, 0.0) for name in found)  # sizes and ages it does not tell here

    def delete(self, key: str) -> None:
        raise StoreError(f"{self.uri(key)} is not deleted: an export deletes nothing")

    def uri(self, key: str) -> str:
        check_key(key)
        return f"{self._root}/{key}"

    def probe(self) -> None:
        """Check that there is a token, and create the dataset, private, where there is none."""
        self._ask(
            "",
            lambda: self._api.create_repo(
                self.dataset, repo_type="dataset", private=True, exist_ok=True
            ),
        )

    @property
    def _root(self) -> str:
        return f"hf://datasets/{self.dataset}"

    def _ask(self, key: str, request: Callable[[], T]) -> T:
        """Return what a request returns; raise a StoreError outside of any `except`, as the
        client's errors carry addresses and headers."""
        try:
            return request()
        except Exception as error:
            judged = _judge(error, f"{self._root}/{key}".rstrip("/"))
            if judged is None:
                raise
        raise judged


def _judge(error: Exception, uri: str) -> StoreError | None:
    """What an error of the client means; None where it is none of its."""
    if isinstance(error, EntryNotFoundError | RepositoryNotFoundError):
        # The Hub says the same of a dataset that the token may not see.
        return MissingKey(f"there is no {uri}, or the token may not see it: check HF_TOKEN")
    if isinstance(error, LocalTokenNotFoundError):
        return StoreError(f"no token was found for {uri}: set HF_TOKEN, or run hf auth login")
    if isinstance(error, HFValidationError):
        return StoreError(f"{uri} names no dataset: write hf://datasets/OWNER/NAME")
    if isinstance(error, HfHubHTTPError):
        answer: Any = error.response
        status = 0 if answer is None else int(answer.status_code)
        if status in (401, 403):
            return StoreError(
                f"{uri} was refused (status {status}): give a token that may write there, in "
                "HF_TOKEN"
            )
        fix = "try again later" if status in (408, 429) or status >= 500 else "check the name"
        return StoreError(f"{uri} failed, the Hub answers {status}: {fix}")
    if isinstance(error, _NETWORK):
        name = type(error).__name__
        return StoreError(f"the Hub cannot be reached for {uri} ({name}): check the network")
    return None
