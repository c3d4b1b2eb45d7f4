"""Small raw files of ACS and WFC3, as far as CALDP and the fake programs look at them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.fakes import smallfits

_IMAGING = {"OBSTYPE": "IMAGING", "EXPTYPE": "EXTERNAL/SCI", "DRIZCORR": "PERFORM", "EXPSCORR": "PERFORM"}

#: Switches of a CCD exposure that is calibrated completely.
_CCD = dict.fromkeys(("DQICORR", "BIASCORR", "BLEVCORR", "DARKCORR", "FLATCORR", "PHOTCORR"), "PERFORM")

#: Headers of exposures that are calibrated completely.
HRC: dict[str, Any] = {"INSTRUME": "ACS", "DETECTOR": "HRC", **_IMAGING, **_CCD}
WFC: dict[str, Any] = HRC | {"DETECTOR": "WFC", "PCTECORR": "PERFORM"}
SBC: dict[str, Any] = {
    **{"INSTRUME": "ACS", "DETECTOR": "SBC"},
    **_IMAGING,
    **dict.fromkeys(("DQICORR", "DARKCORR", "FLATCORR", "PHOTCORR"), "PERFORM"),
}
UVIS: dict[str, Any] = WFC | {"INSTRUME": "WFC3", "DETECTOR": "UVIS"}
IR: dict[str, Any] = {
    **{"INSTRUME": "WFC3", "DETECTOR": "IR"},
    **_IMAGING,
    **dict.fromkeys("DQICORR ZSIGCORR ZOFFCORR BLEVCORR DARKCORR NLINCORR FLATCORR UNITCORR CRCORR".split(), "PERFORM"),
}

#: No step is asked for.
OMIT: dict[str, Any] = {key: "OMIT" for key, value in {**WFC, **IR}.items() if value == "PERFORM"}


def write_direct(folder: Path, root: str, kind: dict[str, Any] = HRC, **header: Any) -> Path:
    """Write a raw file."""
    facts = kind | {"ROOTNAME": root.upper(), "CRCORR": kind.get("CRCORR", "OMIT")} | header
    return smallfits.write(folder / f"{root}_raw.fits", facts, smallfits.image("SCI", bitpix=16))
