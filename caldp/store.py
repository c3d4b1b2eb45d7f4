"""Where bytes live: one small interface over a folder (S3 will speak the same words).

A key is a relative path with forward slashes, for example ``messages/status/ldfd01010.json``.  Small objects are
read and written whole, with a tag, so that a writer can say "only if nobody changed it meanwhile".  A folder of
products is published in one step: readers see the old one or the new one, never a mixture.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
import re
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Protocol

from caldp.errors import BusyError, OutputError, UnsupportedError, UsageError

#: End of the name of a tree that is put aside for a moment.
_ASIDE = ".aside"

#: Age at which a temporary file is a dead writer's, in seconds.
_STALE = 600


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

    @property
    def uri(self) -> str:
        """What a command line would call it, from any working directory."""

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

    def publish(self, staging: Path, prefix: str, ours: Callable[[], set[str]]) -> None:
        """Make the staged folder the content of ``prefix`` in one step.

        ``ours()`` is called when nobody else can publish: it raises if this run must not either, and returns the
        names of the files that earlier runs published and that may go.  Whatever else is there is kept.
        """

    def add(self, source: Path, key: str) -> None:
        """Copy a local file to ``key``; other objects stay."""

    def prepare(self, prefix: str) -> None:
        """Remove what dead runs left half-staged for ``prefix``, and refuse a place that cannot be published to."""

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


def absolute_uri(uri: str) -> str:
    """Return a URI that means the same in any working directory."""
    scheme, rest = parse_uri(uri)
    return f"file:{Path(rest).expanduser().absolute()}" if scheme == "file" else uri


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

    @property
    def uri(self) -> str:
        return f"file:{self.root}"

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
        temporary = path.with_name(f".{path.name}.{os.urandom(8).hex()}.tmp")
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
        if self.root.exists() and not self.root.is_dir():
            raise OutputError(f"{name}: the output {self.root} is not a directory", remedy="give file:<directory>")
        with self._locked(f"{name}.owner", wait=False, steal=take_over):
            yield

    def staging(self, prefix: str, run: str) -> Path:
        target = self._path(prefix)
        folder = target.with_name(f".{target.name}.{run}.partial")
        folder.mkdir(parents=True)
        return folder

    def publish(self, staging: Path, prefix: str, ours: Callable[[], set[str]]) -> None:
        target = self._path(prefix)
        with self._locked(f"{prefix}.publish"):
            names = ours()
            _restore(target)
            if not target.exists():
                staging.rename(target)
                return
            _carry_over(target, staging, names, move=False)
            _exchange(staging, target)
            _carry_over(staging, target, names, move=True)  # what came in between, and what cannot be copied
            shutil.rmtree(staging, ignore_errors=True)

    def add(self, source: Path, key: str) -> None:
        target = self._path(key)
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = target.with_name(f".{target.name}.{os.urandom(8).hex()}.tmp")
        try:
            shutil.copyfile(source, temporary)
            temporary.replace(target)
        finally:
            temporary.unlink(missing_ok=True)

    def prepare(self, prefix: str) -> None:
        target = self._path(prefix)
        if target.is_symlink() or (target.exists() and not target.is_dir()):
            raise OutputError(f"{target} is not a plain directory", remedy="move it out of the way")
        with self._locked(f"{prefix}.publish"):
            _restore(target)
            for folder in target.parent.glob(f".{target.name}.*.partial"):
                shutil.rmtree(folder, ignore_errors=True)
        old = time.time() - _STALE
        for leftover in self.root.glob(f"messages/*/.{target.name}*.tmp"):  # of a put that was killed
            with contextlib.suppress(OSError):
                if leftover.stat().st_mtime < old:
                    leftover.unlink()

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
                    f"{name.partition('.')[0]}: another run is processing it into {self.root}; nothing was changed",
                    remedy="wait for it to end, or give --take-over if it is stuck",
                ) from error
            except OSError as error:
                os.close(descriptor)
                raise OutputError(
                    f"{self.root}: its file system has no locks ({error.strerror})",
                    remedy="choose an output on another file system",
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
        import ctypes  # here: it costs every caldp --help a few milliseconds

        libc = ctypes.CDLL(None, use_errno=True)
        at_fdcwd, rename_exchange = -100, 2
        if hasattr(libc, "renameat2"):
            if not libc.renameat2(at_fdcwd, os.fsencode(new), at_fdcwd, os.fsencode(target), rename_exchange):
                return
            number = ctypes.get_errno()
            if number not in (errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP):
                raise OSError(number, os.strerror(number), str(target))
    # File systems without an exchange (some network ones, macOS): two renames, with a moment between them.
    aside = target.with_name(f".{target.name}{_ASIDE}")
    target.rename(aside)
    try:
        new.rename(target)
    except BaseException:
        aside.rename(target)
        raise
    aside.rename(new)


def _restore(target: Path) -> None:
    """Bring back a tree that a run put aside when it was killed between the two renames of an exchange."""
    aside = target.with_name(f".{target.name}{_ASIDE}")
    if aside.exists():
        if target.exists():  # killed after the second: the new tree is there, the old one is staging again
            aside.rename(target.with_name(f".{target.name}.{os.urandom(8).hex()}.partial"))
        else:
            aside.rename(target)


def _carry_over(old: Path, new: Path, ours: set[str], *, move: bool) -> None:
    """Keep what somebody else put into a folder that is being replaced."""
    for folder, folders, files in os.walk(old):
        here = Path(folder)
        for name in folders:
            key = (here / name).relative_to(old).as_posix()
            if not (here / name).is_symlink() and not any(n.startswith(f"{key}/") for n in ours):
                (new / key).mkdir(parents=True, exist_ok=True)
        for name in [*files, *(n for n in folders if (here / n).is_symlink())]:
            source, target = here / name, new / here.relative_to(old) / name
            if source.relative_to(old).as_posix() in ours or target.exists() or target.is_symlink():
                continue
            target.parent.mkdir(parents=True, exist_ok=True)
            if move:
                source.rename(target)
            elif source.is_symlink() or source.is_file():
                shutil.copy2(source, target, follow_symlinks=False)
