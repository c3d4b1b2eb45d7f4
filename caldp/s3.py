"""The S3 client: which settings count, how long it tries, and what its errors mean.

boto3's AWS_* variables mean what they always mean, AWS_ENDPOINT_URL included.
"""

from __future__ import annotations

import base64
import hashlib
import re
import threading
import time
import zlib
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Executor, Future
from contextlib import contextmanager, suppress
from datetime import datetime
from functools import cache, partial
from pathlib import Path
from queue import SimpleQueue
from typing import Any, NoReturn, TypeVar
from urllib.parse import urlsplit

from caldp.aws import make, session_of
from caldp.errors import CaldpError, S3DownloadError, S3UploadError, UsageError

T = TypeVar("T")

#: Attempts of one request, with pauses of up to 20 s between them, unless AWS_MAX_ATTEMPTS says otherwise.
TRIES = 8

#: Requests in flight.
CONNECTIONS = 10

#: Size of the parts of a large object, bytes.
PART = 16 << 20

#: Actions of IAM whose names are not those of the operations.
_ACTIONS = {
    "HeadObject": "s3:GetObject",
    "ListObjectsV2": "s3:ListBucket",
    "DeleteObjects": "s3:DeleteObject",
    "CreateMultipartUpload": "s3:PutObject",
    "UploadPart": "s3:PutObject",
    "CompleteMultipartUpload": "s3:PutObject",
}

#: What S3 answers when it is too busy, or was interrupted.
_PASSING = (
    "SlowDown",
    "Throttling",
    "ThrottlingException",
    "RequestLimitExceeded",
    "RequestTimeout",
    "InternalError",
    "ServiceUnavailable",
    "BadDigest",
    "IncompleteBody",
)

_SIGN_IN = "sign in again (aws sso login)"

#: What is wrong with credentials and names, found by botocore before it asks S3, and the remedy.
_OUR_SIDE = {
    "NoCredentialsError": (
        "there are no AWS credentials",
        "export AWS_PROFILE, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or run where there is a role",
    ),
    "PartialCredentialsError": (
        "the AWS credentials are incomplete",
        "export both AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or neither",
    ),
    "CredentialRetrievalError": (
        "AWS credentials could not be had",
        "mend what the AWS profile asks for them (credential_process or role), or export AWS_PROFILE=<another>",
    ),
    "TokenRetrievalError": ("the AWS sign-in has expired", _SIGN_IN),
    "SSOTokenLoadError": ("nobody is signed in to AWS", _SIGN_IN),
    "UnauthorizedSSOTokenError": ("the AWS sign-in has expired", _SIGN_IN),
    "ProfileNotFound": (
        "there is no such AWS profile",
        "export AWS_PROFILE=<one that the AWS config or credentials file has>",
    ),
    "ParamValidationError": ("S3 allows no such name", "check it: s3://bucket/prefix"),
}

#: Before this header, in what http.client says; it may be the session token.
_BAD_HEADER = "Invalid header value"

_REMEDIES = {
    "NoSuchBucket": ("there is no such bucket", "check its name, or create it"),
    "InvalidBucketName": ("S3 allows no bucket of this name", "check it: s3://bucket/prefix"),
    "AccessDenied": ("access denied", ""),
    "403": ("access denied", ""),
    "AllAccessDisabled": ("access denied", ""),
    "InvalidAccessKeyId": ("S3 does not know this access key", "export the right AWS_ACCESS_KEY_ID"),
    "SignatureDoesNotMatch": ("S3 does not accept the secret key", "export the right AWS_SECRET_ACCESS_KEY"),
    "ExpiredToken": ("the AWS credentials have expired", "sign in again"),
    "InvalidToken": ("S3 does not accept the session token", "sign in again"),
    "InvalidObjectState": ("it is in cold storage", "restore it first"),
    "RequestTimeTooSkewed": ("the clock of this machine is wrong", "set it right"),
    "PermanentRedirect": ("the bucket is in another region", "export AWS_REGION=<that region>"),
    "AuthorizationHeaderMalformed": ("the bucket is in another region", "export AWS_REGION=<that region>"),
}


