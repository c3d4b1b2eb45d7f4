"""Tiny COS files, as far as CALDP looks at them."""

from __future__ import annotations

import gzip
import shutil
from pathlib import Path
from typing import Any

import numpy as np
from astropy.io import fits

#: Header of an exposure that calcos would calibrate completely.
SCIENCE: dict[str, Any] = {
    "INSTRUME": "COS",
    "DETECTOR": "FUV",
    "OBSTYPE": "SPECTROSCOPIC",
    "OBSMODE": "TIME-TAG",
    "EXPTYPE": "EXTERNAL/SCI",
    "FPPOS": 3,
    "TAGFLASH": "AUTO",
    "FLATCORR": "PERFORM",
    "WAVECORR": "PERFORM",
    "X1DCORR": "PERFORM",
    "BADTCORR": "OMIT",
}


def write_raw(folder: Path, root: str, suffix: str = "rawtag_a", *, events: int = 5, **header: Any) -> Path:
    """Write a raw file with a table of events."""
    primary = fits.PrimaryHDU()
    primary.header.update(SCIENCE | {"ROOTNAME": root.upper()} | header)
    table = fits.BinTableHDU.from_columns([fits.Column("TIME", "1E", array=np.arange(events))], name="EVENTS")
    table.header["NUMFLASH"] = 2
    path = folder / f"{root}_{suffix}.fits"
    fits.HDUList([primary, table]).writeto(path)
    return path


def write_asn(folder: Path, root: str, *members: tuple[str, str, bool], present: bool = True) -> Path:
    """Write an association table of (member, type, present); ``present`` says whether it has that column."""
    columns = [
        fits.Column("MEMNAME", "14A", array=[m[0].upper() for m in members]),
        fits.Column("MEMTYPE", "14A", array=[m[1] for m in members]),
    ]
    if present:
        columns.append(fits.Column("MEMPRSNT", "L", array=[m[2] for m in members]))
    path = folder / f"{root}_asn.fits"
    fits.HDUList([fits.PrimaryHDU(), fits.BinTableHDU.from_columns(columns, name="ASN")]).writeto(path)
    return path


def write_support(folder: Path, root: str, suffix: str = "spt") -> Path:
    """Write a file that goes with the raw data."""
    path = folder / f"{root}_{suffix}.fits"
    fits.PrimaryHDU(np.zeros(4, np.int16)).writeto(path)
    return path


def compress(path: Path) -> Path:
    """Replace a file by its .gz form."""
    packed = path.with_name(path.name + ".gz")
    with path.open("rb") as reader, gzip.open(packed, "wb") as writer:
        shutil.copyfileobj(reader, writer)
    path.unlink()
    return packed


def truncate(path: Path, share: float = 0.5) -> Path:
    """Cut a file off."""
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])
    return path
