"""Files that a user sends, part by part, before they are submitted.

A part is an object of its own under a key that the server has chosen; a record says which parts a file has.  Nothing
that a client calls a file becomes a path.
"""

from __future__ import annotations

import contextlib
import hashlib
import re
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from caldp.crdserver.records import Record
from caldp.crdserver.site import Site
from caldp.errors import InputError
from caldp.store import ConflictError, Copy, Create

#: What may be delivered.
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,119}\.(fits|asdf|json|yaml|[ir]map|pmap)", re.ASCII)

_RANGE = re.compile(r"bytes (\d{1,15})-(\d{1,15})/(\d{1,15})")

#: How the types begin that have a beginning of their own.
_BEGINS = {"fits": b"SIMPLE  =", "asdf": b"#ASDF", "imap": b"header", "rmap": b"header", "pmap": b"header"}

#: Bytes of one part, and files of one user.
LARGEST_PART = 5_500_000
_MOST = 1000

#: Parts of one file: what a record takes.
_MOST_PARTS = 2300


@dataclass(frozen=True)
class Upload:
    """A file that was sent, or a part of it.

    Attributes
    ----------
    name : str
        What its user calls it.
    size, total : int
        Bytes that are here, and that there should be.
    parts : tuple of dict
        ``key``, ``size``, ``sha256`` of each, in order.
    """

    name: str
    size: int
    total: int
    parts: tuple[dict[str, Any], ...]

    @property
    def whole(self) -> bool:
        """Whether all of it is here."""
        return self.size == self.total