def client(aws: Mapping[str, str], *, anonymous: bool = False, **options: Any) -> Any:  # noqa: ANN401 - see below
    """Make a client; botocore makes its class at run time.

    Parameters
    ----------
    aws : mapping
        AWS_* variables that count instead of those of the environment.
    anonymous : bool, optional
        Sign nothing, for public buckets.
    **options
        Of ``botocore.config.Config``, instead of ours.

    Returns
    -------
    botocore client

    Raises
    ------
    UsageError
        If a setting makes no sense.
    botocore.exceptions.BotoCoreError
        If it is the credentials: see ``explained``.
    """
    from botocore.exceptions import BotoCoreError, ConfigParseError, InvalidRegionError

    try:
        made = _client(aws, anonymous, options)
        if "@" in made.meta.endpoint_url:
            raise ValueError("user@host")
        _ = urlsplit(made.meta.endpoint_url).port  # ValueError if it is none
    except (BotoCoreError, ValueError, OSError) as error:
        if type(error).__name__ in _OUR_SIDE:
            raise
        what, remedy = _short(error), "correct that AWS_* variable, or the AWS config file"
        if isinstance(error, InvalidRegionError):
            remedy = "export AWS_REGION=<that of the bucket>"
        elif isinstance(error, ConfigParseError):
            remedy = "mend that file, or point AWS_CONFIG_FILE or AWS_SHARED_CREDENTIALS_FILE at another"
        elif not isinstance(error, (BotoCoreError, OSError)) and not what.startswith("Unsupported host"):
            said = "it has a user or a password in it" if "@" in str(error) else what
            what = f"AWS_ENDPOINT_URL (or AWS_ENDPOINT_URL_S3, or endpoint_url in the AWS config file) is wrong: {said}"
            remedy = "write scheme, host and port, for example export AWS_ENDPOINT_URL=http://127.0.0.1:9000"
        raise UsageError(f"S3 cannot be used with these settings: {what}", remedy=remedy) from None
    return made


def _client(aws: Mapping[str, str], anonymous: bool, options: dict[str, Any]) -> Any:  # noqa: ANN401 - see client
    from botocore import UNSIGNED

    session = session_of(aws)
    tries = TRIES if "retries" in options else _tries(aws, session)
    # Not the standard mode: its quota gives up on all requests when a burst of them has met a busy server.
    ours: dict[str, Any] = {
        "retries": {"mode": "legacy", "total_max_attempts": tries},
        "max_pool_connections": 2 * CONNECTIONS,
        "connect_timeout": 10,
        "read_timeout": 60,
    }
    if anonymous:
        ours["signature_version"] = UNSIGNED
    session.register_component("data_loader", _descriptions(session.get_config_variable("data_path")))
    session.get_component("response_parser_factory").set_parser_defaults(timestamp_parser=_time)
    return make("s3", aws, session=session, otherwise="us-east-1", **ours | options)


def _time(value: Any) -> datetime:  # noqa: ANN401 - whatever an answer has there
    """Read a time: botocore tries many forms, which takes three quarters of the time of reading a listing."""
    from botocore.utils import parse_timestamp

    if isinstance(value, str) and value[4:5] == "-":
        with suppress(ValueError):
            return datetime.fromisoformat(value)
    parsed: datetime = parse_timestamp(value)
    return parsed


def _tries(aws: Mapping[str, str], session: Any) -> int:  # noqa: ANN401 - see client
    try:
        text = aws.get("AWS_MAX_ATTEMPTS") or session.get_config_variable("max_attempts")
        tries = TRIES if text is None else int(text)
        if tries < 1:
            raise ValueError(tries)
    except ValueError:
        raise UsageError(
            "AWS_MAX_ATTEMPTS (or max_attempts in the AWS config file) is not a whole number from 1",
            remedy=f"export AWS_MAX_ATTEMPTS={TRIES}",
        ) from None
    return tries


@cache
def _descriptions(path: str | None) -> Any:  # noqa: ANN401 - see client
    """Return botocore's descriptions of services: to read them takes longer than all else about a client."""
    import botocore.loaders

    return botocore.loaders.create_loader(path)


class _Crc32:
    """The CRC-32 of zlib, in the manner of hashlib."""

    def __init__(self) -> None:
        self._value = 0

    def update(self, data: bytes) -> None:
        self._value = zlib.crc32(data, self._value)

    def digest(self) -> bytes:
        return self._value.to_bytes(4, "big")


#: Checksums that S3 may have kept of an object, and that we can compute.
_CHECKSUMS: dict[str, Callable[[], Any]] = {
    "ChecksumSHA256": hashlib.sha256,
    "ChecksumSHA1": partial(hashlib.sha1, usedforsecurity=False),
    "ChecksumCRC32": _Crc32,
}


