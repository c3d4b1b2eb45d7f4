"""A store in an S3 bucket, below a prefix.

S3 has no folders, no locks and no renames; it has conditional writes, and everything here stands on them.  A small
object is created or replaced only if it is what its writer saw.  A tree is published object by object, each one only
if it is still what the run saw when it was allowed to publish, and its seal last: a run that was taken for dead can
therefore never overwrite what its successor wrote.

boto3's AWS_* variables mean what they always mean, AWS_ENDPOINT_URL included.
"""

from __future__ import annotations

import contextlib
import email.utils
import functools
import hashlib
import math
import mimetypes
import os
import random
import shutil
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

from caldp import s3
from caldp.errors import (
    BusyError,
    S3DownloadError,
    S3DownloadRefusedError,
    S3UploadError,
    S3UploadRefusedError,
)
from caldp.store import (
    NO_SUMS,
    Blob,
    ConflictError,
    Copy,
    Create,
    Entry,
    NoObjectError,
    Progress,
    PutMode,
    Seal,
    Stored,
    Update,
    parse_uri,
    quietly,
    safe_key,
)

T = TypeVar("T")

#: Metadata of our objects: the run that published it, the write that made it, its sha256.
_RUN, _WRITE, _SHA256 = "caldp-run", "caldp-write", "caldp-sha256"

#: What S3 answers when a condition does not hold, or when a conditional write met another one in flight.
_IN_FLIGHT = ("ConditionalRequestConflict", "409")
_CONFLICTS = ("PreconditionFailed", "412", *_IN_FLIGHT)
_ABSENT = ("NoSuchKey", "NoSuchVersion", "404")

#: What S3 checks each request of an upload by.  What a file is, the sha256 in the manifest proves; to compute another
#: one on the way took a quarter more CPU, and more than twice that where the processor has no instructions for it.
_CHECKSUM = "CRC32"

#: How often a tree is looked at again in which somebody else writes.
_ROUNDS = 10

#: For so long, in seconds, a run may write without asking again whether the dataset is still its own.
_PERMISSION = 30.0

#: How often a file is fetched that arrives damaged.
_DOWNLOADS = 3

_CHUNK = 1 << 20


class _Permission:
    """Whether a run may still publish: asked again before each write when it is not known from just now.

    The time is that of a clock which goes on while the machine, or the process, is asleep: that is how runs come to be
    taken for dead.
    """

    def __init__(self, ours: Callable[[], set[str]]) -> None:
        self._ours = ours
        self._names: set[str] = set()
        self._known = -math.inf
        self._lock = threading.Lock()

    def renew(self) -> set[str]:
        """Ask; return the names of files that earlier runs published."""
        with self._lock:
            return self._renewed()

    def check(self) -> None:
        """Ask if it is not known from just now."""
        with self._lock:
            if _wakeful_clock() - self._known > _PERMISSION:
                self._renewed()

    def _renewed(self) -> set[str]:
        asked = _wakeful_clock()
        self._names |= self._ours()
        self._known = asked
        return self._names


def _wakeful_clock() -> float:
    return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))


def _refuse_deletions(bucket: str, errors: Iterable[Mapping[str, str]]) -> None:
    for failed in errors:
        raise S3UploadError(
            f"s3://{bucket}/{failed['Key']} cannot be removed (S3 says {failed['Code']})",
            remedy="check that you may delete it (s3:DeleteObject)",
        )


