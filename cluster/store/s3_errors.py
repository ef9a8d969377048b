"""What an error of botocore means: a sentence, and whether asking again can help.

The sentences quote nothing but error codes: botocore's own messages carry key ids, signatures (in
redirects) and whole answers.
"""

from __future__ import annotations

import os
import re

from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    ConfigParseError,
    CredentialRetrievalError,
    HTTPClientError,
    IncompleteReadError,
    NoCredentialsError,
    PartialCredentialsError,
    ProfileNotFound,
    ResponseStreamingError,
    SSLError,
    SSOError,
    TokenRetrievalError,
)
from botocore.exceptions import ConnectionError as NoConnectionError
from botocore.parsers import ResponseParserError
from urllib3.exceptions import HTTPError

from cluster.store.base import MissingKey, StoreError
from cluster.store.remote import Again, Damaged, Decision
from cluster.store.s3_client import endpoint_url

EXPECTED = (BotoCoreError, ClientError, Damaged, HTTPError, OSError, ResponseParserError)


def judge(error: Exception, uri: str, bucket: str) -> Decision:
    """Return what an `EXPECTED` error of a request about `uri` means."""
    if isinstance(error, ClientError):
        return _judge_refusal(error, uri, bucket)
    if isinstance(error, Damaged):
        return Decision(StoreError(f"{uri} {error}"), Again.LATER)
    if isinstance(error, IncompleteReadError | ResponseStreamingError):
        return Decision(
            StoreError(f"{uri} broke off in every reading: check the network to S3"), Again.LATER
        )
    if isinstance(error, ResponseParserError):
        return Decision(
            StoreError(f"{uri} was answered with damaged XML: check the network to S3"),
            Again.LATER,
        )
    return _judge_client(error, uri)


def code_of(error: ClientError) -> str:
    """Return the error code of an answer, or '' for what cannot be one, as the status of a HEAD."""
    code = str(error.response.get("Error", {}).get("Code", ""))
    return code if re.fullmatch(r"[A-Za-z][A-Za-z0-9.]{,63}", code) else ""


def status_of(error: ClientError) -> int:
    return int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))


_DISABLED = "the access key or its account is disabled: ask who runs the store, or use another key"
_BY_HOST_NAME = (
    "the store takes buckets in host names alone: set `addressing_style = virtual` under `s3 =` in "
    "the AWS configuration file (AWS_CONFIG_FILE)"
)
_ARCHIVED = "it is archived: restore it to a class that can be read at once, or use another root"
_REFUSALS = {
    "AccessDenied": (
        "access is denied: grant s3:GetObject, s3:PutObject and s3:ListBucket there (and where the "
        "requester pays, set AWS_REQUEST_PAYER=requester)"
    ),
    "AccountProblem": _DISABLED,
    "AccountDisabled": _DISABLED,
    "AccountSuspended": _DISABLED,
    "AccessKeyDisabled": _DISABLED,
    "AllAccessDisabled": _DISABLED,
    "InactiveAccessKey": _DISABLED,
    "InvalidPayer": _DISABLED,
    "NotSignedUp": _DISABLED,
    "UserDisable": _DISABLED,
    "UserSuspended": _DISABLED,
    "InvalidObjectState": _ARCHIVED,
    "InvalidPathAccess": _BY_HOST_NAME,
    "PathStyleDomainForbidden": _BY_HOST_NAME,
    "PathStyleNotSupported": _BY_HOST_NAME,
    "SecondLevelDomainForbidden": _BY_HOST_NAME,
    "VirtualHostDomainRequired": _BY_HOST_NAME,
    "EntityTooLarge": "the store takes no object so large: raise its limit, or use another",
    "MethodNotAllowed": "the store forbids this operation here: use another root or store",
    "NotImplemented": "the store lacks an operation we need (conditional puts?): use another",
    "RequestTimeTooSkewed": "this machine's clock is wrong: set it",
}

# Also what a file of credentials that was half rewritten leads to.
_CREDENTIALS = {
    "ExpiredToken": "the credentials have expired: renew them",
    "ExpiredTokenException": "the credentials have expired: renew them",
    "InvalidAccessKeyId": "the endpoint does not know this access key: check AWS_ACCESS_KEY_ID",
    "InvalidToken": "the session token is not valid: renew AWS_SESSION_TOKEN",
    "RequestExpired": "the credentials have expired: renew them",
    "SignatureDoesNotMatch": "the secret key is not this access key's: check AWS_SECRET_ACCESS_KEY",
    "TokenRefreshRequired": "the credentials have expired: renew them",
}

_PASSING_STATUSES = {408, 409, 429, 499}  # and those from 500
_PASSING_CODES = {
    "BadDigest": "was damaged on its way in every attempt: check the network to S3",
    "IncompleteBody": "broke off on its way in every attempt: check the network to S3",
    "XAmzContentSHA256Mismatch": "was damaged on its way in every attempt: check the network to S3",
    "ConditionalRequestConflict": "stayed in conflict with other writers: run it again",
    "OperationAborted": "stayed in conflict with other writers: run it again",
    "RequestTimeout": "took too long on its way in every attempt: check the network to S3",
}


