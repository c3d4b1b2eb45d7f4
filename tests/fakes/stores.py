"""Stores of the tests: one in memory, one that fails, and one that tries again."""

from __future__ import annotations

import hashlib
import random
import shutil
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from caldp.errors import S3DownloadError, S3UploadError
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
    Store,
    Stored,
    Update,
    quietly,
    safe_key,
)


class MemoryStore:
    """A store like a bucket: objects under keys, no locks, no folders."""

    exclusive = False
    uri = "memory:"

    def __init__(self) -> None:
        self.objects: dict[str, bytes] = {}
        self._lock = threading.RLock()

    def url(self, key: str = "") -> str:
        return f"memory:{key}"

    def clock(self) -> datetime:
        return datetime.now(UTC)

    def get(self, key: str) -> Blob | None:
        data = self.objects.get(key)
        return None if data is None else Blob(data, hashlib.sha256(data).hexdigest())

    def put(self, key: str, data: bytes, mode: PutMode) -> str:
        with self._lock:
            there = self.get(safe_key(key))
            if (
                isinstance(mode, Create)
                and there
                or isinstance(mode, Update)
                and (not there or there.etag != mode.etag)
            ):
                raise ConflictError(key)
            self.objects[key] = data
        return hashlib.sha256(data).hexdigest()

    def delete(self, *keys: str) -> None:
        for key in keys:
            self.objects.pop(safe_key(key), None)

    def names(self, prefix: str) -> list[str]:
        below = f"{safe_key(prefix)}/" if prefix else ""
        return sorted({key.removeprefix(below).split("/")[0] for key in list(self.objects) if key.startswith(below)})

    def walk(self, prefix: str) -> Iterator[Entry]:
        below = f"{prefix}/" if prefix else ""
        for key, data in sorted(self.objects.items()):
            if key.startswith(below):
                yield Entry(key, len(data), hashlib.sha256(data).hexdigest())

    def upload(
        self, copies: Iterable[Copy], progress: Progress = quietly, *, create: bool = False
    ) -> dict[str, Stored]:
        done = {}
        for copy in copies:
            if not (create and copy.key in self.objects):
                self.objects[safe_key(copy.key)] = copy.path.read_bytes()
                done[copy.key] = Stored(hashlib.sha256(self.objects[copy.key]).hexdigest())
            progress(copy.path.stat().st_size)
        return done

    def download(self, copies: Iterable[Copy], progress: Progress = quietly) -> None:
        for copy in copies:
            if copy.key not in self.objects:
                raise NoObjectError(copy.key)
            progress(copy.path.write_bytes(self.objects[copy.key]))

    def damaged(self, prefix: str, files: Iterable[Mapping[str, Any]]) -> list[str]:
        def sha256(name: str) -> str | None:
            data = self.objects.get(f"{prefix}/{name}")
            return None if data is None else hashlib.sha256(data).hexdigest()

        return [entry["name"] for entry in files if sha256(entry["name"]) != entry["sha256"]]

    def own(self, name: str, *, take_over: bool = False) -> AbstractContextManager[None]:
        return nullcontext()

    def staging(self, prefix: str, run: str, scratch: Path) -> Path:
        safe_key(prefix)
        (folder := scratch / "staging").mkdir()
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
        names = ours()
        files = [path for path in sorted(staging.rglob("*")) if path.is_file()]
        copies = [Copy(f"{prefix}/{path.relative_to(staging).as_posix()}", path) for path in files]
        stored = self.upload(copies, progress)
        name, content = seal({key.removeprefix(f"{prefix}/"): said for key, said in stored.items()})
        self.objects[f"{prefix}/{name}"] = content
        self.delete(*(f"{prefix}/{n}" for n in names if f"{prefix}/{n}" not in stored and n != name))
        shutil.rmtree(staging)

    def add(self, source: Path, key: str) -> None:
        self.upload([Copy(key, source)])

    def prepare(self, prefix: str) -> None:
        pass


class FlakyStore:
    """Another store, but a share of the calls fails: before it did anything, or after, when nobody hears of it."""

    def __init__(self, store: Store, rate: float, seed: int = 0) -> None:
        self._store, self._rate, self._random = store, rate, random.Random(seed)  # noqa: S311 - no secret

    def __getattr__(self, name: str) -> Any:
        real = getattr(self._store, name)
        if name not in ("get", "put", "delete", "names", "upload", "download", "damaged", "add"):
            return real
        error = S3DownloadError if name in ("get", "names", "download", "damaged") else S3UploadError

        def call(*args: Any, **options: Any) -> Any:
            fails, before = self._random.random() < self._rate, self._random.random() < 0.5
            if fails and before:
                raise error("failed before it began")
            result = real(*args, **options)
            if fails:
                raise error("failed when it was done")
            return result

        return call


class InsistentStore:
    """Another store, asked again whenever it fails for a reason that may pass."""

    def __init__(self, store: Any) -> None:
        self._store = store

    def __getattr__(self, name: str) -> Any:
        real = getattr(self._store, name)
        if not callable(real):
            return real

        def call(*args: Any, **options: Any) -> Any:
            failed = False
            while True:
                try:
                    return real(*args, **options)
                except (S3DownloadError, S3UploadError):
                    failed = True
                except ConflictError:
                    # Refused because a failed call had done it after all?
                    if name == "put" and failed and (there := self.get(args[0])) and there.data == args[1]:
                        return there.etag
                    raise

        return call
