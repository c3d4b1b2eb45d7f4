"""Stands in for calacs.e where HSTCAL is not installed: ACS/HRC images, with neutral references.

usage: python hrc.py <raw or association table>

It does what calacs.e does with these files, as measured: overscan subtracted and trimmed, electrons, an error array, a
data quality array, the header of the raw file with what was done, ``flt`` of each exposure, ``crj`` of a set that was
split against cosmic rays, trailers, exit statuses.  A test compares it with calacs.e where that is installed.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from astropy.io import fits

#: Columns of physical overscan on either side; amplifier C is read first, so its 20 virtual rows are on top.
TRIM = 19
SIZE = 1024

#: Columns from which the bias level is taken: those that are read last.
OVERSCAN = slice(1046, 1060)

#: Electrons for each count, read noise in electrons, level of saturation in counts, as the stand-in references have it.
GAIN = 2.2
READ_NOISE = 4.7
SATURATED = 65534

#: Data quality flag of saturation in the analog-to-digital converter.
FLAG = 2048

STEPS = ("DQICORR", "BLEVCORR", "BIASCORR", "DARKCORR", "FLATCORR", "PHOTCORR")

PHOTOMETRY = {"PHOTFLAM": 3.0e-19, "PHOTZPT": -21.1, "PHOTPLAM": 5356.0, "PHOTBW": 360.0}


def performs(header: fits.Header, step: str) -> bool:
    return str(header.get(step, "")).strip() == "PERFORM"


def calibrate(root: str) -> bool:
    """Make ``<root>_flt.fits`` of ``<root>_raw.fits``; say whether there was anything to do."""
    with fits.open(f"{root}_raw.fits") as raw:
        primary, headers = raw[0].header.copy(), [hdu.header.copy() for hdu in raw[1:4]]
        counts = raw["SCI"].data.astype(np.float64)
    todo = [step for step in STEPS if performs(primary, step)]
    if not todo:
        print("Warning    No calibration switch was set to PERFORM.")
        return False
    if "BIASCORR" in todo and str(primary.get("SATUFILE", "N/A")).strip() in ("", "N/A"):
        print("ERROR:    SATUFILE `N/A' not found or can't open.")
        print("ERROR:    Calibration file(s) missing.")
        sys.exit(2)
    trimmed = counts[:SIZE, TRIM : TRIM + SIZE]
    science = (trimmed - np.median(counts[:SIZE, OVERSCAN])) * GAIN
    error = np.sqrt(np.clip(science, 0, None) + READ_NOISE**2)
    quality = np.where(trimmed > SATURATED, FLAG, 0)
    for step in (*todo, "EXPSCORR"):
        primary[step] = "COMPLETE"
    primary["CAL_VER"] = "stand-in for calacs.e"
    primary["ATODGNC"], primary["READNSEC"] = GAIN, READ_NOISE
    images = zip((science, error, quality), headers, ("f4", "f4", "i2"), strict=True)
    extensions = [extension(data.astype(kind), header) for data, header, kind in images]
    extensions[0].header.update(PHOTOMETRY)
    extensions[0].header["PHOTMODE"] = f"ACS HRC {primary['FILTER1'].strip()}"
    write(f"{root}_flt.fits", primary, extensions)
    Path(f"{root}.tra").write_text(f"CALBEG {root}\nCALACS stand-in for {root}\n")
    return True


def extension(data: np.ndarray, header: fits.Header) -> fits.ImageHDU:
    """Return an extension with the header of the raw one, moved by what was trimmed."""
    for keyword in ("BSCALE", "BZERO", "NPIX1", "NPIX2", "PIXVALUE", "DATAMIN", "DATAMAX"):
        header.remove(keyword, ignore_missing=True)
    if "CRPIX1" in header:
        header["CRPIX1"] -= TRIM
        header["LTV1"] -= TRIM
    if "SIZAXIS1" in header:
        header["SIZAXIS1"] = header["SIZAXIS2"] = SIZE
    if header["EXTNAME"].strip() != "DQ":
        header["BUNIT"] = "ELECTRONS"
    return fits.ImageHDU(data, header)


def write(name: str, primary: fits.Header, extensions: list[fits.ImageHDU]) -> None:
    if Path(name).exists():
        print(f"Warning    Output file `{name}' already exists.")
        sys.exit(2)
    primary["FILENAME"], primary["NEXTEND"] = name, len(extensions)
    fits.HDUList([fits.PrimaryHDU(header=primary), *extensions]).writeto(name, output_verify="silentfix")


def combine(product: str, exposures: list[str]) -> None:
    """Make ``<product>_crj.fits``: the lowest of the exposures, for the time of all."""
    opened = [fits.open(f"{root}_flt.fits") for root in exposures]
    primary = opened[0][0].header.copy()
    primary["ROOTNAME"], primary["ASN_MTYP"], primary["CRCORR"] = product.upper(), "PROD-CRJ", "COMPLETE"
    primary["EXPTIME"] = primary["TEXPTIME"] = sum(hdus[0].header["EXPTIME"] for hdus in opened)
    lowest = np.min([hdus["SCI"].data for hdus in opened], axis=0) * len(opened)
    error = np.sqrt(sum(hdus["ERR"].data ** 2 for hdus in opened))
    headers = [opened[0][name].header.copy() for name in ("SCI", "ERR", "DQ")]
    extensions = [
        fits.ImageHDU(data, header) for data, header in zip((lowest, error, opened[0]["DQ"].data), headers, strict=True)
    ]
    write(f"{product}_crj.fits", primary, extensions)
    for hdus in opened:
        hdus.close()
    Path(f"{product}.tra").write_text(f"CALACS stand-in for {product}\n")


def main(arguments: list[str]) -> int:
    if len(arguments) != 1:
        print("syntax:  calacs.e input")
        return 2
    root, _, suffix = arguments[0].removesuffix(".fits").partition("_")
    if suffix != "asn":
        if not calibrate(root):
            print(f"CALACS did NOT process {arguments[0]}")
        return 0
    table = fits.getdata(arguments[0])
    rows = [(str(row["MEMNAME"]).strip().lower(), str(row["MEMTYPE"]).strip()) for row in table]
    for name, kind in rows:
        if kind.startswith("EXP") and not calibrate(name):
            print(f"CALACS did NOT process {name}_raw.fits")
    for name, kind in rows:
        if kind == "PROD-CRJ":
            combine(name, [member for member, of in rows if of == "EXP-CRJ"])
    Path(f"{root}.tra").write_text(f"CALACS stand-in for {root}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
