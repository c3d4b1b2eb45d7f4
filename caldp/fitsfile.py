"""Is a FITS file whole, and how are its headers changed?"""

from __future__ import annotations

import gzip
import io
import math
import warnings
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any

#: What reading a damaged file raises, besides astropy's own exceptions.
_DAMAGE = (OSError, EOFError, ValueError, TypeError, LookupError, AttributeError, OverflowError, zlib.error)

#: FITS blocks, and the most axes that an array may have (FITS standard 4.0, sections 3.1 and 4.4.1.1).
_BLOCK = 2880
_MOST_AXES = 999

#: Bytes of a header, beyond which it is none: HST's are below 100 kB.
_LONGEST_HEADER = 16 << 20

#: astropy's warnings that mean damage; a header cut short is only a warning to it. Others are matters of taste.
_ALARMING = ("File may have been truncated", "Error validating header", "Invalid keyword for column")


@contextmanager
def damage_raises() -> Iterator[None]:
    """Let astropy's warnings about damage be exceptions, and its others be silent."""
    from astropy.utils.exceptions import AstropyWarning

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", AstropyWarning)
        for message in _ALARMING:
            warnings.filterwarnings("error", message, AstropyWarning)
        yield


class DamagedError(Exception):
    """A FITS file cannot be read; the message says why, in a few words."""


@contextmanager
def reading() -> Iterator[None]:
    """Turn what astropy raises on damaged headers and tables, and its warnings, into a DamagedError."""
    from astropy.io import fits
    from astropy.utils.exceptions import AstropyWarning

    try:
        with damage_raises():
            yield
    except (*_DAMAGE, AstropyWarning, fits.VerifyError) as error:
        raise DamagedError(" ".join(str(error).split())[:160] or type(error).__name__) from error


def damage(path: Path, *, count: bool = False) -> str:
    """Say what is wrong with a FITS file.

    Every header is read, and the data that the headers promise must lie within the file; the data are not read.

    Parameters
    ----------
    path : Path
        The file; a gzip stream under a ``.fits`` name is FITS too.
    count : bool
        There must be as many extensions as the primary header says (NEXTEND): a file may be cut between two.

    Returns
    -------
    str
        Empty if the file is whole.
    """
    from astropy.io import fits

    try:
        # Opened here, because astropy leaves open what it cannot read.
        with reading(), path.open("rb") as stream:
            compressed = stream.read(2) == b"\x1f\x8b"
            stream.seek(0)
            with gzip.open(stream) if compressed else nullcontext(stream) as plain:
                _count_axes(plain)
            stream.seek(0)
            with fits.open(stream, memmap=not compressed) as hdus:
                end = max(info["datLoc"] + info["datSpan"] for info in (hdu.fileinfo() for hdu in hdus))
                promised = int(hdus[0].header.get("NEXTEND", 0)) if count else 0
                if len(hdus) - 1 < promised:
                    return f"truncated: {len(hdus) - 1} of {promised} extensions"
            size = _expanded(path) if compressed else path.stat().st_size
    except DamagedError as error:
        return str(error)
    return f"truncated: {size} bytes of {end}" if end > size else ""


def _count_axes(stream: Any) -> None:  # noqa: ANN401 - a file or a gzip.GzipFile
    """Raise ValueError for headers that astropy would be busy with for ever.

    It counts a billion axes one by one, and reads what has no END to the end of the file.
    """
    from astropy.io import fits

    if not stream.read(9).startswith(b"SIMPLE  ="):
        raise ValueError("No SIMPLE card found")
    stream.seek(0)
    with suppress(EOFError):  # no further header
        while True:
            header = fits.Header.fromstring(_header_text(stream))
            axes = int(header.get("NAXIS", 0))
            if not 0 <= axes <= _MOST_AXES:
                raise ValueError(f"NAXIS = {axes}")
            sides = [int(header[f"NAXIS{n}"]) for n in range(1, axes + 1)]
            if sides and sides[0] == 0 and header.get("GROUPS"):
                sides = sides[1:]
            cells = (math.prod(sides) if sides else 0) + int(header.get("PCOUNT", 0))
            size = abs(int(header["BITPIX"])) // 8 * int(header.get("GCOUNT", 1)) * cells
            if size < 0 or min(sides, default=0) < 0:
                raise ValueError("a size is negative")
            stream.seek(-(-size // _BLOCK) * _BLOCK, io.SEEK_CUR)


def _header_text(stream: Any) -> bytes:  # noqa: ANN401
    """Read blocks up to the one with the END card; EOFError where there is none."""
    text = bytearray()
    while len(text) < _LONGEST_HEADER:
        block = stream.read(_BLOCK)
        if not text and not block.startswith((b"SIMPLE  =", b"XTENSION=")):
            raise EOFError  # what follows the last extension is no header
        text += block
        if any(block[card : card + 80].rstrip() == b"END" for card in range(0, len(block), 80)):
            return bytes(text)
        if len(block) < _BLOCK:
            raise EOFError
    raise ValueError("a header has no end")


def read_header(path: Path) -> Any:  # noqa: ANN401 - astropy has no types
    """Read the primary header of a file, whatever its cards look like.

    Parameters
    ----------
    path : Path
        The file.

    Returns
    -------
    astropy.io.fits.Header
    """
    from astropy.io import fits

    with damage_raises():
        return fits.getheader(path)


def _expanded(path: Path) -> int:
    """Return the size of what a gzip stream holds, read to its end."""
    size = 0
    with gzip.open(path) as stream:
        while chunk := stream.read(1 << 20):
            size += len(chunk)
    return size


def update_header(path: Path, cards: Mapping[str, tuple[Any, str]]) -> None:
    """Set keywords of a primary header, leaving what else is in it as it is.

    Parameters
    ----------
    path : Path
        The file.
    cards : mapping
        Keyword -> (value, comment); an empty comment keeps the one there is.
    """
    from astropy.io import fits

    with damage_raises():
        hdus = fits.open(path, mode="update")
        for key, (value, comment) in cards.items():
            hdus[0].header[key] = (value, comment) if comment else value
        hdus.close(output_verify="silentfix+ignore")  # an odd card that was there already is not ours to judge
