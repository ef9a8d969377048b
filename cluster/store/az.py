"""A store in a container of Azure Blob Storage, by azure-storage-blob's client for every byte.

A conditional put is an upload with If-None-Match. Uploads carry an MD5 of each request's bytes;
blobs carry the sha256 of theirs as metadata, which every reading is compared with. Account and
credentials come from AZURE_STORAGE_CONNECTION_STRING, or from AZURE_STORAGE_ACCOUNT with
AZURE_STORAGE_KEY, AZURE_STORAGE_SAS_TOKEN or an identity that azure-identity finds.
"""

from __future__ import annotations

import hashlib
import mimetypes
import os
import re
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from azure.core.exceptions import (
    AzureError,
    ClientAuthenticationError,
    HttpResponseError,
    ResourceExistsError,
    ResourceModifiedError,
)
from azure.identity import DefaultAzureCredential
from azure.storage.blob import ContainerClient, ContentSettings

from cluster.store.base import Entry, MissingKey, StoreError, TooLarge, is_key
from cluster.store.remote import Again, Damaged, Decision, RemoteStore, checked

PAGE = 5000  # keys in an answer to a list
CONNECTION = "AZURE_STORAGE_CONNECTION_STRING"
ACCOUNT = "AZURE_STORAGE_ACCOUNT"
SECRETS = ("AZURE_STORAGE_KEY", "AZURE_STORAGE_SAS_TOKEN")


class AzureStore(RemoteStore):
    """Objects under `az://container/prefix`."""

    scheme = "az"
    expected = (AzureError, Damaged, OSError, ValueError)
    telltales = ("azure", "urllib3", "msal")  # of tokens, and of addresses that are signed

    def get(self, key: str, most: int | None = None) -> bytes:
        name = self._name(key)

        def read_whole(client: Any) -> bytes:
            blob = client.download_blob(name)
            if most is not None and blob.size > most:
                raise TooLarge.than(most, self.uri(key), blob.size)
            data: bytes = blob.readall()
            stored = (blob.properties.metadata or {}).get("sha256", "")
            return checked(data, stored, "Azure")

        return self._ask(key, read_whole)

    def _creation(self, key: str, data: bytes) -> Callable[[Any], bool]:
        upload = self._upload(key, data)

        def create(client: Any) -> bool:
            try:
                upload(client, overwrite=False)
            except ResourceModifiedError:  # of blocks, when they are put together
                return False
            except ResourceExistsError as error:
                if _code(error) != "BlobAlreadyExists":
                    raise
                return False
            return True

        return create

    def put(self, key: str, data: bytes) -> None:
        upload = self._upload(key, data)
        self._ask(key, lambda client: upload(client, overwrite=True))

    def _upload(self, key: str, data: bytes) -> Callable[..., None]:
        name = self._name(key)
        settings = ContentSettings(
            content_type=mimetypes.guess_type(key)[0] or "application/octet-stream"
        )
        metadata = {"sha256": hashlib.sha256(data).hexdigest()}

        def upload(client: Any, overwrite: bool) -> None:
            client.upload_blob(
                name,
                data,
                overwrite=overwrite,
                metadata=metadata,
                content_settings=settings,
                validate_content=True,
            )

        return upload

    def _look(self, key: str) -> Callable[[Any], Any]:
        name = self._name(key)
        return lambda client: client.get_blob_client(name).get_blob_properties()

    def _entries(self, prefix: str) -> Iterator[Entry]:
        every: list[Entry] = []
        token = None
        while True:
            found, token = self._ask(prefix, partial(self._page, prefix, token))
            for blob in found:
                key = blob.name.removeprefix(self._folder)
                if is_key(key) and not _is_folder(blob):
                    every.append(Entry(key, blob.size, blob.last_modified.timestamp()))
            if not token:
                break
        # Accounts with folders list those before what lies beside them.
        every.sort(key=lambda entry: entry.key.encode())
        yield from every

    def _page(self, prefix: str, token: str | None, client: Any) -> tuple[list[Any], str | None]:
        pages = client.list_blobs(
            name_starts_with=self._folder + prefix, results_per_page=PAGE, include=["metadata"]
        ).by_page(token)
        return list(next(pages, ())), pages.continuation_token

    def delete(self, key: str) -> None:
        name = self._name(key)
        try:
            self._ask(key, lambda client: client.delete_blob(name))
        except MissingKey:
            return

    def _new_client(self) -> Any:
        patience = self._patience
        how = {
            "retry_total": 0,  # the store repeats requests by itself
            "connection_timeout": patience.connect_timeout,
            "read_timeout": patience.read_timeout,
        }
        connection = os.environ.get(CONNECTION)
        if connection:
            return ContainerClient.from_connection_string(connection, self.bucket, **how)
        account = os.environ.get(ACCOUNT, "")
        if not re.fullmatch("[a-z0-9]{3,24}", account):
            raise StoreError(
                f"no credentials were found for {self._root}: set {CONNECTION}, or {ACCOUNT} (its "
                f"name alone) with {SECRETS[0]} or {SECRETS[1]}, or an identity of the machine"
            )
        secret = next(filter(None, map(os.environ.get, SECRETS)), None)
        credential = secret or DefaultAzureCredential(exclude_interactive_browser_credential=True)
        where = f"https://{account}.blob.core.windows.net"
        return ContainerClient(where, self.bucket, credential=credential, **how)

    def _judge(self, error: Exception, uri: str) -> Decision:
        if isinstance(error, Damaged):
            return Decision(StoreError(f"{uri} {error}"), Again.LATER)
        if isinstance(error, HttpResponseError) and error.status_code:
            return _judge_answer(int(error.status_code), _code(error), uri, self.bucket)
        if isinstance(error, ClientAuthenticationError):
            said = (
                f"no credentials were found for {uri}: set {CONNECTION}, {SECRETS[0]} or "
                f"{SECRETS[1]}, or give the machine an identity"
            )
            return Decision(StoreError(said), Again.WITH_FRESH_CREDENTIALS)
        if isinstance(error, ValueError):
            said = f"{CONNECTION} cannot be read, needed for {uri}: copy it from the account again"
            return Decision(StoreError(said))
        if "CERTIFICATE_VERIFY_FAILED" in str(error):
            said = (
                f"the certificate of {_account()} is not trusted, needed for {uri}: set "
                "REQUESTS_CA_BUNDLE to a file with the certificate of the authority that signed it"
            )
            return Decision(StoreError(said))
        name = type(error).__name__
        said = f"{_account()} cannot be reached for {uri} ({name}): check {ACCOUNT} and the network"
        return Decision(StoreError(said), Again.LATER)


