"""Unpack a tarball of raw files, trusting nothing in it.

A tarball comes from elsewhere.  Honest ones hold plain files, perhaps below a folder; anything that could write
outside the folder given, or fill the disk or the memory, condemns the whole tarball, also in a member that nobody
asked for: an archive that tries is not to be trusted.

Only single headers are left to :mod:`tarfile`.  Its reader of whole archives takes extended headers of any size into
memory, keeps every member, recurses from header to header, and needs quadratic time for some of them.
"""

from __future__ import annotations

import gzip
import io
import tarfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, NoReturn

from caldp.errors import InputError

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

#: Bytes of the uncompressed tarball. The raws of an association are below 1 GiB; exposures of a visit, some 168 MB
#: each, rarely exceed 20 GiB.
LIMIT = 64 << 30

#: Headers, those that only extend another one included.
MOST_MEMBERS = 10_000

# deflate cannot do better than 1:1032, and a tarball of images of almost no counts comes close (16384 x 1024 pixels
# with 0, 1e3, 1e4, 1e5 counts and gzip -9: 1029, 950, 683, 184), so the ratio alone proves nothing. But 4 GiB are 128
# such images, more than an association has, and what is larger in earnest, exposures for mosaics, is noise that
# shrinks to a half at best. A bomb thus writes 4 GiB, or needs 1/200 of what it wants to write.
_SMALL = 4 << 30
_RATIO = 200

_BLOCK = tarfile.BLOCKSIZE
_CHUNK = 1 << 20
_LONGEST_HEADER = 1 << 16
_LONGEST_NAME = 255
_LONGEST_PATH = 4096

_KINDS = {
    tarfile.LNKTYPE: "a hard link",
    tarfile.SYMTYPE: "a symbolic link",
    tarfile.CHRTYPE: "a character device",
    tarfile.BLKTYPE: "a block device",
    tarfile.FIFOTYPE: "a named pipe",
    tarfile.GNUTYPE_SPARSE: "a sparse file",
}


def is_bomb(packed: int, unpacked: int) -> bool:
    """Say whether so few bytes should not become so many.

    Parameters
    ----------
    packed, unpacked : int
        Bytes.

    Returns
    -------
    bool
    """
    return unpacked > _SMALL and unpacked > _RATIO * packed


@dataclass(frozen=True)
class Unpacked:
    """What a tarball held.

    Attributes
    ----------
    files : tuple of str
        Names of the files written, in the order of the tarball.
    skipped : tuple of str
        Base names of the files that were not wanted.
    """

    files: tuple[str, ...]
    skipped: tuple[str, ...]


def unpack(
    tarball: Path,
    directory: Path,
    *,
    dataset: str,
    wanted: Callable[[str], bool],
    limit: int = LIMIT,
) -> Unpacked:
    """Unpack the wanted files of a tarball, by their base names.

    Permissions, owners and times in the tarball mean nothing.  After an error the directory is as empty as before.

    Parameters
    ----------
    tarball : Path
        A tar file, plain or compressed with gzip, whatever its name ends with.
    directory : Path
        An existing empty directory.
    dataset : str
        Named in messages.
    wanted : callable
        Says for a base name whether to unpack that file.
    limit : int, optional
        Most bytes of the uncompressed tarball, with all that is skipped.

    Returns
    -------
    Unpacked

    Raises
    ------
    InputError
        If the tarball cannot be read, is damaged, is hostile, or holds no file of the dataset.
    OSError
        If the directory cannot be written.
    """
    try:
        reader = tarball.open("rb", buffering=0)
    except OSError as error:
        raise InputError(f"{dataset}: cannot open {tarball} ({error.strerror})", remedy="make it readable") from error
    with reader:
        return unpack_stream(reader, directory, source=str(tarball), dataset=dataset, wanted=wanted, limit=limit)


def unpack_stream(
    reader: IO[bytes],
    directory: Path,
    *,
    source: str,
    dataset: str,
    wanted: Callable[[str], bool],
    limit: int = LIMIT,
) -> Unpacked:
    """Unpack a tarball while it is being read, for example from a network.

    Parameters
    ----------
    reader : file object
        Only its ``read(size)`` is used, to the end.  What it raises passes, but for OSError, which counts as damage.
    directory, dataset, wanted, limit
        As for :func:`unpack`.
    source : str
        What messages call the tarball.

    Returns
    -------
    Unpacked

    Raises
    ------
    InputError, OSError
        As for :func:`unpack`.
    """
    try:
        return _unpack(_Stream(reader, limit), directory, wanted, f"{dataset}_")
    except _Refused as error:
        raise InputError(
            f"{dataset}: {source} cannot be unpacked ({error.reason})", remedy=error.remedy
        ) from error.__cause__


