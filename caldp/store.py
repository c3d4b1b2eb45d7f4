"""Where bytes live: one small interface over a folder (``local_store``) and over a bucket (``s3_store``).

A key is a relative path with forward slashes, for example ``messages/status/ldfd01010.json``.  Small objects are
read and written whole, with a tag, so that a writer can say "only if nobody changed it meanwhile".  A folder of
products is published in one step: readers see the old one or the new one, never a mixture.
"""

from __future__ import annotations

import contextlib
import hashlib
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path, PurePosixPath
from types import MappingProxyType
from typing import Any, Protocol

from caldp.errors import UsageError


class ConflictError(Exception):
    """A conditional put found another version than the caller expected."""


class NoObjectError(Exception):
    """There is no object of this key."""


@dataclass(frozen=True)
class Overwrite:
    """Put whatever is there."""


@dataclass(frozen=True)
class Create:
    """Put only if nothing is there (``If-None-Match: *``)."""


@dataclass(frozen=True)
class Update:
    """Put only if the version there is the one with this tag (``If-Match``)."""

    etag: str


PutMode = Overwrite | Create | Update


@dataclass(frozen=True)
class Blob:
    """A small object and the tag of this version of it."""

    data: bytes
    etag: str


@dataclass(frozen=True)
class Entry:
    """One object of a listing.

    Attributes
    ----------
    key : str
        Its key in the store.
    size : int
        Bytes.
    etag : str
        Tag of this version, or empty where a listing does not tell.
    """

    key: str
    size: int
    etag: str


@dataclass(frozen=True)
class Stored:
    """What a store says of an object that was uploaded: tag and version, empty where it has none."""

    etag: str = ""
    version: str = ""


@dataclass(frozen=True)
class Copy:
    """An object and a local file, to be copied one way or the other.

    Attributes
    ----------
    key : str
        The object.
    path : Path
        The file.  A download writes exactly it: the caller gives a temporary name, checks and renames.
    version : str
        Version to download, or empty for the newest.
    size, etag : int, str
        Of the object to download, where a listing has told.
    metadata : mapping
        Short texts to keep with an upload, where the store can.
    """

    key: str
    path: Path
    version: str = ""
    size: int = -1
    etag: str = ""
    metadata: Mapping[str, str] = field(default_factory=dict)


#: Called with the number of bytes that just went over, from any thread; negative when some must go over again.
Progress = Callable[[int], None]

#: Given what the store says of each file of a tree, by name: name and content of the file that proves it whole.
Seal = Callable[[Mapping[str, Stored]], tuple[str, bytes]]


#: No checksums.
NO_SUMS: Mapping[str, str] = MappingProxyType({})


def quietly(_: int) -> None:
    """Tell nobody of the progress."""


class Store(Protocol):
    """A place for inputs, outputs and references.

    A method of a store of the cloud raises S3UploadError or S3DownloadError when the cloud says no, or still nothing
    after its retries; of a folder, OSError.
    """

    @property
    def uri(self) -> str:
        """What a command line would call it, from any working directory."""

    @property
    def exclusive(self) -> bool:
        """Whether ``own`` keeps others out; else only the heartbeat in its status says that a run is alive."""

    def url(self, key: str = "") -> str:
        """Return what a person would open to find ``key``."""

    def clock(self) -> datetime:
        """Return the present by the clock of the store, in UTC: the same for everybody."""

    def get(self, key: str) -> Blob | None:
        """Read a small object, or None when it is not there."""

    def put(self, key: str, data: bytes, mode: PutMode) -> str:
        """Write a small object in one step and return its tag; ConflictError when ``mode`` does not hold.

        Where answers can be lost on their way, a put that was done, and whose object somebody has replaced since, is a
        conflict too.
        """

    def delete(self, *keys: str) -> None:
        """Remove objects; one that is not there is no error."""

    def names(self, prefix: str) -> list[str]:
        """List the names of the objects and folders directly under ``prefix`` (at the top if it is empty)."""

    def walk(self, prefix: str) -> Iterator[Entry]:
        """List all objects under ``prefix`` (the whole store if it is empty), however many and deep, by key."""

    def upload(
        self, copies: Iterable[Copy], progress: Progress = quietly, *, create: bool = False
    ) -> dict[str, Stored]:
        """Copy files to objects, in parallel; return what became of each, by key.

        Whatever is there is replaced or, if they are to be created, left alone: such a key is not in what is returned.
        """

    def download(self, copies: Iterable[Copy], progress: Progress = quietly) -> None:
        """Copy objects to files, in parallel; NoObjectError when one is not there."""

    def damaged(self, prefix: str, files: Iterable[Mapping[str, Any]]) -> list[str]:
        """Name the files of a manifest (``name``, ``size``, ``sha256``, ...) that are not as it says."""

    def own(self, name: str, *, take_over: bool = False) -> contextlib.AbstractContextManager[None]:
        """Hold ``name`` for as long as the context lasts; BusyError when a live run holds it."""

    def staging(self, prefix: str, run: str, scratch: Path) -> Path:
        """Return an empty local folder where the tree for ``prefix`` is put together; ``scratch`` is a place for it."""

    def publish(
        self,
        staging: Path,
        prefix: str,
        ours: Callable[[], set[str]],
        seal: Seal,
        progress: Progress = quietly,
        sums: Mapping[str, str] = NO_SUMS,
    ) -> None:
        """Make the staged folder the content of ``prefix``, its seal last.

        ``ours()`` raises if this run must not publish, and returns the names of the files that earlier runs published
        and that may go; whatever else is there is kept.  A folder is exchanged in one step, when nobody else can
        publish; in a bucket each object is replaced on its own, and only if it is still the one that ``ours`` allowed.
        ``sums`` are the sha256 of staged files, by name, as far as they are known: what a bucket holds already is not
        sent again.
        """

    def add(self, source: Path, key: str) -> None:
        """Copy a local file to ``key``; other objects stay."""

    def prepare(self, prefix: str) -> None:
        """Remove what dead runs left half-staged for ``prefix``, and refuse a place that cannot be published to."""