def _refusal(code: str) -> str | None:
    """What a code says that only people can mend, or None."""
    if re.search("Quota|StorageFull|InsufficientStorage|CapExceeded", code):
        return "the store's quota is used up, or its disk is full: free some space or raise it"
    if code.startswith("KMS."):
        return (
            f"its encryption key cannot be used ({code}): check AWS_SSE_KMS_KEY_ID, the key's "
            "state, and that this user may use it"
        )
    return _REFUSALS.get(code)


def _judge_refusal(error: ClientError, uri: str, bucket: str) -> Decision:
    """Say what a status other than 2xx means."""
    code, status = code_of(error), status_of(error)
    if code == "NoSuchBucket":
        where = endpoint_url() or "AWS"
        return Decision(
            StoreError(
                f"bucket {bucket!r} does not exist at {where}: create it or correct the s3:// root"
            )
        )
    if code in _PASSING_CODES:
        return Decision(StoreError(f"{uri} {_PASSING_CODES[code]}"), Again.LATER)
    if code in _CREDENTIALS:
        return Decision(
            StoreError(f"{uri} was refused, {_CREDENTIALS[code]}"), Again.WITH_FRESH_CREDENTIALS
        )
    if status == 404:
        return Decision(MissingKey(f"there is no object {uri}: check the key"))
    if said := _refusal(code):
        return Decision(StoreError(f"{uri} was refused, {said}"))
    if status == 403:
        # What answers a HEAD has no body, and so no code.
        why = f"for the reason {code}" if code else "without a reason"
        return Decision(
            StoreError(
                f"{uri} was refused {why} (status 403): check the store's documentation and the "
                "permissions of this access key"
            )
        )
    if status == 301 or code == "AuthorizationHeaderMalformed":
        return Decision(
            StoreError(f"{uri} is in another region: set AWS_DEFAULT_REGION to the bucket's")
        )
    passing = status in _PASSING_STATUSES or (status >= 500 and status != 501)
    fix = "try again later" if passing else "check the store's documentation"
    answer = f"{status} {code}".strip()
    return Decision(
        StoreError(f"{uri} failed, the store answers {answer}: {fix}"),
        Again.LATER if passing else Again.NO,
    )


_NO_CREDENTIALS = (
    ConfigParseError,
    CredentialRetrievalError,
    NoCredentialsError,
    PartialCredentialsError,
    SSOError,
    TokenRetrievalError,
)


def _judge_client(error: Exception, uri: str) -> Decision:
    """Say why no answer came."""
    where = endpoint_url() or "the AWS endpoint"
    if isinstance(error, _NO_CREDENTIALS):
        return Decision(
            StoreError(
                f"no credentials were found for {uri}: set AWS_ACCESS_KEY_ID and "
                "AWS_SECRET_ACCESS_KEY, or AWS_PROFILE"
            ),
            Again.WITH_FRESH_CREDENTIALS,
        )
    if isinstance(error, ProfileNotFound):
        return Decision(
            StoreError(
                f"AWS_PROFILE is {os.environ.get('AWS_PROFILE')!r}, which the AWS configuration "
                "files lack: correct it"
            ),
            Again.WITH_FRESH_CREDENTIALS,
        )
    if found := re.search(r"CERTIFICATE_VERIFY_FAILED\]? certificate verify failed", str(error)):
        reason = re.match(r": ([A-Za-z0-9 .,:'\-]+)", str(error)[found.end() :])
        return Decision(
            StoreError(
                f"the certificate of {where} is not trusted "
                f"({reason[1].strip() if reason else 'verification failed'}), needed for {uri}: "
                "set AWS_CA_BUNDLE to a file with the certificate of the authority that signed it"
            )
        )
    bundle = os.environ.get("AWS_CA_BUNDLE")
    if bundle and not where.startswith("http:") and _lacks_certificates(bundle):
        return Decision(
            StoreError(
                f"AWS_CA_BUNDLE is {bundle!r}, which is no readable file of certificates: "
                "correct it"
            )
        )
    if isinstance(error, SSLError) and re.search(
        "WRONG_VERSION_NUMBER|UNKNOWN_PROTOCOL", str(error)
    ):
        return Decision(
            StoreError(f"{where} does not speak TLS, needed for {uri}: give it as http://host:port")
        )
    if isinstance(error, NoConnectionError | HTTPClientError | HTTPError | OSError):
        return Decision(
            StoreError(
                f"{where} cannot be reached for {uri} ({type(error).__name__}): check "
                "AWS_ENDPOINT_URL and the network"
            ),
            Again.LATER,
        )
    return Decision(
        StoreError(
            f"{uri} failed in the S3 client ({type(error).__name__}): check the AWS_* settings"
        )
    )


def _lacks_certificates(path: str) -> bool:
    try:
        with open(path, "rb") as file:
            return b"CERTIFICATE" not in file.read()
    except OSError:
        return True
