"""The stand-in reference files: `instrument` put into tables and images that calcos accepts.

What calcos insists on was learned from its source: FILETYPE exact, VCALCOS not below a minimum for each
type, LIFE_ADJ in the primary header of TRACETAB, SEGMENT in the walk extensions, TIMESTEP in extension 1 of
BRFTAB and DEADTAB, PHAMIN and PHAMAX in SPOTTAB, REF_TIME in TDSTAB, SPECRES in SPWCSTAB and YERRMAX in
TWOZXTAB.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from astropy.io import fits
from numpy.typing import NDArray

from caldp.simulate import instrument as ins
from caldp.simulate.fitsfile import Card, table, write_fits
from caldp.simulate.rules import reference_name

_HARMLESS_DATE = 50000.0
"""Modified Julian Date [day] before any COS exposure."""

_SETTING: dict[str, tuple[str, Any]] = {
    "SEGMENT": ("4A", ins.SEGMENT),
    "OPT_ELEM": ("5A", ins.OPT_ELEM),
    "CENWAVE": ("J", ins.CENWAVE),
    "APERTURE": ("3A", ins.APERTURE),
}


def write_references(directory: Path) -> None:
    """Write every stand-in reference into `directory`."""
    for write in _WRITERS:
        write(directory)


def _primary(filetype: str, description: str, **extra: Card) -> dict[str, Card]:
    """Primary header of a reference, as the calibration program checks it."""
    return {
        "FILETYPE": filetype,
        "TELESCOP": "HST",
        "INSTRUME": "COS",
        "DETECTOR": "FUV",
        "COSCOORD": "USER",
        "VCALCOS": "3.4",
        "USEAFTER": "Oct 01 1996 00:00:00",
        "PEDIGREE": "DUMMY",
        "DESCRIP": f"STAND-IN, simulated: {description}",
        **extra,
    }


def _column(name: str, form: str, values: object, unit: str | None = None, dim: str | None = None) -> fits.Column:
    """Table column with `values` for all rows."""
    return fits.Column(name, form, array=values, unit=unit, dim=dim)


def _setting_columns(apertures: Sequence[str] = (ins.APERTURE,)) -> list[fits.Column]:
    """Columns that select a row by segment, grating, central wavelength and aperture."""
    values = {name: [value] * len(apertures) for name, (_, value) in _SETTING.items()}
    values["APERTURE"] = list(apertures)
    return [_column(name, form, values[name]) for name, (form, _) in _SETTING.items()]


def _image(data: NDArray[np.float32], name: str, version: int, keywords: dict[str, Card]) -> fits.ImageHDU:
    """Image extension."""
    hdu = fits.ImageHDU(data, name=name, ver=version)
    for keyword, value in keywords.items():
        hdu.header[keyword] = value
    return hdu


def _write_brftab(directory: Path) -> None:
    """Positions of the stims and limits of the active area."""
    (x1, y1), (x2, y2) = ins.STIMS
    columns = [
        _column("SEGMENT", "4A", [ins.SEGMENT]),
        *(_column(n, "E", [v]) for n, v in (("SX1", x1), ("SY1", y1), ("SX2", x2), ("SY2", y2))),
        _column("XWIDTH", "J", [ins.STIM_BOX[0]], "pixel"),
        _column("YWIDTH", "J", [ins.STIM_BOX[1]], "pixel"),
        _column("A_LEFT", "J", [ins.ACTIVE_X[0]]),
        _column("A_RIGHT", "J", [ins.ACTIVE_X[1]]),
        _column("A_LOW", "J", [ins.ACTIVE_Y[0]]),
        _column("A_HIGH", "J", [ins.ACTIVE_Y[1]]),
    ]
    primary = _primary("BASELINE REFERENCE FRAME TABLE", "stim positions and active area")
    extension = table(columns, {"TIMESTEP": ins.THERMAL_STEP})
    write_fits(directory / reference_name("BRFTAB"), primary, [extension])


def _write_deadtab(directory: Path) -> None:
    """Livetime against observed count rate."""
    rates = np.array([0.0, 5000.0, 20000.0, 45000.0])
    columns = [
        _column("SEGMENT", "4A", [ins.SEGMENT] * rates.size),
        _column("OBS_RATE", "D", rates, "count /s"),
        _column("LIVETIME", "D", 1.0 - rates * ins.DEAD_TIME),
    ]
    primary = _primary("DEADTIME REFERENCE TABLE", f"{ins.DEAD_TIME * 1e6:g} microseconds an event")
    write_fits(directory / reference_name("DEADTAB"), primary, [table(columns, {"TIMESTEP": 10.0})])


def _write_phatab(directory: Path) -> None:
    """Limits of the pulse height."""
    columns = [
        _column("SEGMENT", "4A", [ins.SEGMENT]),
        _column("OPT_ELEM", "5A", [ins.OPT_ELEM]),
        _column("LLT", "J", [ins.PULSE_LIMITS[0]]),
        _column("ULT", "J", [ins.PULSE_LIMITS[1]]),
        _column("MIN_PEAK", "E", [5.0]),
        _column("MAX_PEAK", "E", [25.0]),
    ]
    primary = _primary("PULSE HEIGHT PARAMETERS REFERENCE TABLE", "pulse height limits")
    write_fits(directory / reference_name("PHATAB"), primary, [table(columns, {})])


def _write_geofile(directory: Path) -> None:
    """Smooth geometric distortion on a coarse grid."""
    bin_x, bin_y = ins.GEO_BIN
    x = np.arange(0, ins.NX, bin_x, dtype=np.float64)
    y = np.arange(0, ins.NY, bin_y, dtype=np.float64)[:, np.newaxis]
    dx, dy = ins.geometric_shift(x, y)
    keywords: dict[str, Card] = {"XBIN": bin_x, "YBIN": bin_y, "ORIGIN_X": 0, "ORIGIN_Y": 0}
    shape = (ins.NY // bin_y, ins.NX // bin_x)
    images = [
        _image(np.broadcast_to(shift, shape).astype(np.float32), ins.SEGMENT, version, keywords)
        for version, shift in enumerate((dx, dy), start=1)
    ]
    primary = _primary("GEOMETRIC DISTORTION REFERENCE IMAGE", "sinusoidal distortion of some pixels")
    write_fits(directory / reference_name("GEOFILE"), primary, images, compressed=True)


def _write_walk(directory: Path) -> None:
    """Shift by pulse height, in x and in y."""
    shifts = ins.walk_shift(np.arange(32, dtype=np.float64))
    for axis, shift, length in zip("XY", shifts, (ins.NX, ins.NY), strict=True):
        data = np.repeat(shift[:, np.newaxis], length, axis=1).astype(np.float32)
        filetype = f"{axis} WALK CORRECTION LOOKUP REFERENCE IMAGE"
        primary = _primary(filetype, f"{axis} walk linear in pulse height")
        image = _image(data, ins.SEGMENT, 1, {"SEGMENT": ins.SEGMENT})
        write_fits(directory / reference_name(f"{axis}WLKFILE"), primary, [image], compressed=True)


def _write_flatfile(directory: Path) -> None:
    """Flat field of the rows that hold the spectrum and the lamp; elsewhere calcos takes unity."""
    x, y = ins.FLAT_ORIGIN
    keywords: dict[str, Card] = {"ORIGIN_X": x, "ORIGIN_Y": y, "SNR_FF": 0.0}
    image = _image(ins.flat_image(), ins.SEGMENT, 1, keywords)
    primary = _primary("FLAT FIELD REFERENCE IMAGE", "flat field with 8 per cent of structure")
    write_fits(directory / reference_name("FLATFILE"), primary, [image], compressed=True)


def _regions(corner: int, flag: int) -> list[fits.Column]:
    """Columns of one flagged region of 20 by 6 pixels, away from spectrum and background."""
    values = {"LX": corner, "LY": 660, "DX": 20, "DY": 6, "DQ": flag}
    return [_column(name, "J", [value]) for name, value in values.items()]


def _write_quality(directory: Path) -> None:
    """Bad pixels, gain sag and spots: one region each, where no light falls or before any exposure."""
    bpix = [_column("SEGMENT", "4A", [ins.SEGMENT]), *_regions(8000, 16)]
    primary = _primary("DATA QUALITY INITIALIZATION TABLE", "one region off the spectrum")
    write_fits(directory / reference_name("BPIXTAB"), primary, [table(bpix, {})])

    gsag = [_column("DATE", "D", [_HARMLESS_DATE], "MJD"), *_regions(9000, 8192)]
    keywords: dict[str, Card] = {"SEGMENT": ins.SEGMENT, f"HVLEVEL{ins.SEGMENT[-1]}": ins.HV_LEVEL}
    primary = _primary("GAIN SAG REFERENCE TABLE", "one region off the spectrum")
    write_fits(directory / reference_name("GSAGTAB"), primary, [table(gsag, keywords)])

    spot = [
        _column("SEGMENT", "4A", [ins.SEGMENT]),
        _column("START", "D", [_HARMLESS_DATE], "MJD"),
        _column("STOP", "D", [_HARMLESS_DATE + 1.0], "MJD"),
        *_regions(10000, 4),
    ]
    low, high = ins.PULSE_LIMITS
    primary = _primary("TRANSIENT BAD PIXEL REFERENCE TABLE", "one spot, long gone", PHAMIN=low, PHAMAX=high)
    write_fits(directory / reference_name("SPOTTAB"), primary, [table(spot, {})])


def _write_extraction(directory: Path) -> None:
    """Extraction regions: boxes for spectrum and lamp, two zones for the spectrum."""
    boxes = [
        *_setting_columns(("PSA", "WCA")),
        _column("SLOPE", "D", [0.0, 0.0]),
        _column("B_SPEC", "D", [ins.SPECTRUM_Y, ins.LAMP_Y], "pixel"),
        _column("B_BKG1", "D", [ins.SPECTRUM_Y - 50.0, ins.LAMP_Y - 40.0], "pixel"),
        _column("B_BKG2", "D", [ins.SPECTRUM_Y + 50.0, ins.LAMP_Y + 40.0], "pixel"),
        _column("HEIGHT", "J", [51, 31], "pixel"),
        _column("B_HGT1", "J", [31, 31], "pixel"),
        _column("B_HGT2", "J", [31, 31], "pixel"),
        _column("BWIDTH", "J", [100, 100], "pixel"),
    ]
    primary = _primary("1-D EXTRACTION PARAMETERS TABLE", "spectrum and lamp regions")
    write_fits(directory / reference_name("XTRACTAB"), primary, [table(boxes, {})])

    zones = {"LOWER_OUTER": 0.005, "LOWER_INNER": 0.1, "UPPER_INNER": 0.9, "UPPER_OUTER": 0.995}
    columns = [
        *_setting_columns(),
        _column("B_SPEC", "D", [ins.SPECTRUM_Y], "pixel"),
        _column("B_BKG1", "D", [ins.SPECTRUM_Y - 50.0], "pixel"),
        _column("B_BKG2", "D", [ins.SPECTRUM_Y + 50.0], "pixel"),
        _column("HEIGHT", "J", [51], "pixel"),
        _column("BHEIGHT", "J", [31], "pixel"),
        _column("BWIDTH", "J", [100], "pixel"),
        *(_column(name, "D", [value]) for name, value in zones.items()),
        _column("YERRMAX", "D", [0.8], "pixel"),
    ]
    primary = _primary("TWO-ZONE SPECTRAL EXTRACTION PARAMETERS TABLE", "extraction zones")
    write_fits(directory / reference_name("TWOZXTAB"), primary, [table(columns, {})])


def _write_wavecal(directory: Path) -> None:
    """Lamp template for each FP-POS and the parameters of the search for the shift."""
    offsets = sorted(ins.FP_SHIFTS)
    rows = len(offsets)
    templates = np.array([ins.lamp_template(offset) for offset in offsets])
    lamp = [
        _column("SEGMENT", "4A", [ins.SEGMENT] * rows),
        _column("OPT_ELEM", "5A", [ins.OPT_ELEM] * rows),
        _column("CENWAVE", "J", [ins.CENWAVE] * rows, "angstrom"),
        _column("FPOFFSET", "J", offsets),
        _column("HAS_LINES", "L", [True] * rows),
        _column("FP_PIXEL_SHIFT", "D", [ins.FP_SHIFTS[offset] for offset in offsets], "pixel"),
        _column("INTENSITY", f"{ins.NX}D", templates, "count"),
    ]
    primary = _primary("TEMPLATE CAL LAMP SPECTRA TABLE", "random line list in pixel space")
    write_fits(directory / reference_name("LAMPTAB"), primary, [table(lamp, {})], compressed=True)

    search = [
        _column("OPT_ELEM", "8A", [ins.OPT_ELEM]),
        _column("XC_RANGE", "J", [120], "pixel"),
        _column("RESWIDTH", "D", [6.0], "pixel"),
        _column("MAX_TIME_DIFF", "D", [0.067], "day"),
        _column("STEPSIZE", "J", [ins.FP_STEP], "pixel"),
        _column("XD_RANGE", "J", [40], "pixel"),
        _column("BOX", "J", [7], "pixel"),
    ]
    primary = _primary("WAVECAL PARAMETERS REFERENCE TABLE", "search ranges")
    write_fits(directory / reference_name("WCPTAB"), primary, [table(search, {})])


def _write_dispersion(directory: Path) -> None:
    """Dispersion relation of spectrum and lamp, and the keywords of the world coordinate system."""
    coefficients = np.tile([*ins.DISPERSION, 0.0], (2, 1))
    disp = [
        *_setting_columns(("PSA", "WCA")),
        _column("NELEM", "J", [len(ins.DISPERSION)] * 2),
        _column("COEFF", "4D", coefficients),
        _column("DELTA", "D", [0.0, 0.0], "pixel"),
    ]
    primary = _primary("DISPERSION RELATION REFERENCE TABLE", "quadratic dispersion")
    write_fits(directory / reference_name("DISPTAB"), primary, [table(disp, {})])

    middle = np.array([0.5 * ins.NX])
    values: dict[str, Any] = {
        "CTYPE1": "WAVE",
        "CRVAL1": float(ins.wavelength(middle)[0]),
        "CRPIX1": 0.5 * ins.NX + 1.0,
        "CDELT1": float(ins.dispersion(middle)[0]),
        "CDELT2": 2.5e-5,
        "CDELT3": 2.5e-5,
        "SPECRES": 2000.0,
        "G": 480000.0,
        "SPORDER": 1,
        "ALPHA": 20.1,
        "THETA": 0.0,
    }
    forms = {"CTYPE1": "8A", "SPORDER": "J"}
    spwcs = [*_setting_columns(), *(_column(n, forms.get(n, "D"), [value]) for n, value in values.items())]
    primary = _primary("SPECTROSCOPIC WCS PARAMETERS TABLE", "linear approximation at mid detector")
    write_fits(directory / reference_name("SPWCSTAB"), primary, [table(spwcs, {})])


def _write_sensitivity(directory: Path) -> None:
    """Sensitivity, and its change with time."""
    wave = np.arange(850.0, 2200.0, 1.0)
    phot = [
        *_setting_columns(),
        _column("WAVELENGTH", f"{wave.size}D", wave[np.newaxis], "angstrom"),
        _column("SENSITIVITY", f"{wave.size}E", ins.sensitivity(wave)[np.newaxis].astype(np.float32)),
    ]
    primary = _primary("PHOTOMETRIC SENSITIVITY REFERENCE TABLE", "one peak, a floor and a ripple")
    write_fits(directory / reference_name("FLUXTAB"), primary, [table(phot, {})])

    nodes, times = len(ins.TDS_WAVELENGTHS), len(ins.TDS_TIMES)
    # One row a time; the last time only closes the last interval and repeats its line.
    slopes = np.array([*ins.TDS_SLOPES, ins.TDS_SLOPES[-1]])
    intercepts = ins.tds_intercepts()
    both = np.array([*intercepts, intercepts[-1]])
    shape = f"({nodes},{times})"
    tds = [
        *_setting_columns(),
        _column("NWL", "J", [nodes]),
        _column("NT", "J", [times]),
        _column("WAVELENGTH", f"{nodes}D", [ins.TDS_WAVELENGTHS], "angstrom"),
        _column("TIME", f"{times}D", [ins.TDS_TIMES], "MJD"),
        _column("SLOPE", f"{nodes * times}D", slopes[np.newaxis], "percent /year", shape),
        _column("INTERCEPT", f"{nodes * times}D", both[np.newaxis], None, shape),
    ]
    primary = _primary("TIME DEPENDENT SENSITIVITY TABLE", "loss of some per cent a year")
    write_fits(directory / reference_name("TDSTAB"), primary, [table(tds, {"REF_TIME": ins.TDS_REFERENCE})])


def _write_trace_and_profile(directory: Path) -> None:
    """Curve of the spectrum on the detector, and its profile across the dispersion."""
    trace = ins.trace(np.arange(ins.NX, dtype=np.float64)).astype(np.float32)
    columns = [*_setting_columns(), _column("TRACE", f"{ins.NX}E", trace[np.newaxis], "pixel")]
    primary = _primary("1D SPECTRAL TRACE TABLE", "parabola", LIFE_ADJ=ins.LIFE_ADJ)
    write_fits(directory / reference_name("TRACETAB"), primary, [table(columns, {})], compressed=True)

    first, rows = ins.PROFILE_ROWS
    column = ins.profile(np.arange(first, first + rows, dtype=np.float64), ins.SPECTRUM_Y).astype(np.float32)
    data = np.repeat(column[:, np.newaxis], ins.NX, axis=1)[np.newaxis]
    columns = [
        *_setting_columns(),
        _column("ROW_0", "J", [first]),
        _column("CENTER", "D", [ins.SPECTRUM_Y], "pixel"),
        _column("PROFILE", f"{rows * ins.NX}E", data, None, f"({ins.NX},{rows})"),
    ]
    primary = _primary("2D SPECTRUM PROFILE TABLE", "sum of two Gaussians, the same in every column")
    write_fits(directory / reference_name("PROFTAB"), primary, [table(columns, {})], compressed=True)


_WRITERS: tuple[Callable[[Path], None], ...] = (
    _write_brftab,
    _write_deadtab,
    _write_phatab,
    _write_geofile,
    _write_walk,
    _write_flatfile,
    _write_quality,
    _write_extraction,
    _write_wavecal,
    _write_dispersion,
    _write_sensitivity,
    _write_trace_and_profile,
)