class S3Store:
    """Objects of a bucket whose keys begin with a prefix.

    Parameters
    ----------
    uri : str
        ``s3://bucket/prefix``.
    aws : mapping, optional
        AWS_* variables of a config script; by default those of the environment count, as everywhere.
    """

    exclusive = False

    def __init__(self, uri: str, aws: Mapping[str, str] | None = None) -> None:
        _, place = parse_uri(uri)
        self.bucket, _, prefix = place.removeprefix("//").partition("/")
        self.prefix = prefix.strip("/")
        self._aws = dict(aws or {})
        self._offset = timedelta()
        self._conditions: dict[str, PutMode] = {}
        self._stored: dict[str, Stored] = {}
        self._permission: _Permission | None = None

    @property
    def uri(self) -> str:
        return "/".join(["s3:/", self.bucket, *([self.prefix] if self.prefix else [])])

    def url(self, key: str = "") -> str:
        return f"{self.uri}/{key}" if key else self.uri

    def link(self, key: str, seconds: int = 3600) -> str:
        """Return an address from which anybody may read an object for so many seconds."""
        request = {"Bucket": self.bucket, "Key": self._key(key)}
        return str(self._client.generate_presigned_url("get_object", Params=request, ExpiresIn=seconds))

    def _key(self, key: str) -> str:
        return "/".join([*([self.prefix] if self.prefix else []), safe_key(key)])

    def _relative(self, key: str) -> str:
        return key[len(self.prefix) + 1 :] if self.prefix else key

    def clock(self) -> datetime:
        return datetime.now(UTC) + self._offset

    # ---- small objects

    def get(self, key: str) -> Blob | None:
        def read() -> Blob:
            answer = self._client.get_object(Bucket=self.bucket, Key=self._key(key))
            with contextlib.closing(answer["Body"]) as body:
                return Blob(body.read(), answer["ETag"])

        try:
            return self._reading(key, lambda: s3.persist(read))
        except NoObjectError:
            return None

    def put(self, key: str, data: bytes, mode: PutMode) -> str:
        target, write = self._key(key), os.urandom(8).hex()
        request = {
            "Bucket": self.bucket,
            "Key": target,
            "Body": data,
            "Metadata": {_WRITE: write},
            "ContentType": _content_type(key),
        }
        return self._writing(key, lambda: self._put({**request, **_condition(mode)}, key, write))

    def _put(self, request: Mapping[str, Any], key: str, write: str, tries: int = s3.TRIES) -> str:
        from botocore.exceptions import ClientError

        try:
            return str(self._client.put_object(**request)["ETag"])
        except ClientError as error:
            if s3.code(error) in _IN_FLIGHT and tries > 1:
                time.sleep(random.uniform(0.1, 1))  # noqa: S311 - no secret
                return self._put(request, key, write, tries - 1)
            if s3.code(error) not in (*_CONFLICTS, *_ABSENT) or not {"IfMatch", "IfNoneMatch"} & request.keys():
                raise
            # The first attempt may have succeeded, and its answer have been lost: then what is there is ours.
            if error.response["ResponseMetadata"].get("RetryAttempts"):
                with contextlib.suppress(NoObjectError):
                    there = self._head(key)
                    if there["Metadata"].get(_WRITE) == write:
                        return str(there["ETag"])
            raise ConflictError(key) from error

    def _head(self, key: str) -> dict[str, Any]:
        return self._reading(key, lambda: self._client.head_object(Bucket=self.bucket, Key=self._key(key)))

    def delete(self, *keys: str) -> None:
        targets = [self._key(key) for key in keys]
        if len(targets) == 1:
            self._writing(keys[0], lambda: self._client.delete_object(Bucket=self.bucket, Key=targets[0]))
        for start in range(0, len(targets) if len(targets) > 1 else 0, 1000):  # as many as one request may name
            named = {"Objects": [{"Key": target} for target in targets[start : start + 1000]], "Quiet": True}
            request = functools.partial(self._client.delete_objects, Bucket=self.bucket, Delete=named)
            _refuse_deletions(self.bucket, self._writing(keys[start], request).get("Errors", ()))

    # ---- listings

    def names(self, prefix: str) -> list[str]:
        top = self._key(prefix) if prefix else self.prefix
        below = f"{top}/" if top else ""
        found = []
        for page in self._pages(below, Delimiter="/"):
            found += [entry["Key"] for entry in page.get("Contents", ())]
            found += [folder["Prefix"].removesuffix("/") for folder in page.get("CommonPrefixes", ())]
        return sorted(name for key in found if (name := key.removeprefix(below)))

    def walk(self, prefix: str) -> Iterator[Entry]:
        top = self._key(prefix) if prefix else self.prefix
        for page in self._pages(f"{top}/" if top else ""):
            for entry in page.get("Contents", ()):
                if not entry["Key"].endswith("/"):  # a folder that some console made
                    yield Entry(self._relative(entry["Key"]), entry["Size"], entry["ETag"])

    def beginning(self, stem: str) -> dict[str, Entry]:
        """List the objects directly below the prefix whose names begin alike: of a prefix that many share, few.

        Parameters
        ----------
        stem : str
            What the names begin with.

        Returns
        -------
        dict
            Name: object.
        """
        top = f"{self.prefix}/" if self.prefix else ""
        found = [entry for page in self._pages(f"{top}{stem}", Delimiter="/") for entry in page.get("Contents", ())]
        entries = [Entry(self._relative(entry["Key"]), entry["Size"], entry["ETag"]) for entry in found]
        return {entry.key: entry for entry in entries}

    def _pages(self, prefix: str, **more: str) -> Iterator[dict[str, Any]]:
        request: dict[str, str] = {"Bucket": self.bucket, "Prefix": prefix, **more}
        while True:
            page: dict[str, Any] = self._reading(
                "", lambda: self._client.list_objects_v2(**request), f"s3://{self.bucket}/{prefix}"
            )
            yield page
            if not page.get("IsTruncated"):
                return
            request["ContinuationToken"] = page["NextContinuationToken"]

    # ---- files

    def upload(
        self, copies: Iterable[Copy], progress: Progress = quietly, *, create: bool = False
    ) -> dict[str, Stored]:
        copies = list(copies)
        stored, _ = self._send(copies, {copy.key: Create() for copy in copies if create}, progress)
        return stored

    def download(self, copies: Iterable[Copy], progress: Progress = quietly) -> None:
        todo = list(copies)
        for attempt in range(_DOWNLOADS if todo else 0):
            todo = self._receive(todo, progress, last=attempt == _DOWNLOADS - 1)
            if not todo:
                return

    def _receive(self, copies: list[Copy], progress: Progress, *, last: bool) -> list[Copy]:
        """Download files; return those that came damaged, unless it is the last time: then raise."""
        from botocore.exceptions import FlexibleChecksumError

        damaged = []
        with s3.transfers(self._client) as manager:
            futures = []
            for copy in copies:
                extra = {"ChecksumMode": "ENABLED", **({"VersionId": copy.version} if copy.version else {})}
                target, told = self._key(copy.key), [_telling(progress), *_known(copy)]
                futures.append(manager.download(self.bucket, target, str(copy.path), extra, told))
            for copy, future in zip(copies, futures, strict=True):
                try:
                    self._reading(copy.key, future.result)
                except S3DownloadError as error:
                    if last or not isinstance(error.__cause__, FlexibleChecksumError):
                        raise
                    damaged.append(copy)
        return damaged

    def verify(self, copies: Iterable[Copy]) -> None:
        """Compare large files that were downloaded with the checksums that S3 keeps.

        Small ones were compared as they arrived.  Who knows a sha256 has no need of this.

        Parameters
        ----------
        copies : iterable of Copy
            As they were downloaded, with size and tag.

        Raises
        ------
        S3DownloadError
            If one is another.
        """
        for copy in copies:
            if copy.size < s3.PART:
                continue
            target = self._key(copy.key)
            request = functools.partial(s3.differs, self._client, self.bucket, target, copy.path, copy.etag)
            if why := self._reading(copy.key, request):
                raise S3DownloadError(f"{self.url(copy.key)}: {why}", remedy="run it again")

    def _send(
        self, copies: list[Copy], conditions: Mapping[str, PutMode], progress: Progress = quietly
    ) -> tuple[dict[str, Stored], list[str]]:
        """Upload files; return what became of them, and the keys whose condition did not hold."""
        conflicts = []
        self._conditions.update({self._key(key): mode for key, mode in conditions.items()})
        try:
            with s3.transfers(self._client) as manager:
                futures = []
                for copy in copies:
                    extra: dict[str, Any] = {"ChecksumAlgorithm": _CHECKSUM, "ContentType": _content_type(copy.key)}
                    extra |= {"Metadata": dict(copy.metadata)} if copy.metadata else {}
                    target = self._key(copy.key)
                    futures.append(manager.upload(str(copy.path), self.bucket, target, extra, [_telling(progress)]))
                for copy, future in zip(copies, futures, strict=True):
                    try:
                        self._writing(copy.key, future.result)
                    except S3UploadError as error:
                        if copy.key not in conditions or s3.code(error.__cause__) not in (*_CONFLICTS, *_ABSENT):
                            raise
                        conflicts.append(copy.key)
        finally:
            for key in conditions:
                self._conditions.pop(self._key(key), None)
        done = {copy.key for copy in copies} - set(conflicts)
        return {key: self._stored.pop(self._key(key)) for key in done}, conflicts

    # ---- trees

    def damaged(self, prefix: str, files: Iterable[Mapping[str, Any]]) -> list[str]:
        there = {entry.key: entry for entry in self.walk(prefix)}
        return [entry["name"] for entry in files if not self._is_intact(there, prefix, entry)]

    def _is_intact(self, there: Mapping[str, Entry], prefix: str, entry: Mapping[str, Any]) -> bool:
        found = there.get(f"{prefix}/{entry['name']}")
        if found is None or found.size != entry["size"]:
            return False
        # A tree that was copied here from elsewhere has other tags.
        return found.etag == entry.get("etag") or self._sha256(found.key) == entry["sha256"]

    def _sha256(self, key: str) -> str:
        def read() -> str:
            digest = hashlib.sha256()
            body = self._client.get_object(Bucket=self.bucket, Key=self._key(key))["Body"]
            with contextlib.closing(body):
                for chunk in body.iter_chunks(_CHUNK):
                    digest.update(chunk)
            return digest.hexdigest()

        return self._reading(key, lambda: s3.persist(read))

    @contextlib.contextmanager
    def own(self, name: str, *, take_over: bool = False) -> Iterator[None]:
        yield

    def staging(self, prefix: str, run: str, scratch: Path) -> Path:
        safe_key(prefix)
        folder = scratch / "staging"
        folder.mkdir()
        return folder

    def publish(
        self,
        staging: Path,
        prefix: str,
        ours: Callable[[], set[str]],
        seal: Seal,
        progress: Progress = quietly,
        sums: Mapping[str, str] = NO_SUMS,
    ) -> None:
        files = {path.relative_to(staging).as_posix(): path for path in staging.rglob("*") if path.is_file()}
        run = os.urandom(8).hex()
        permission = self._permission = _Permission(ours)
        permission.renew()
        entries = {entry.key: entry for entry in self.walk(prefix)}
        before = seen = {key: entry.etag for key, entry in entries.items()}
        todo = []
        for name, path in sorted(files.items()):
            marks = {_RUN: run, **({_SHA256: sums[name]} if name in sums else {})}
            todo.append(Copy(f"{prefix}/{name}", path, metadata=marks))
        stored = self._already_there(todo, entries)
        for copy in todo:
            progress(copy.path.stat().st_size if copy.key in stored else 0)
        copies = {copy.key: copy for copy in todo}
        todo = [copy for copy in todo if copy.key not in stored]
        for _ in range(_ROUNDS):
            sent, _conflicts = self._send(todo, {copy.key: _as_it_is(seen, copy.key) for copy in todo}, progress)
            stored |= sent
            permission.renew()  # whoever wrote here meanwhile has not taken the dataset over
            seen = {entry.key: entry.etag for entry in self.walk(prefix)}
            todo = [copies[key] for key in sorted(copies) if key not in stored or seen.get(key) != stored[key].etag]
            if not todo:
                break
        else:
            raise self._restless(todo[0].key)
        name, content = seal({key.removeprefix(f"{prefix}/"): value for key, value in stored.items()})
        sealed = f"{prefix}/{name}"
        self._seal(sealed, content, _as_it_is(before, sealed), permission)
        shutil.rmtree(staging, ignore_errors=True)
        names = permission.renew()
        leftovers = seen.keys() - stored.keys() - {sealed}
        self._clean_up({key: seen[key] for key in leftovers if self._is_ours(key, prefix, names)})
        self._permission = None

    def _seal(self, key: str, content: bytes, mode: PutMode, permission: _Permission) -> None:
        """Write the seal; one of a run that has lost the dataset since is replaced."""
        for _ in range(_ROUNDS):
            permission.renew()
            try:
                self.put(key, content, mode)
            except ConflictError:
                there = self.get(key)
                mode = Update(there.etag) if there else Create()
            else:
                return
        raise self._restless(key)

    def _restless(self, key: str) -> BusyError:
        return BusyError(f"{self.url(key)} is replaced by somebody again and again", remedy="find out by whom")

    def _clean_up(self, leftovers: Mapping[str, str]) -> None:
        """Remove objects of earlier runs, unless they have been replaced: they are then somebody's products."""
        keys = sorted(leftovers)
        for start in range(0, len(keys), 1000):
            named = [{"Key": self._key(key), "ETag": leftovers[key]} for key in keys[start : start + 1000]]
            request = functools.partial(
                self._client.delete_objects, Bucket=self.bucket, Delete={"Objects": named, "Quiet": True}
            )
            answer = self._writing(keys[start], request)
            _refuse_deletions(self.bucket, [e for e in answer.get("Errors", ()) if e["Code"] not in _CONFLICTS])

    def _already_there(self, copies: list[Copy], entries: Mapping[str, Entry]) -> dict[str, Stored]:
        """Return the objects that an upload which broke off has left, of the same content."""

        def look(copy: Copy) -> tuple[str, Stored | None]:
            entry, sha256 = entries.get(copy.key), copy.metadata.get(_SHA256)
            if entry is None or sha256 is None or entry.size != copy.path.stat().st_size:
                return copy.key, None
            with contextlib.suppress(NoObjectError):
                head = self._head(copy.key)
                if head["Metadata"].get(_SHA256) == sha256 and head["ETag"] == entry.etag:
                    return copy.key, Stored(entry.etag, _version(head))
            return copy.key, None

        with ThreadPoolExecutor(s3.CONNECTIONS) as pool:
            return {key: there for key, there in pool.map(look, copies) if there}

    def _is_ours(self, key: str, prefix: str, replaceable: set[str]) -> bool:
        """Whether an earlier run published an object, or one that was killed before it could say so."""
        if key.removeprefix(f"{prefix}/") in replaceable:
            return True
        with contextlib.suppress(NoObjectError):
            return _RUN in self._head(key)["Metadata"]
        return False

    def add(self, source: Path, key: str) -> None:
        self.upload([Copy(key, source)])

    def prepare(self, prefix: str) -> None:
        safe_key(prefix)

    # ---- the client

    @cached_property
    def _client(self) -> Any:  # noqa: ANN401 - botocore makes its classes at run time
        client = s3.explained(self.uri, lambda: s3.client(self._aws), S3DownloadError, S3DownloadRefusedError)
        events = client.meta.events
        events.register("after-call.s3", self._hear_the_time)
        for operation in ("PutObject", "CompleteMultipartUpload"):
            events.register(f"provide-client-params.s3.{operation}", self._set_condition)
            events.register(f"after-call.s3.{operation}", self._keep_answer)
        return client

    # s3transfer knows no conditions, and tells nobody what S3 said of an upload: its requests are met on their way.

    def _set_condition(self, params: dict[str, Any], context: dict[str, Any], **_: object) -> dict[str, Any]:
        context["caldp_key"] = params["Key"]
        mode = self._conditions.get(params["Key"])
        if mode and self._permission:
            self._permission.check()
        return {**params, **_condition(mode)} if mode else params

    def _keep_answer(self, parsed: Mapping[str, Any], context: Mapping[str, Any], **_: object) -> None:
        if "ETag" in parsed and "caldp_key" in context:
            self._stored[context["caldp_key"]] = Stored(parsed["ETag"], _version(parsed))

    def _hear_the_time(self, http_response: Any, **_: object) -> None:  # noqa: ANN401 - see _client
        with contextlib.suppress(TypeError, ValueError, KeyError):
            said = email.utils.parsedate_to_datetime(http_response.headers["Date"])
            self._offset = said - datetime.now(UTC)

    # ---- errors

    def _reading(self, key: str, act: Callable[[], T], where: str = "") -> T:
        try:
            return s3.explained(where or self.url(key), act, S3DownloadError, S3DownloadRefusedError)
        except S3DownloadRefusedError as error:
            if key and s3.code(error.__cause__) in _ABSENT:
                raise NoObjectError(key) from error
            raise

    def _writing(self, key: str, act: Callable[[], T]) -> T:
        return s3.explained(self.url(key), act, S3UploadError, S3UploadRefusedError)