def _unpack(stream: _Stream, directory: Path, wanted: Callable[[str], bool], prefix: str) -> Unpacked:
    files: list[str] = []
    skipped: list[str] = []
    folded: set[str] = set()  # some file systems do not tell upper case from lower
    try:
        while (member := _next_member(stream)) is not None:
            name = _checked_name(member)
            if member.isdir():
                continue
            if not wanted(name):
                skipped.append(name)
                for _ in stream.content(member.size):
                    pass
                continue
            if name.casefold() in folded:
                _hostile(member.name, "is the second file of that name")
            folded.add(name.casefold())
            with (directory / name).open("xb") as writer:
                files.append(name)
                for chunk in stream.content(member.size):
                    writer.write(chunk)
        stream.finish()
        if not any(name.startswith(prefix) for name in files):
            raise _Refused(f"it holds no file {prefix}*", "give each tarball the name of what is in it")
    except BaseException:
        for name in files:
            (directory / name).unlink(missing_ok=True)
        raise
    return Unpacked(tuple(files), tuple(skipped))


class _Refused(Exception):  # noqa: N818 - never leaves this module
    """Why a tarball is not unpacked, and what to do about it."""

    def __init__(self, reason: str, remedy: str = "fetch it again") -> None:
        super().__init__(reason)
        self.reason = reason
        self.remedy = remedy


def _hostile(name: str, what: str) -> NoReturn:
    # ascii(): one line, and nothing in it that a terminal obeys.
    shown = ascii(name)
    shown = shown if len(shown) <= 160 else f"{shown[:100]}...{shown[-40:]}"
    raise _Refused(
        f"member {shown} {what}", "do not use it: fetch it from the archive, or pack nothing but the raw files"
    )


class _Counted(io.RawIOBase):
    """Counts what is read, and asks a reluctant reader until the buffer is full."""

    def __init__(self, reader: IO[bytes]) -> None:
        self._reader = reader
        self.count = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: WriteableBuffer, /) -> int:
        view = memoryview(buffer).cast("B")
        filled = 0
        while filled < len(view) and (data := self._reader.read(len(view) - filled)):
            view[filled : filled + len(data)] = data
            filled += len(data)
        self.count += filled
        return filled


class _Stream:
    """The uncompressed bytes of a tarball, from the first to the last, at most one piece more than allowed."""

    def __init__(self, reader: IO[bytes], limit: int) -> None:
        self._limit = limit
        self._members = 0
        self._packed = _Counted(reader)
        self.count = 0
        packed = io.BufferedReader(self._packed, _CHUNK)
        with _source_may_be_damaged():
            compressed = packed.peek(2)[:2] == b"\x1f\x8b"
        self._bytes: io.BufferedIOBase = gzip.GzipFile(fileobj=packed, mode="rb") if compressed else packed

    def header(self) -> tarfile.TarInfo | None:
        """Read one header, or None for the mark of the end."""
        block = self._read(_BLOCK)
        if not self.count:
            raise _Refused("it is empty")
        if len(block) < _BLOCK:
            raise _Refused("it is not a tar file" if self.count < _BLOCK else "it ends early")
        if not block.strip(b"\0"):
            return None
        try:
            header = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
        except tarfile.HeaderError as error:
            where = f"it is damaged at byte {self.count - _BLOCK}"
            raise _Refused(where if self.count > _BLOCK else "it is not a tar file") from error
        self._members += 1
        if self._members > MOST_MEMBERS:
            _hostile(header.name, f"is one too many: the limit is {MOST_MEMBERS}")
        return header

    def extension(self, header: tarfile.TarInfo) -> bytes:
        """Read the content of a header that extends the next one."""
        if not 0 <= header.size <= _LONGEST_HEADER:
            _hostile(header.name, f"claims a header of {header.size} bytes")
        return b"".join(self.content(header.size))

    def allow(self, name: str, size: int) -> None:
        """Refuse a member that claims more than can be left, before any of it is read."""
        if not 0 <= size <= self._limit - self.count:
            _hostile(name, f"claims {size} bytes: the limit for all is {self._limit}")

    def content(self, size: int) -> Iterator[bytes]:
        """Read the content of a member in pieces, and what pads it."""
        left = size
        while left:
            chunk = self._read(min(left, _CHUNK))
            if not chunk:
                raise _Refused("it ends early")
            left -= len(chunk)
            yield chunk
        self._read(-size % _BLOCK)  # cut short here, there is no next header either

    def finish(self) -> None:
        """Read what pads the tarball: only then gzip has compared the checksum of the whole."""
        while chunk := self._read(_CHUNK):
            if chunk.strip(b"\0"):
                raise _Refused("something follows its end")

    def _read(self, size: int) -> bytes:
        with _source_may_be_damaged():
            data = self._bytes.read(size)
        self.count += len(data)
        if self.count > self._limit:
            raise _Refused(f"it holds more than {self._limit} bytes", "pack nothing but the raw files")
        if is_bomb(self._packed.count, self.count):
            raise _Refused(
                f"{self._packed.count} bytes of it hold more than {self.count}", "pack nothing but the raw files"
            )
        return data


