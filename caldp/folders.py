"""Where inputs lie side by side: a directory, what was in a tarball, or a prefix of a bucket."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from caldp import s3
from caldp.errors import InputError
from caldp.run import Run
from caldp.s3_store import S3Store
from caldp.store import Copy, Entry, NoObjectError


class Folder:
    """Where inputs lie side by side: a directory."""

    def __init__(self, run: Run, directory: Path) -> None:
        self.run = run
        self.directory = directory
        self._names: dict[str, frozenset[str]] = {}

    def __str__(self) -> str:
        return str(self.directory)

    def url(self, name: str) -> str:
        """Return what people call a file."""
        return str(self.directory / name)

    def names(self, stem: str) -> frozenset[str]:
        """List the files whose names begin with ``stem``."""
        if stem not in self._names:
            self._names[stem] = frozenset(self._list(stem))
        return self._names[stem]

    def bring(self, names: Iterable[str]) -> None:
        """Have files brought here, side by side, if they are elsewhere."""

    @contextmanager
    def at_hand(self, name: str) -> Iterator[Path]:
        """Give a file as long as the context lasts."""
        yield self.directory / name

    def _list(self, stem: str) -> Iterable[str]:
        try:
            return [p.name for p in self.directory.iterdir() if p.name.startswith(stem) and p.is_file()]
        except OSError as error:
            raise InputError(
                f"{self.run.dataset}: cannot list {self} ({error.strerror})", remedy="make it readable"
            ) from error


class Unpacked(Folder):
    """What was in a tarball."""

    def __init__(self, run: Run, directory: Path, packed: str) -> None:
        super().__init__(run, directory)
        self._packed = packed

    def __str__(self) -> str:
        return self._packed

    def url(self, name: str) -> str:
        return f"{self._packed}:{name}"


class Prefix(Folder):
    """A prefix of a bucket, whose objects are downloaded into the workspace when they are wanted."""

    def __init__(self, run: Run, uri: str) -> None:
        super().__init__(run, run.workspace.root / "downloaded")
        self.directory.mkdir()
        self._store = S3Store(uri, run.config.aws)
        self._entries: dict[str, Entry] = {}

    def __str__(self) -> str:
        return self._store.uri

    def url(self, name: str) -> str:
        return self._store.url(name)

    def bring(self, names: Iterable[str]) -> None:
        entries = [self._entries[name] for name in names]
        copies = [Copy(e.key, self.directory / e.key, size=e.size, etag=e.etag) for e in entries]
        total, begun = sum(e.size for e in entries), time.monotonic()
        try:
            with s3.concerning(self.run.dataset.name):
                self._store.download(copies, self.run.telemetry.counter("download", total))
                self._store.verify(copies)
        except NoObjectError as error:
            raise InputError(
                f"{self.run.dataset}: {self.url(str(error))} has just been removed", remedy="put it back"
            ) from error
        size, seconds = f"{total / 1e6:.1f} MB", time.monotonic() - begun
        self.run.telemetry.info(f"downloaded {len(copies)} files, {size}, in {seconds:.1f} s")

    @contextmanager
    def at_hand(self, name: str) -> Iterator[Path]:
        path = self.directory / name
        if not path.exists():
            self.bring([name])
        try:
            yield path
        finally:
            path.unlink()  # the workspace need not hold everything twice

    def _list(self, stem: str) -> Iterable[str]:
        with s3.concerning(self.run.dataset.name):
            found = self._store.beginning(stem)
        self._entries |= found
        return found
