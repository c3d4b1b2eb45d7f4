"""Where bytes live: one small interface over a folder (S3 will speak the same words).

A key is a relative path with forward slashes, for example ``messages/status/ldfd01010.json``.  Small objects are
read and written whole, with a tag, so that a writer can say "only if nobody changed it meanwhile".  A folder of
products is published in one step: readers see the old one or the new one, never a mixture.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import hashlib
import os
import re
import shutil
import sys
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Protocol

from caldp.errors import BusyError, UnsupportedError, UsageError


class ConflictError(Exception):
    """A conditional put found another version than the caller expected."""


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


class Store(Protocol):
    """What an output place must be able to do."""

    def url(self, key: str = "") -> str:
        """Return what a person would open to find ``key``."""

    def get(self, key: str) -> Blob | None:
        """Read a small object, or None when it is not there."""

    def put(self, key: str, data: bytes, mode: PutMode) -> str:
        """Write a small object in one step and return its tag; ConflictError when ``mode`` does not hold."""

    def delete(self, key: str) -> None:
        """Remove an object; one that is not there is no error."""

    def names(self, prefix: str) -> list[str]:
        """List the names of the objects directly under ``prefix``."""

    def own(self, name: str, *, take_over: bool = False) -> contextlib.AbstractContextManager[None]:
        """Hold ``name`` for as long as the context lasts; BusyError when a live run holds it."""

    def staging(self, prefix: str, run: str) -> Path:
        """Return an empty local folder where the tree for ``prefix`` is put together."""

    def publish(self, staging: Path, prefix: str, allowed: Callable[[], None]) -> None:
        """Make the staged folder the content of ``prefix`` in one step, if ``allowed()`` does not raise."""

    def add(self, source: Path, key: str) -> None:
        """Copy a local file to ``key``; other objects stay."""

    def discard(self, prefix: str) -> None:
        """Remove what dead runs left half-staged for ``prefix``; the caller owns the dataset."""

    def local(self, key: str) -> Path | None:
        """Return the path of ``key`` when it is a local file, else None."""


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
            remedy="write file:<directory>, for example file:. or file:inputs",
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


def open_store(uri: str) -> Store:
    """Open an output place.

    Parameters
    ----------
    uri : str
        ``file:<directory>``.

    Returns
    -------
    Store

    Raises
    ------
    UsageError
        If the URI is malformed, or of a kind that this version cannot write.
    """
    scheme, rest = parse_uri(uri)
    if scheme == "file":
        return LocalStore(Path(rest))
    if scheme == "s3":
        raise UnsupportedError(f"{uri}: this version cannot write to S3", remedy="write to file:<directory>")
    raise UsageError(f"{uri!r} cannot be an output", remedy="write to file:<directory>")


def safe_key(key: str) -> str:
    """Return ``key`` if it stays below the store, else raise ValueError."""
    path = PurePosixPath(key)
    if path.is_absolute() or not path.parts or ".." in path.parts or "\0" in key:
        raise ValueError(f"unsafe key {key!r}")
    return key


class LocalStore:
    """A folder of the local (or a shared POSIX) file system.

    Locks are ``flock`` on files that are removed when they are let go; the kernel lets go for a process that dies.
    """

    def __init__(self, root: Path) -> None:
        self.root = root.expanduser().absolute()

    def _path(self, key: str) -> Path:
        return self.root / safe_key(key)

    def url(self, key: str = "") -> str:
        return str(self._path(key) if key else self.root)

    def local(self, key: str) -> Path | None:
        return self._path(key)

    def get(self, key: str) -> Blob | None:
        try:
            data = self._path(key).read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            return None
        return Blob(data, hashlib.sha256(data).hexdigest())

    def put(self, key: str, data: bytes, mode: PutMode) -> str:
        path = self._path(key)
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
        try:
            with temporary.open("wb") as stream:
                stream.write(data)
                stream.flush()
                os.fsync(stream.fileno())
            if isinstance(mode, Create):
                try:
                    os.link(temporary, path)  # fails, unlike rename, when the name is taken
                except FileExistsError as error:
                    raise ConflictError(key) from error
            elif isinstance(mode, Update):
                with self._locked(f"{key}.put"):
                    current = self.get(key)
                    if current is None or current.etag != mode.etag:
                        raise ConflictError(key)
                    temporary.replace(path)
            else:
                temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
        return hashlib.sha256(data).hexdigest()

    def delete(self, key: str) -> None:
        self._path(key).unlink(missing_ok=True)

    def names(self, prefix: str) -> list[str]:
        folder = self._path(prefix)
        return sorted(p.name for p in folder.iterdir() if not p.name.startswith(".")) if folder.is_dir() else []

    @contextmanager
    def own(self, name: str, *, take_over: bool = False) -> Iterator[None]:
        with self._locked(f"{name}.owner", wait=False, steal=take_over):
            yield

    def staging(self, prefix: str, run: str) -> Path:
        target = self._path(prefix)
        folder = target.with_name(f".{target.name}.{run}.partial")
        folder.mkdir(parents=True)
        return folder

    def publish(self, staging: Path, prefix: str, allowed: Callable[[], None]) -> None:
        target = self._path(prefix)
        with self._locked(f"{prefix}.publish"):
            allowed()
            if not target.exists():
                staging.rename(target)
            else:
                _exchange(staging, target)
        shutil.rmtree(staging, ignore_errors=True)  # after an exchange this is the old tree

    def add(self, source: Path, key: str) -> None:
        target = self._path(key)
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = target.with_name(f".{target.name}.{uuid.uuid4().hex}.tmp")
        try:
            shutil.copyfile(source, temporary)
            temporary.replace(target)
        finally:
            temporary.unlink(missing_ok=True)

    def discard(self, prefix: str) -> None:
        target = self._path(prefix)
        for aside in target.parent.glob(f".{target.name}.*.partial.old"):
            if target.exists():
                shutil.rmtree(aside, ignore_errors=True)
            else:
                aside.rename(target)  # killed between the two renames of an exchange
        for folder in target.parent.glob(f".{target.name}.*.partial"):
            shutil.rmtree(folder, ignore_errors=True)

    @contextmanager
    def _locked(self, name: str, *, wait: bool = True, steal: bool = False) -> Iterator[None]:
        path = self.root / "messages" / ".locks" / name.replace("/", "+")
        path.parent.mkdir(parents=True, exist_ok=True)
        if steal:
            path.unlink(missing_ok=True)  # the old owner keeps a lock on a file that nobody looks at any more
        while True:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            except BlockingIOError as error:
                os.close(descriptor)
                raise BusyError(
                    f"{name.partition('.')[0]} is being processed by another run into {self.root}",
                    remedy="wait for it to end; nothing was changed",
                ) from error
            except BaseException:
                os.close(descriptor)
                raise
            if _same_file(descriptor, path):
                break
            os.close(descriptor)  # the holder removed the file between our open and our lock: look again
        try:
            yield
        finally:
            if _same_file(descriptor, path):
                path.unlink(missing_ok=True)
            os.close(descriptor)


def _same_file(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


def _exchange(new: Path, target: Path) -> None:
    """Swap two folders of one file system; where the system can, in one step."""
    if sys.platform == "linux":
        libc = ctypes.CDLL(None, use_errno=True)
        at_fdcwd, rename_exchange = -100, 2
        if hasattr(libc, "renameat2") and not libc.renameat2(
            at_fdcwd, os.fsencode(new), at_fdcwd, os.fsencode(target), rename_exchange
        ):
            return
    # File systems without an exchange (some network ones, macOS): two renames, with a moment between them.
    aside = new.with_name(new.name + ".old")
    target.rename(aside)
    new.rename(target)
    aside.rename(new)