def _is_folder(blob: Any) -> bool:
    """Whether it stands for a folder, in accounts that have them."""
    return (blob.metadata or {}).get("hdi_isfolder") == "true"


def _account() -> str:
    """Whose account it is, as far as the environment says it without a secret."""
    connection = os.environ.get(CONNECTION, "")
    found = re.search(r"AccountName=([a-z0-9]{3,24})", connection)
    name = found[1] if found else os.environ.get(ACCOUNT, "")
    return f"the Azure account {name}" if re.fullmatch("[a-z0-9]{3,24}", name) else "Azure"


def _code(error: Any) -> str:
    """The error code of an answer, or ''."""
    code = getattr(error, "error_code", None) or ""
    code = str(getattr(code, "value", code))
    return code if re.fullmatch("[A-Za-z]{1,64}", code) else ""


_DENIED = (
    "access is denied: grant Storage Blob Data Contributor on the container, or a SAS that may "
    "read, write, delete and list"
)
_REFUSALS = {
    **dict.fromkeys(
        (
            *("AuthorizationPermissionMismatch", "AuthorizationServiceMismatch"),
            "AuthorizationResourceTypeMismatch",
            *("AuthorizationProtocolMismatch", "AuthorizationSourceIPMismatch"),
            *("InsufficientAccountPermissions", "KeyBasedAuthenticationNotPermitted"),
        ),
        _DENIED,
    ),
    # Some servers answer so to a wrong key, too.
    "AuthorizationFailure": f"{_DENIED}; check the key, too, and the account's network rules",
    "AccountIsDisabled": "the account is disabled: ask who owns it, or use another",
    "BlobArchived": "it is archived: rehydrate it first, or use another root",
    "BlobImmutableDueToPolicy": "a policy forbids changing it: use another root",
    "ContainerDisabled": "the container is disabled: ask who owns it, or use another",
    "ContainerQuotaDownloadLimitExceeded": "the account's quota is used up: raise it",
    "LeaseIdMissing": "somebody holds a lease on it: break the lease, or use another root",
    "RequestBodyTooLarge": "Azure takes no blob so large: make it smaller",
    "UnauthorizedBlobOverwrite": _DENIED,
}
_CREDENTIALS = {
    "AuthenticationFailed",
    "InvalidAuthenticationInfo",
    "NoAuthenticationInformation",
}
_PASSING = {"ContainerBeingDeleted", "Md5Mismatch", "OperationTimedOut", "ServerBusy"}


def _judge_answer(status: int, code: str, uri: str, container: str) -> Decision:
    """Say what a status other than 2xx means."""
    if code == "ContainerNotFound":
        return Decision(
            StoreError(
                f"container {container!r} does not exist at {_account()}: create it or correct the "
                "az:// root"
            )
        )
    if code in _CREDENTIALS or status == 401:
        return Decision(
            StoreError(
                f"{uri} was refused, the key, SAS token or identity is not valid or has expired: "
                f"check {CONNECTION}, {SECRETS[0]} or {SECRETS[1]}, and this machine's clock"
            ),
            Again.WITH_FRESH_CREDENTIALS,
        )
    if status == 404:
        return Decision(MissingKey(f"there is no object {uri}: check the key"))
    if code in _REFUSALS:
        return Decision(StoreError(f"{uri} was refused, {_REFUSALS[code]}"))
    if status == 403:
        return Decision(StoreError(f"{uri} was refused ({code or 'status 403'}), {_DENIED}"))
    passing = code in _PASSING or status in (408, 429) or (status >= 500 and status != 501)
    fix = "try again later" if passing else "check the store's documentation"
    answer = f"{status} {code}".strip()
    return Decision(
        StoreError(f"{uri} failed, the store answers {answer}: {fix}"),
        Again.LATER if passing else Again.NO,
    )
