"""Small raw files of STIS, as far as CALDP and the fake programs look at them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.fakes import smallfits

#: Header of a CCD spectrum that is calibrated completely.
CCD: dict[str, Any] = {
    **{"INSTRUME": "STIS", "DETECTOR": "CCD", "OBSTYPE": "SPECTROSCOPIC", "OBSMODE": "ACCUM"},
    **{"EXPTYPE": "EXTERNAL/SCI", "OPT_ELEM": "G430L", "CRCORR": "PERFORM", "EXPSCORR": "PERFORM"},
    **dict.fromkeys("DQICORR BLEVCORR BIASCORR DARKCORR FLATCORR WAVECORR X1DCORR X2DCORR".split(), "PERFORM"),
}

#: The same of a MAMA.
MAMA: dict[str, Any] = {
    **{"INSTRUME": "STIS", "DETECTOR": "FUV-MAMA", "OBSTYPE": "SPECTROSCOPIC", "OBSMODE": "ACCUM"},
    **{"EXPTYPE": "EXTERNAL/SCI", "OPT_ELEM": "G140L"},
    **dict.fromkeys("DQICORR LORSCORR GLINCORR DARKCORR FLATCORR WAVECORR X1DCORR X2DCORR".split(), "PERFORM"),
}

#: An image of the CCD.
IMAGE: dict[str, Any] = {
    **{"INSTRUME": "STIS", "DETECTOR": "CCD", "OBSTYPE": "IMAGING", "OBSMODE": "ACCUM", "EXPTYPE": "EXTERNAL/SCI"},
    **dict.fromkeys("DQICORR BLEVCORR DARKCORR FLATCORR PHOTCORR GEOCORR".split(), "PERFORM"),
}

#: No step is asked for.
OMIT: dict[str, Any] = {key: "OMIT" for key, value in {**CCD, **MAMA, **IMAGE}.items() if value == "PERFORM"}


def write_stis(folder: Path, root: str, suffix: str = "raw", exposures: int = 1, **header: Any) -> Path:
    """Write a raw file with SCI, ERR and DQ of each exposure."""
    facts = CCD | {"ROOTNAME": root.upper(), "WAVECAL": f"{root}_wav.fits".upper()} | header
    extensions = [
        part
        for version in range(1, exposures + 1)
        for part in (
            smallfits.image("SCI", version=version, bitpix=16),
            smallfits.image("ERR", version=version),
            smallfits.ramp("DQ", version=version),
        )
    ]
    return smallfits.write(folder / f"{root}_{suffix}.fits", facts, *extensions)