def _condition(mode: PutMode) -> dict[str, str]:
    if isinstance(mode, Create):
        return {"IfNoneMatch": "*"}
    return {"IfMatch": mode.etag} if isinstance(mode, Update) else {}


def _version(answer: Mapping[str, Any]) -> str:
    """Return the version of an object; in a bucket without versions it may be called null."""
    version = str(answer.get("VersionId", ""))
    return "" if version == "null" else version


def _as_it_is(seen: Mapping[str, str], key: str) -> PutMode:
    """Write only if the object is what was seen."""
    return Update(seen[key]) if key in seen else Create()


def _content_type(key: str) -> str:
    """Return what a browser must be told; FITS as the standard registered it."""
    if key.endswith((".fits", ".fits.gz")):
        return "application/fits" if key.endswith(".fits") else "application/gzip"
    return mimetypes.guess_type(key)[0] or "application/octet-stream"


def _telling(progress: Progress) -> Any:  # noqa: ANN401 - made where s3transfer is loaded
    from s3transfer.subscribers import BaseSubscriber

    class Told(BaseSubscriber):  # type: ignore[misc]
        def on_progress(self, future: object, bytes_transferred: int, **_: object) -> None:
            progress(bytes_transferred)

    return Told()


def _known(copy: Copy) -> list[Any]:
    """Spare s3transfer the question how large an object is."""
    if copy.size < 0 or not copy.etag:
        return []
    from s3transfer.subscribers import BaseSubscriber

    class Known(BaseSubscriber):  # type: ignore[misc]
        def on_queued(self, future: Any, **_: object) -> None:  # noqa: ANN401 - s3transfer has no types
            future.meta.provide_transfer_size(copy.size)
            future.meta.provide_object_etag(copy.etag)

    return [Known()]