@contextmanager
def _source_may_be_damaged() -> Iterator[None]:
    # Apart from the writing, so that a full disk is not taken for a damaged tarball.
    try:
        yield
    except (OSError, EOFError, zlib.error) as error:
        raise _Refused(str(error)[:160] or type(error).__name__) from error


def _next_member(stream: _Stream) -> tarfile.TarInfo | None:
    """Read the header of the next directory or regular file, with the headers that extend it; None at the end."""
    long_name = b""
    pax: dict[bytes, bytes] = {}
    extended = False
    while (header := stream.header()) is not None:
        extended = True
        if header.type == tarfile.GNUTYPE_LONGNAME:
            long_name = stream.extension(header).rstrip(b"\0")
        elif header.type == tarfile.GNUTYPE_LONGLINK:
            stream.extension(header)  # of a link, which is refused when it comes
        elif header.type in (tarfile.XHDTYPE, tarfile.SOLARIS_XHDTYPE):
            pax = _pax_records(stream.extension(header))
        elif header.type == tarfile.XGLTYPE:
            if any(key in (b"path", b"size") or _is_sparse(key) for key in _pax_records(stream.extension(header))):
                _hostile(header.name, "renames or resizes all that follow")
        else:
            break
    if header is None:
        if extended:
            raise _Refused("it ends early")
        return None
    if name := pax.get(b"path") or long_name:
        header.name = name.decode("utf-8", "surrogateescape")
    if size := pax.get(b"size"):
        if not size.isdigit() or len(size) > 20:
            raise _Refused("it has a damaged extended header")
        header.size = int(size)
    if any(_is_sparse(key) for key in pax):
        _hostile(header.name, "is a sparse file")
    if header.type not in (tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.DIRTYPE):
        _hostile(header.name, f"is {_KINDS.get(header.type, f'of the unknown kind {ascii(header.type)}')}")
    if header.isdir() and header.size:
        _hostile(header.name, "is a directory that claims to have content")
    stream.allow(header.name, header.size)
    return header


def _is_sparse(key: bytes) -> bool:
    return key.startswith(b"GNU.sparse")


def _pax_records(data: bytes) -> dict[bytes, bytes]:
    """Read ``<length> <key>=<value>`` records, in one pass."""
    records: dict[bytes, bytes] = {}
    position = 0
    while position < len(data):
        space = data.find(b" ", position, position + 8)
        length = data[position:space] if space > 0 else b""
        end = position + (int(length) if length.isdigit() else 0)
        # A length of nothing, or beyond the end, leaves no "=" or no newline.
        key, equals, value = data[space + 1 : max(end - 1, 0)].partition(b"=")
        if not equals or data[end - 1 : end] != b"\n":
            raise _Refused("it has a damaged extended header")
        records[key] = value
        position = end
    return records


def _checked_name(member: tarfile.TarInfo) -> str:
    """Return the base name of a member, of which every part is harmless."""
    name = member.name
    parts = name.split("/")
    # Bytes that are not UTF-8 have become surrogates, which are not printable.
    if not name.isprintable() or "\\" in name:
        _hostile(name, "has a backslash or an unprintable character in its name")
    if name.startswith("/") or ".." in parts:
        _hostile(name, "points outside the folder it is unpacked in")
    if len(name.encode()) > _LONGEST_PATH or any(len(part.encode()) > _LONGEST_NAME for part in parts):
        _hostile(name, "has a name that is too long")
    if not member.isdir() and parts[-1] in ("", "."):
        _hostile(name, "is a file without a name")
    return parts[-1]
