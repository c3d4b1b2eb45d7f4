"""The injected spectrum, its truth table, and the comparison of a calibrated spectrum with it."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from astropy.io import fits
from astropy.table import Table
from numpy.typing import NDArray

from caldp.simulate.fitsfile import write_text
from caldp.simulate.results import Comparison

Array = NDArray[np.float64]

USEFUL_RANGE = (1250.0, 1650.0)
"""Wavelengths [Angstrom] with full signal: the range in which recovery is claimed and tested."""

TAPER = 30.0
"""Width [Angstrom] over which the signal fades to nothing on either side of the useful range."""

BIN_WIDTH = 5.0

LINES = (
    (1264.7, 2.0),
    (1335.7, 3.0),
    (1371.3, 1.6),
    (1402.8, 2.6),
    (1486.5, 1.8),
    (1550.8, 3.2),
    (1640.4, 1.4),
)
"""Emission lines: centre [Angstrom] and height over the local continuum."""

LINE_SIGMA = 0.9
"""Standard deviation [Angstrom] of the lines, a few times the resolution of the grating."""

TRUTH_STEP = 0.1
SEARCH = 8.0
"""Half width [Angstrom] of the window in which a line is looked for."""


def continuum(wave: Array) -> Array:
    """Continuum flux [erg/s/cm2/Angstrom], band limited.

    It rises to the red as the sensitivity falls, so that all bins hold about the same number of events.
    """
    low, high = USEFUL_RANGE
    outside = np.maximum(np.maximum(low - wave, wave - high), 0.0)
    taper = np.where(outside < TAPER, 0.5 * (1.0 + np.cos(np.pi * np.minimum(outside, TAPER) / TAPER)), 0.0)
    level: Array = 2.2e-14 * (1.0 + 2.0 * ((wave - 1250.0) / 430.0) ** 2) * taper
    return level


def flux(wave: Array) -> Array:
    """Injected flux in the heliocentric frame.

    Parameters
    ----------
    wave : ndarray
        Wavelength [Angstrom].

    Returns
    -------
    ndarray
        Flux [erg/s/cm2/Angstrom], same shape.
    """
    factor = np.ones_like(wave)
    for centre, height in LINES:
        factor += height * np.exp(-0.5 * ((wave - centre) / LINE_SIGMA) ** 2)
    return continuum(wave) * factor


def write_truth(path: Path, exposures: Mapping[str, Mapping[str, Any]], seed: int, exposure_time: float) -> None:
    """Write the injected spectrum as an ECSV table.

    Parameters
    ----------
    path : Path
        The file.
    exposures : mapping
        By rootname: FP-POS, and time [s] and injected shift [pixel] of each lamp flash.
    seed : int
        Seed of the simulation.
    exposure_time : float
        Duration of each exposure [s].
    """
    low, high = USEFUL_RANGE
    wave = np.round(np.arange(low - TAPER - 5.0, high + TAPER + 5.0 + 0.5 * TRUTH_STEP, TRUTH_STEP), 3)
    truth = Table({"wavelength": wave, "flux": [float(f"{f:.7g}") for f in flux(wave)]})
    truth["wavelength"].unit = "Angstrom"
    truth["flux"].unit = "erg / (s cm2 Angstrom)"
    truth.meta = {
        "description": "spectrum injected into the simulated exposure; heliocentric vacuum wavelengths",
        "lines": [centre for centre, _ in LINES],
        "line_sigma": LINE_SIGMA,
        "useful_range": list(USEFUL_RANGE),
        "bin_width": BIN_WIDTH,
        "seed": seed,
        "exposure_time": exposure_time,
        "exposures": {rootname: dict(facts) for rootname, facts in exposures.items()},
    }
    text = io.StringIO()
    truth.write(text, format="ascii.ecsv")
    write_text(path, text.getvalue())


def compare(x1d: Path, truth: Path) -> Comparison:
    """Hold an extracted spectrum against the injected one.

    Parameters
    ----------
    x1d : Path
        An x1d or x1dsum product.
    truth : Path
        The table written by `write_truth`.

    Returns
    -------
    Comparison
        Offset of each line and flux ratio of each bin of the useful range.

    Raises
    ------
    ValueError
        If the product holds no spectrum or the truth table lacks its metadata.
    """
    table = Table.read(truth, format="ascii.ecsv")
    missing = {"lines", "useful_range", "bin_width"} - set(table.meta)
    if missing:
        raise ValueError(f"{truth}: not a truth table, lacks {', '.join(sorted(missing))}")
    true_wave = np.asarray(table["wavelength"], dtype=np.float64)
    true_flux = np.asarray(table["flux"], dtype=np.float64)
    wave, measured, counts = _read_spectrum(x1d)

    low, high = (float(limit) for limit in table.meta["useful_range"])
    width = float(table.meta["bin_width"])
    edges = np.linspace(low, high, round((high - low) / width) + 1)
    expected = np.interp(wave, true_wave, true_flux, left=0.0, right=0.0)
    ratios, events = [], []
    for left, right in zip(edges[:-1], edges[1:], strict=True):
        inside = (wave >= left) & (wave < right)
        total = expected[inside].sum()
        ratios.append(float(measured[inside].sum() / total) if total > 0 else float("nan"))
        events.append(float(counts[inside].sum()))
    lines = [float(line) for line in table.meta["lines"]]
    return Comparison(
        lines=tuple(lines),
        line_offsets=tuple(_line_centre(wave, measured, line) - line for line in lines),
        bin_centres=tuple(float(c) for c in 0.5 * (edges[:-1] + edges[1:])),
        flux_ratios=tuple(ratios),
        bin_width=width,
        counts_per_bin=min(events),
    )


def _read_spectrum(x1d: Path) -> tuple[Array, Array, Array]:
    """Wavelength, flux and gross counts of the good pixels of an x1d, in order of wavelength."""
    with fits.open(x1d) as hdus:
        data = hdus[1].data
        if data is None or len(data) == 0:
            raise ValueError(f"{x1d}: no spectrum")
        columns = [
            np.concatenate([np.asarray(row, dtype=np.float64) for row in data[name]])
            for name in ("WAVELENGTH", "FLUX", "GCOUNTS", "DQ_WGT")
        ]
    wave, measured, counts, weight = columns
    good = (weight > 0) & np.isfinite(measured)
    order = np.argsort(wave[good], kind="stable")
    return wave[good][order], measured[good][order], counts[good][order]


def _line_centre(wave: Array, measured: Array, guess: float) -> float:
    """Centroid [Angstrom] of the emission line nearest `guess`, NaN if none stands out.

    The line is taken where the smoothed spectrum peaks within `SEARCH` of the guess, so a line that is
    displaced is measured where it is, not where it should be.
    """
    window = np.abs(wave - guess) <= SEARCH + 6.0
    x, y = wave[window], measured[window]
    if x.size < 20:
        return float("nan")
    smooth = np.convolve(y, np.full(11, 1.0 / 11.0), mode="same")
    candidates = np.abs(x - guess) <= SEARCH
    level = float(np.median(y))
    noise = 1.4826 * float(np.median(np.abs(smooth - np.median(smooth))))
    peak = float(x[candidates][np.argmax(smooth[candidates])])
    if smooth[candidates].max() < level + 3.0 * noise:
        return float("nan")
    for _ in range(5):
        near = np.abs(x - peak) <= 3.0
        sides = (np.abs(x - peak) > 3.5) & (np.abs(x - peak) <= 6.0)
        if near.sum() < 5 or sides.sum() < 5:
            return float("nan")
        slope, base = np.polyfit(x[sides] - peak, y[sides], 1)
        excess = y[near] - base - slope * (x[near] - peak)
        if excess.sum() <= 0:
            return float("nan")
        peak = float((x[near] * excess).sum() / excess.sum())
    return peak