def differs(client: Any, bucket: str, key: str, path: Path, etag: str) -> str:  # noqa: ANN401 - see client
    """Say why a downloaded file is not the object, as far as the checksums that S3 has kept can tell.

    What comes in one answer botocore verifies itself; the parts of a large object come without checksums, unless they
    happen to be those of its upload.

    Parameters
    ----------
    client : botocore client
        That reads it.
    bucket, key : str
        The object.
    path : Path
        The file.
    etag : str
        Of the object as it was listed.

    Returns
    -------
    str
        Empty if nothing is wrong, or nobody knows.
    """
    told = client.head_object(Bucket=bucket, Key=key, ChecksumMode="ENABLED")
    if told["ETag"] != etag:
        return "it was replaced while it was read"
    name = next((name for name in _CHECKSUMS if name in told), "")
    if not name:
        return ""
    checksum, size = told[name].partition("-")[0], path.stat().st_size
    # Of an object that was uploaded in parts: the checksum of their checksums, unless S3 says otherwise.
    count = 1 if told.get("ChecksumType") == "FULL_OBJECT" else int(etag.strip('"').partition("-")[2] or 1)
    part = client.head_object(Bucket=bucket, Key=key, PartNumber=1)["ContentLength"] if count > 1 else size
    if -(-size // max(part, 1)) != count:
        return ""  # parts of several sizes
    digests = list(_digests(path, part, _CHECKSUMS[name]))
    whole = _CHECKSUMS[name]()
    whole.update(b"".join(digests))
    ours = digests[0] if count == 1 else whole.digest()
    return "" if base64.b64encode(ours).decode() == checksum else f"{name} of what arrived is another"


def _digests(path: Path, part: int, make: Callable[[], Any]) -> Iterator[bytes]:
    with path.open("rb") as reader:
        for left in range(path.stat().st_size, 0, -part):
            digest, rest = make(), min(part, left)
            while rest and (data := reader.read(min(rest, 1 << 20))):
                digest.update(data)
                rest -= len(data)
            yield digest.digest()


@contextmanager
def transfers(client: Any) -> Iterator[Any]:  # noqa: ANN401 - s3transfer has no types
    """Move files in parallel: gives a TransferManager.

    A run that is stopped (an exception that is no ``Exception``) does not wait for a server that is silent.
    """
    from s3transfer.manager import TransferConfig, TransferManager

    config = TransferConfig(
        multipart_threshold=PART,
        multipart_chunksize=PART,
        max_request_concurrency=CONNECTIONS,
        num_download_attempts=TRIES,
    )
    manager = TransferManager(client, config, executor_cls=Threads)
    # Its end cancels what is left, if there was an exception, and then waits (shutdown(cancel=True) is broken).
    try:
        yield manager
    except Exception as error:
        manager.__exit__(type(error), error, None)
        raise
    except BaseException as stop:
        threading.Thread(target=manager.__exit__, args=(type(stop), stop, None), daemon=True).start()
        raise
    manager.shutdown()


class Threads(Executor):
    """Threads like those of ThreadPoolExecutor, but the end of the interpreter does not wait for them."""

    def __init__(self, max_workers: int) -> None:
        self._most = max_workers
        self._todo: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._threads: list[threading.Thread] = []
        self._lock = threading.Lock()

    def submit(self, act: Callable[..., T], /, *args: Any, **options: Any) -> Future[T]:  # noqa: ANN401 - as it is called
        future: Future[T] = Future()

        def task() -> None:
            if not future.set_running_or_notify_cancel():
                return
            try:
                future.set_result(act(*args, **options))
            except BaseException as error:
                future.set_exception(error)

        self._todo.put(task)
        with self._lock:
            if len(self._threads) < self._most:
                self._threads.append(threading.Thread(target=self._work, daemon=True))
                self._threads[-1].start()
        return future

    def _work(self) -> None:
        while task := self._todo.get():
            task()

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        self._end(None if wait else 0)

    def leave(self, seconds: float = 2) -> None:
        """Let what is under way end, but for no longer than this."""
        self._end(seconds)

    def _end(self, seconds: float | None) -> None:
        with self._lock:
            threads = list(self._threads)
        for _ in threads:
            self._todo.put(None)
        until = None if seconds is None else time.monotonic() + seconds
        for thread in threads:
            thread.join(None if until is None else max(0, until - time.monotonic()))


def persist(read: Callable[[], T]) -> T:
    """Read again when an answer broke off or came damaged: botocore repeats requests, but not their bodies."""
    import tenacity
    import urllib3
    from botocore.exceptions import FlexibleChecksumError, HTTPClientError, IncompleteReadError, ReadTimeoutError

    broken = (
        FlexibleChecksumError,
        HTTPClientError,
        IncompleteReadError,
        ReadTimeoutError,
        urllib3.exceptions.HTTPError,
    )
    return tenacity.retry(
        retry=tenacity.retry_if_exception(lambda error: isinstance(error, broken) and _BAD_HEADER not in str(error)),
        stop=tenacity.stop_after_attempt(TRIES),
        wait=tenacity.wait_random_exponential(max=20),
        reraise=True,
    )(read)()


def explained(where: str, act: Callable[[], T], passing: type[CaldpError], refused: type[CaldpError]) -> T:
    """Call ``act``, and turn what boto3 raises into an error that a reader understands.

    Parameters
    ----------
    where : str
        The object, for the message.
    act : callable
        A request.
    passing, refused : type
        Errors to raise when it may work later, and when it will not.

    Returns
    -------
    Whatever ``act`` returns.
    """
    from botocore.exceptions import BotoCoreError, ClientError
    from s3transfer.exceptions import CancelledError, RetriesExceededError, S3DownloadFailedError, S3ValidationError

    try:
        return act()
    except ClientError as error:
        status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
        if code(error) in _PASSING or status >= 500:
            raise passing(f"{where}: {_said(error)}, again and again", remedy="run it again later") from error
        _refuse(refused, where, error)
    except S3DownloadFailedError as error:
        raise passing(f"{where}: it was replaced while it was read", remedy="run it again") from error
    except (RetriesExceededError, S3ValidationError, CancelledError) as error:
        cause = getattr(error, "last_exception", None) or error
        raise passing(f"{where}: the transfer broke off ({_short(cause)})", remedy="run it again later") from error
    except BotoCoreError as error:
        if type(error).__name__ in _OUR_SIDE:
            _refuse(refused, where, error)
        if _BAD_HEADER in str(error):
            what = "the AWS credentials have a line break in them"
            raise refused(f"{where}: {what}", remedy="export them again, without it") from None
        remedy = "check the network and AWS_ENDPOINT_URL, or run it again later"
        raise passing(f"{where}: {_short(error)}", remedy=remedy) from error


@contextmanager
def concerning(dataset: str) -> Iterator[None]:
    """Name the dataset in what a store says of its objects."""
    try:
        yield
    except (S3DownloadError, S3UploadError) as error:
        raise type(error)(f"{dataset}: {error.message}", remedy=error.remedy) from error.__cause__


def _refuse(kind: type[CaldpError], where: str, error: Exception) -> NoReturn:
    """Raise the error that explains why S3, or botocore before it, does not even try."""
    from botocore.exceptions import ClientError

    if isinstance(error, ClientError):
        operation = error.operation_name
        action = _ACTIONS.get(operation, f"s3:{operation}")
        what, remedy = _REMEDIES.get(code(error), (_said(error), f"check that you may ({action})"))
        raise kind(f"{where}: {what}", remedy=remedy or f"you need {action} there") from error
    what, remedy = _OUR_SIDE[type(error).__name__]
    raise kind(f"{where}: {what} ({_short(error)})", remedy=remedy) from error


def code(error: Any) -> str:  # noqa: ANN401 - a ClientError, which has no types
    return str((getattr(error, "response", None) or {}).get("Error", {}).get("Code", ""))


def _said(error: Any) -> str:  # noqa: ANN401 - a ClientError, which has no types
    return f"S3 says {code(error)}: {error.response.get('Error', {}).get('Message', '')}"[:300].rstrip(" .:")


def _short(error: BaseException) -> str:
    """Return what botocore says, without queries of URLs and the regular expressions of names."""
    text = " ".join(str(error).split()).removeprefix("Parameter validation failed: ")
    text = re.sub(r"(\w+://[^\s\"'?]*)\?[^\s\"']*", r"\1", text.partition(": Bucket name must match")[0])
    return text[:300].rstrip(" .") or type(error).__name__
