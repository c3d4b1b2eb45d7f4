"""The reference files in a CRDS cache that several runs fill and use at once, and that must not grow beyond a limit.

A file is in use while a run holds a shared lock on it: the kernel lets go when the run ends, however it ends.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import stat
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path


class Shelf:
    """The references of one cache, as one run sees them.

    Parameters
    ----------
    cache : Path
        The CRDS cache.
    """

    def __init__(self, cache: Path) -> None:
        self._references = cache / "references" / "hst"
        self._partials = self._references / ".caldp-partial"
        self._kept: list[int] = []
        weakref.finalize(self, _close, self._kept)

    def keep(self, path: Path) -> None:
        """Keep a file from being evicted for as long as this object lives.

        Raises
        ------
        FileNotFoundError
            If it has just been evicted.
        """
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            with contextlib.suppress(OSError):  # without locks nothing is evicted either
                fcntl.flock(descriptor, fcntl.LOCK_SH)
            if not _is_at(descriptor, path):
                raise FileNotFoundError(path)
            with contextlib.suppress(OSError):  # it may be somebody else's
                os.utime(path, ns=(time.time_ns(), path.stat().st_mtime_ns))
        except BaseException:
            os.close(descriptor)
            raise
        self._kept.append(descriptor)

    def partial(self, name: str) -> Path:
        """Return where whoever has claimed a file downloads it to; the folder is there for it alone."""
        return self._partials / name / name

    @contextmanager
    def claimed(self, names: Sequence[str], waiting: Callable[[str], None]) -> Iterator[list[str]]:
        """Claim files, so that nobody else on this host downloads them.

        Parameters
        ----------
        names : sequence of str
            Files that are needed.
        waiting : callable
            Told of the file for which another run is waited for.

        Yields
        ------
        list of str
            Those of them that nobody else has claimed; if there are none, the first, as soon as it is free.
        """
        self._partials.mkdir(parents=True, exist_ok=True)
        with ExitStack() as stack:
            mine = [name for name in names if self._claim(stack, name, wait=False)]
            if not mine:
                waiting(names[0])
                self._claim(stack, names[0], wait=True)
                mine = [names[0]]
            yield mine

    def _claim(self, stack: ExitStack, name: str, *, wait: bool) -> bool:
        path = self._partials / f"{name}.lock"
        while True:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            except BlockingIOError:
                os.close(descriptor)
                return False
            except BaseException:
                os.close(descriptor)
                raise
            if _is_at(descriptor, path):
                break
            os.close(descriptor)  # the holder removed it between our open and our lock
        stack.callback(os.close, descriptor)
        stack.callback(path.unlink, missing_ok=True)
        folder = self.partial(name).parent
        shutil.rmtree(folder, ignore_errors=True)  # of a run that was killed
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        folder.mkdir()
        return True

    def tidy(self) -> None:
        """Remove what runs that were killed had begun to download."""
        with contextlib.suppress(FileNotFoundError):
            for name in sorted({path.name.removesuffix(".lock") for path in self._partials.iterdir()}):
                with ExitStack() as stack:
                    self._claim(stack, name, wait=False)

    def evict(self, limit: int) -> list[Path]:
        """Remove files that nobody uses, the longest unused first, until all together are within a limit.

        Parameters
        ----------
        limit : int
            Bytes.

        Returns
        -------
        list of Path
            What was removed.
        """
        files = []
        for folder, folders, names in os.walk(self._references):
            folders[:] = [name for name in folders if not name.startswith(".")]  # what is being downloaded
            for path in (Path(folder) / name for name in names):
                with contextlib.suppress(FileNotFoundError):
                    status = path.lstat()
                    if stat.S_ISREG(status.st_mode):
                        files.append((status.st_atime_ns, status.st_size, path))
        total = sum(size for _, size, _ in files)
        gone = []
        for _, size, path in sorted(files):
            if total <= limit:
                break
            if _remove_unused(path):
                gone.append(path)
                total -= size
        return gone


def _remove_unused(path: Path) -> bool:
    with contextlib.suppress(OSError):  # in use, somebody else's, or no longer there
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)  # writable: some network file systems ask for that
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _is_at(descriptor, path):
                path.unlink()
                return True
        finally:
            os.close(descriptor)
    return False


def _is_at(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


def _close(descriptors: list[int]) -> None:
    while descriptors:
        os.close(descriptors.pop())
