"""A prefix of an S3 bucket whose objects are the files of a folder."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path

from caldp.store import Copy, Entry, NoObjectError, Progress, quietly

#: What the folder is called.
BUCKET = "s3://fake"


class FakeBucket:
    """Lists, and downloads by copying.

    Attributes
    ----------
    root : Path
        What ``s3://fake`` means.
    listed : list of str
        What was asked for, by any.
    downloaded : list of str
        The names of the objects that were downloaded from any.
    """

    root: Path
    listed: list[str]
    downloaded: list[str]

    def __init__(self, uri: str, aws: Mapping[str, str]) -> None:
        self.uri = uri.rstrip("/")
        self._folder = self.root / self.uri.removeprefix(BUCKET).lstrip("/")

    @classmethod
    def of(cls, root: Path) -> type[FakeBucket]:
        """Return a class for the stores of one test."""
        return type("FakeBucketOfOne", (cls,), {"root": root, "listed": [], "downloaded": []})

    def url(self, key: str) -> str:
        return f"{self.uri}/{key}"

    def beginning(self, stem: str) -> dict[str, Entry]:
        self.listed.append(stem)
        paths = self._folder.glob("*") if self._folder.is_dir() else ()
        return {p.name: Entry(p.name, p.stat().st_size, "x") for p in paths if p.is_file() and p.name.startswith(stem)}

    def download(self, copies: Iterable[Copy], progress: Progress = quietly) -> None:
        for copy in copies:
            self.downloaded.append(copy.key)
            try:
                shutil.copyfile(self._folder / copy.key, copy.path)
            except FileNotFoundError:
                raise NoObjectError(copy.key) from None
            progress(copy.path.stat().st_size)

    def verify(self, copies: Iterable[Copy]) -> None:
        pass
