"""Small products for the tests of previews, and a look at the pictures made of them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from astropy.io import fits
from PIL import Image


def write_image(
    path: Path,
    *science: np.ndarray | None,
    dq: np.ndarray | None = None,
    weight: np.ndarray | None = None,
    keywords: dict[str, Any] | None = None,
    science_keywords: dict[str, Any] | None = None,
    chips: Sequence[int] = (),
) -> Path:
    primary = fits.PrimaryHDU()
    primary.header.update({"INSTRUME": "ACS", **(keywords or {})})
    hdus = fits.HDUList([primary])
    for version, data in enumerate(science, 1):
        header = fits.Header(science_keywords or {})
        if chips:
            header["CCDCHIP"] = chips[version - 1]
        hdus.append(fits.ImageHDU(data, header, name="SCI", ver=version))
        hdus.append(fits.ImageHDU(None if data is None else np.ones_like(data), name="ERR", ver=version))
        if dq is not None:
            hdus.append(fits.ImageHDU(dq.astype(np.int16), name="DQ", ver=version))
        if weight is not None:
            hdus.append(fits.ImageHDU(weight.astype(np.float32), name="WHT", ver=version))
    hdus.writeto(path)
    return path


def write_mosaic(path: Path, science: np.ndarray, weight: np.ndarray | None = None) -> Path:
    """Write SCI, WHT and CTX, as drizzlepac does."""
    primary = fits.PrimaryHDU()
    primary.header.update({"INSTRUME": "ACS", "DETECTOR": "WFC"})
    weight = np.ones(science.shape) if weight is None else weight
    hdus = [fits.ImageHDU(science.astype(np.float32), name="SCI"), fits.ImageHDU(weight.astype(np.float32), name="WHT")]
    hdus.append(fits.ImageHDU((weight > 0).astype(np.int32), name="CTX"))
    fits.HDUList([primary, *hdus]).writeto(path)
    return path


def write_spectrum(
    path: Path,
    flux: np.ndarray | None = None,
    *,
    segments: Sequence[str] = ("FUVA",),
    weight: float = 1.0,
    extname: str = "SCI",
    omit: str = "",
    **keywords: str,
) -> Path:
    """Write a COS x1d with the columns, formats and units of calcos 3.6.2."""
    size = 400
    wavelength = np.array([np.linspace(1300.0, 1700.0, size) - 450.0 * i for i in range(len(segments))])
    if flux is None:
        flux = 1e-14 * (1.0 + 0.2 * np.sin(wavelength / 20.0))
    flux = np.broadcast_to(flux, wavelength.shape)
    per_point = {
        "WAVELENGTH": ("D", "angstrom", wavelength),
        "FLUX": ("E", "erg /s /cm**2 /angstrom", flux),
        "ERROR": ("E", "erg /s /cm**2 /angstrom", np.full_like(wavelength, 1e-15)),
        "GROSS": ("E", "count /s", flux * 1e14),
        "NET": ("E", "count /s", flux * 1e14),
        "DQ": ("I", None, np.full_like(wavelength, 0 if weight else 8)),
        "DQ_WGT": ("E", None, np.full_like(wavelength, weight)),
    }
    columns = [
        fits.Column("SEGMENT", "4A", array=list(segments)),
        fits.Column("EXPTIME", "1D", unit="s", array=[100.0] * len(segments)),
        fits.Column("NELEM", "1J", array=[size] * len(segments)),
    ]
    columns += [
        fits.Column(name, f"{size}{form}", unit=unit, array=values if segments else None)
        for name, (form, unit, values) in per_point.items()
        if name != omit
    ]
    primary = fits.PrimaryHDU()
    facts = {"INSTRUME": "COS", "OBSTYPE": "SPECTROSCOPIC", "OPT_ELEM": "G160M"} | keywords
    primary.header.update({key: value for key, value in facts.items() if value})
    fits.HDUList([primary, fits.BinTableHDU.from_columns(columns, name=extname)]).writeto(path)
    return path


def pixels(path: Path) -> np.ndarray:
    """Return RGB values with the shape (ny, nx, 3) as FITS orders them: row 0 at the bottom."""
    with Image.open(path) as picture:
        return np.asarray(picture.convert("RGB"), dtype=int)[::-1]


def is_close(color: np.ndarray, other: Sequence[int], tolerance: int = 12) -> np.ndarray:
    result: np.ndarray = np.abs(color - np.asarray(other)).max(axis=-1) <= tolerance
    return result


def is_grey(color: np.ndarray) -> np.ndarray:
    result: np.ndarray = np.ptp(color, axis=-1) <= 12
    return result