class Uploads:
    """Files that one user has sent.

    Parameters
    ----------
    site : Site
        Where to.
    user : str
        Whose.
    """

    def __init__(self, site: Site, user: str) -> None:
        self._site = site
        self._space = f"{site.observatory}:uploads:{user}"
        self._refusals = f"{site.observatory}:refused:{user}"

    def files(self) -> list[Upload]:
        """Return all files, by name."""
        return [_upload(record) for record in self._site.records.scan(self._space)]

    def receive(self, name: str, data: bytes, content_range: str) -> Upload:
        """Keep a file, or the next part of one.

        Parameters
        ----------
        name : str
            What the client calls it.
        data : bytes
            The part.
        content_range : str
            ``bytes <first>-<last>/<total>``; empty if this is all of the file.

        Returns
        -------
        Upload

        Raises
        ------
        InputError
            If it cannot be what it says; nothing of it is kept then, but that it was refused: the client does not
            look at answers to what it sends.
        """
        try:
            upload = self._receive(checked_name(name), data, content_range)
        except InputError as error:
            self._site.records.put(self._refusals, name[:200] or "?", {"why": str(error)})
            raise
        self._site.records.delete(self._refusals, name)
        return upload

    def _receive(self, name: str, data: bytes, content_range: str) -> Upload:
        if len(data) > LARGEST_PART:
            raise InputError(
                f"{name}: a part of {len(data)} bytes is too large", remedy="send parts of 2,000,000 bytes"
            )
        first, total = 0, len(data)
        if content_range:
            match = _RANGE.fullmatch(content_range.strip())
            if match is None or int(match[2]) - int(match[1]) + 1 != len(data) or int(match[2]) >= int(match[3]):
                raise InputError(
                    f"{name}: {len(data)} bytes came as {content_range[:60]!r}: truncated?",
                    remedy="send the file again",
                )
            first, total = int(match[1]), int(match[3])
        if not total:
            raise InputError(f"{name} is empty", remedy="look at your file")
        if total > (most := self._site.settings.largest_upload):
            raise InputError(f"{name}: {total} bytes are too many", remedy=f"files of {most} bytes at most are taken")
        if not first and -(-total // len(data)) > _MOST_PARTS:
            raise InputError(
                f"{name}: {total} bytes in parts of {len(data)} are more than {_MOST_PARTS} parts",
                remedy=f"send larger parts, of {LARGEST_PART} bytes at most",
            )
        if not first and not data.startswith(_BEGINS.get(name.rpartition(".")[2], b"")):
            raise InputError(f"{name} does not look like its type", remedy="look at your file")
        sha256 = hashlib.sha256(data).hexdigest()
        old = self._site.records.get(self._space, name)
        parts: Sequence[dict[str, Any]] = old.value["parts"] if old and first else ()
        here = sum(part["size"] for part in parts)
        if first and parts and here == first + len(data) and parts[-1]["sha256"] == sha256:
            return Upload(name, here, total, tuple(parts))  # its answer was lost, and it came again
        if first != here or (first and old and old.value["total"] != total):
            raise InputError(
                f"{name}: bytes from {first} came, but {here} are here", remedy="send the file again from its beginning"
            )
        if old is None and len(self.files()) >= _MOST:
            raise InputError(f"there are {_MOST} files already", remedy="remove some, or submit them")
        key = f"server/{self._site.observatory}/uploads/{secrets.token_hex(16)}"
        self._site.store.put(key, data, Create())
        parts = [*parts, {"key": key, "size": len(data), "sha256": sha256}]
        value = {"total": total, "parts": parts}
        try:
            self._site.records.put(self._space, name, value, expect=old.version if old else 0)
        except ConflictError:
            self._site.store.delete(key)
            raise InputError(f"{name} is being sent twice at once", remedy="send it again from its beginning") from None
        if old and not first:
            self._forget(old)
        return Upload(name, first + len(data), total, tuple(parts))

    def remove(self, name: str) -> None:
        """Remove a file; one that is not there is no error."""
        self._site.records.delete(self._refusals, name)
        record = self._site.records.get(self._space, name)
        if record:
            self._site.records.delete(self._space, name)
            self._forget(record)

    def whole(self) -> dict[str, Upload]:
        """Return all files; InputError if one is not whole, or was refused since the last time."""
        found = {one.name: one for one in self.files()}
        refused = list(self._site.records.scan(self._refusals))
        for record in refused:
            self._site.records.delete(self._refusals, record.key)
        if refused:
            raise InputError(f"{refused[0].value['why']} ({len(refused)} refused)")
        if not found:
            raise InputError("no files were sent", remedy="send files first")
        if partial := [one for one in found.values() if not one.whole]:
            raise InputError(
                f"{partial[0].name}: {partial[0].size} of {partial[0].total} bytes have come", remedy="send it again"
            )
        return found

    def release(self, files: Mapping[str, Upload]) -> None:
        """Forget files that a submission owns; what was sent under their names since stays."""
        for name, upload in files.items():
            record = self._site.records.get(self._space, name)
            if record and _upload(record).parts == upload.parts:
                with contextlib.suppress(ConflictError):
                    self._site.records.delete(self._space, name, expect=record.version)

    def _forget(self, record: Record) -> None:
        self._site.store.delete(*(part["key"] for part in record.value["parts"]))


def checked_name(name: str) -> str:
    """Return the name of a file to deliver; InputError if it is none."""
    if not _NAME.fullmatch(name) or ".." in name:
        raise InputError(
            f"{name[:120]!r} cannot be delivered", remedy="send .fits, .asdf, .json, .yaml or mappings, of plain names"
        )
    return name


def owned(name: str, parts: Sequence[dict[str, Any]]) -> Upload:
    """Return a file that is whole, of its parts."""
    size = sum(part["size"] for part in parts)
    return Upload(name, size, size, tuple(parts))


def assemble(site: Site, parts: Sequence[dict[str, Any]], path: Path) -> str:
    """Put the parts of a file together.

    Parameters
    ----------
    site : Site
        Where they are.
    parts : sequence of dict
        See ``Upload``.
    path : Path
        The file to make.

    Returns
    -------
    str
        Its sha1.

    Raises
    ------
    InputError
        If a part is not what was received.
    """
    sha1 = hashlib.sha1()  # noqa: S324 - what CRDS has chosen
    with path.open("wb") as stream:
        for number, part in enumerate(parts):
            piece = path.with_name(f".{path.name}.part")
            site.store.download([Copy(part["key"], piece)])
            data = piece.read_bytes()
            piece.unlink()
            if len(data) != part["size"] or hashlib.sha256(data).hexdigest() != part["sha256"]:
                raise InputError(f"{path.name}: part {number + 1} is not what was sent", remedy="send the file again")
            stream.write(data)
            sha1.update(data)
    return sha1.hexdigest()


def _upload(record: Record) -> Upload:
    parts = tuple(record.value["parts"])
    return Upload(record.key, sum(part["size"] for part in parts), record.value["total"], parts)