_URI = re.compile(r"(file|s3|astroquery):(.*)", re.DOTALL)


def parse_uri(text: str) -> tuple[str, str]:
    """Split a URI of the command line into scheme and rest.

    Parameters
    ----------
    text : str
        ``file:<directory>`` (relative or absolute, colons and all), ``s3://bucket/prefix`` or ``astroquery:``.

    Returns
    -------
    scheme, rest : str
        For example ``("file", "inputs")``; ``file:`` alone means the current directory.

    Raises
    ------
    UsageError
        For anything else.
    """
    match = _URI.fullmatch(text)
    if match is None or "\0" in text:
        raise UsageError(
            f"{text!r} is not an input or output",
            remedy="write file:<directory>, for example file:. or file:inputs, or s3://bucket/prefix",
        )
    scheme, rest = match[1], match[2]
    if scheme == "s3" and not re.fullmatch(r"//[^/]+(/.*)?", rest, re.DOTALL):
        raise UsageError(f"{text!r} names no bucket", remedy="write s3://bucket/prefix")
    if scheme == "file":
        if rest.startswith("//"):  # file:///absolute, as a browser writes it
            host, slash, path = rest[2:].partition("/")
            if host not in ("", "localhost"):
                raise UsageError(f"{text!r} is on another host", remedy="write file:<directory>")
            rest = slash + path
        rest = rest or "."
    return scheme, rest


def absolute_uri(uri: str) -> str:
    """Return a URI that means the same in any working directory."""
    scheme, rest = parse_uri(uri)
    return f"file:{Path(rest).expanduser().absolute()}" if scheme == "file" else uri


def open_store(uri: str, aws: Mapping[str, str] | None = None) -> Store:
    """Open a place for inputs, outputs or references.

    Parameters
    ----------
    uri : str
        ``file:<directory>`` or ``s3://bucket/prefix``.
    aws : mapping, optional
        AWS_* variables that count instead of those of the environment.

    Returns
    -------
    Store

    Raises
    ------
    UsageError
        If the URI is malformed, or of no place.
    """
    scheme, rest = parse_uri(uri)
    if scheme == "file":
        from caldp.local_store import LocalStore

        return LocalStore(Path(rest))
    if scheme == "s3":
        from caldp.s3_store import S3Store

        return S3Store(uri, aws)
    raise UsageError(f"{uri!r} is no place for files", remedy="write file:<directory> or s3://bucket/prefix")


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file, in hexadecimal digits."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def safe_key(key: str) -> str:
    """Return ``key`` if it stays below the store, else raise ValueError."""
    path = PurePosixPath(key)
    if path.is_absolute() or not path.parts or ".." in path.parts or "\0" in key:
        raise ValueError(f"unsafe key {key!r}")
    return key
