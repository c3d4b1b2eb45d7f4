"""Writing files that are byte-identical from run to run: no clock, no host, no leftovers of a crash."""

from __future__ import annotations

import gzip
import io
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from astropy.io import fits

Card = str | int | float | bool


def write_bytes(path: Path, content: bytes) -> None:
    """Write `content` under a temporary name beside `path`, then rename: a reader never sees half a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        temporary.write_bytes(content)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, content: str) -> None:
    """Write UTF-8 text as `write_bytes` does."""
    write_bytes(path, content.encode("utf-8"))


def write_fits(path: Path, primary: Mapping[str, Card], extensions: Sequence[Any], *, compressed: bool = False) -> None:
    """Write a FITS file.

    Parameters
    ----------
    path : Path
        The file; its name also goes into keyword FILENAME.
    primary : mapping
        Keywords of the primary header, in order.
    extensions : sequence of astropy HDU objects
        The extensions.
    compressed : bool
        Store as a gzip stream under the plain name: astropy and calcos recognise it by its first bytes.
    """
    header = fits.Header()
    header["NEXTEND"] = len(extensions)
    header["FILENAME"] = path.name
    for keyword, value in primary.items():
        header[keyword] = value
    buffer = io.BytesIO()
    fits.HDUList([fits.PrimaryHDU(header=header), *extensions]).writeto(buffer)
    content = buffer.getvalue()
    # mtime 0: the time of writing must not enter the stream.
    write_bytes(path, gzip.compress(content, compresslevel=6, mtime=0) if compressed else content)


def table(columns: Sequence[fits.Column], keywords: Mapping[str, Card], name: str = "") -> fits.BinTableHDU:
    """Binary table extension with extra header `keywords` and, if given, an extension `name`."""
    native = fits.BinTableHDU.from_columns(columns)
    fields = np.asarray(native.data)
    # astropy swaps the bytes of a wide field item by item when it writes, which takes seconds: swap before.
    hdu = fits.BinTableHDU(fields.astype(fields.dtype.newbyteorder(">")).view(fits.FITS_rec))
    for given, written in zip(native.columns, hdu.columns, strict=True):
        written.format, written.unit = given.format, given.unit
    if name:
        hdu.header["EXTNAME"] = name
        hdu.header["EXTVER"] = 1
    for keyword, value in keywords.items():
        hdu.header[keyword] = value
    return hdu
