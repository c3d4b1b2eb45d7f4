"""A store in a folder of the local (or a shared POSIX) file system."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from caldp.errors import BusyError, OutputError
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
    quietly,
    safe_key,
)

#: End of the name of a tree that is put aside for a moment.
_ASIDE = ".aside"

#: Age at which a temporary file is a dead writer's, in seconds.
_STALE = 600

_CHUNK = 1 << 20


class LocalStore:
    """A folder of the local (or a shared POSIX) file system.

    Locks are ``flock`` on files that are removed when they are let go; the kernel lets go for a process that dies.
    """

    exclusive = True

    def __init__(self, root: Path) -> None:
        self.root = root.expanduser().absolute()

    @property
    def uri(self) -> str:
        return f"file:{self.root}"

    def _path(self, key: str) -> Path:
        return self.root / safe_key(key)

    def url(self, key: str = "") -> str:
        return str(self._path(key) if key else self.root)

    def clock(self) -> datetime:
        return datetime.now(UTC)

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

    def delete(self, *keys: str) -> None:
        for key in keys:
            self._path(key).unlink(missing_ok=True)

    def names(self, prefix: str) -> list[str]:
        folder = self._path(prefix) if prefix else self.root
        return sorted(p.name for p in folder.iterdir() if not p.name.startswith(".")) if folder.is_dir() else []

    def walk(self, prefix: str) -> Iterator[Entry]:
        top = self._path(prefix) if prefix else self.root
        for folder, folders, files in os.walk(top):
            folders[:] = sorted(name for name in folders if not name.startswith("."))
            for name in sorted(name for name in files if not name.startswith(".")):
                path = Path(folder) / name
                with contextlib.suppress(FileNotFoundError):  # it went away meanwhile
                    yield Entry(path.relative_to(self.root).as_posix(), path.stat().st_size, "")

    def upload(
        self, copies: Iterable[Copy], progress: Progress = quietly, *, create: bool = False
    ) -> dict[str, Stored]:
        done = {}
        for copy in copies:
            with contextlib.suppress(FileExistsError):  # of a link; a rename replaces
                self._add(copy.path, copy.key, os.link if create else os.replace)
                done[copy.key] = Stored()
            progress(copy.path.stat().st_size)
        return done

    def download(self, copies: Iterable[Copy], progress: Progress = quietly) -> None:
        for copy in copies:
            try:
                reader = self._path(copy.key).open("rb")
            except (FileNotFoundError, NotADirectoryError, IsADirectoryError) as error:
                raise NoObjectError(copy.key) from error
            with reader, copy.path.open("wb") as writer:
                while chunk := reader.read(_CHUNK):
                    writer.write(chunk)
                    progress(len(chunk))

    def damaged(self, prefix: str, files: Iterable[Mapping[str, Any]]) -> list[str]:
        return [entry["name"] for entry in files if not self._is_intact(f"{prefix}/{entry['name']}", entry)]

    def _is_intact(self, key: str, entry: Mapping[str, Any]) -> bool:
        try:
            with self._path(key).open("rb") as stream:
                size = os.fstat(stream.fileno()).st_size
                return bool(
                    size == entry["size"] and hashlib.file_digest(stream, "sha256").hexdigest() == entry["sha256"]
                )
        except OSError:
            return False

    @contextmanager
    def own(self, name: str, *, take_over: bool = False) -> Iterator[None]:
        if self.root.exists() and not self.root.is_dir():
            raise OutputError(f"{name}: the output {self.root} is not a directory", remedy="give file:<directory>")
        with self._locked(f"{name}.owner", wait=False, steal=take_over):
            yield

    def staging(self, prefix: str, run: str, scratch: Path) -> Path:
        target = self._path(prefix)
        folder = target.with_name(f".{target.name}.{run}.partial")
        folder.mkdir(parents=True)
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
        target = self._path(prefix)
        name, content = seal({})
        (staging / name).write_bytes(content)
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
        self._add(source, key, os.replace)

    def _add(self, source: Path, key: str, take: Callable[[Path, Path], None]) -> None:
        target = self._path(key)
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = target.with_name(f".{target.name}.{os.urandom(8).hex()}.tmp")
        try:
            shutil.copyfile(source, temporary)
            take(temporary, target)
        finally:
            temporary.unlink(missing_ok=True)

    def prepare(self, prefix: str) -> None:
        target = self._path(prefix)
        if target.is_symlink() or (target.exists() and not target.is_dir()):
            raise OutputError(f"{target} is not a plain directory", remedy="move it out of the way")
        self.discard(prefix)
        old = time.time() - _STALE
        for leftover in self.root.glob(f"messages/*/.{target.name}*.tmp"):  # of a put that was killed
            with contextlib.suppress(OSError):
                if leftover.stat().st_mtime < old:
                    leftover.unlink()

    def discard(self, prefix: str) -> None:
        """Remove what a writer that was killed left hidden beside a folder, if only the owner of its dataset asks.

        Parameters
        ----------
        prefix : str
            Of the dataset.
        """
        target = self._path(prefix)
        with self._locked(f"{prefix}.publish"):
            _restore(target)
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
