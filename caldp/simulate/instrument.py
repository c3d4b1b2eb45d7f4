"""The instrument that is simulated: one set of formulae for the references and for the events.

The stand-in references tabulate these functions and the exposures apply their inverse, so the calibration
program undoes exactly what was done.  The numbers are of our own making, with the size and form that COS FUV
G140L data have; none is a calibration of the real instrument.

Coordinates are those of calcos: pixel indices that start at zero, ``x`` along the dispersion and ``y`` across
it.  Going from the sky to the telemetry the frames are

    XFULL   the frame of the dispersion relation, free of shifts;
    XDOPP   plus the shift of the grating mechanism (FP-POS, repeatability, drift): undone by WAVECORR;
    XCORR   plus the orbital Doppler shift: undone by DOPPCORR;
    RAWX    plus walk, geometric distortion and thermal distortion: undone by XWLKCORR, GEOCORR, TEMPCORR.

Modelled besides: trace and cross-dispersion profile (TRCECORR, ALGNCORR, two-zone extraction), flat field,
detector background, dead time, pulse heights, sensitivity and its change with time, heliocentric velocity.
Not modelled: segment FUVB, NUV, other gratings, airglow, scattered light, bursts, gain sag, hot spots, grid
shadows, line spread wings, acquisition, jitter.

What a comparison can notice: without the wavecal the lines are out by 2 A; GEOCORR, FLATCORR, TDSCORR or HELCORR
left out puts some 5 A bins beyond 5 per cent.  TEMPCORR, TRCECORR, DEADCORR, the walk and the orbital Doppler
shift are exercised, but each alone is too small to exceed these limits.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

SEGMENT = "FUVA"
OPT_ELEM = "G140L"
CENWAVE = 1105
APERTURE = "PSA"
LIFE_ADJ = 3
HV_LEVEL = 163

NX = 16384
NY = 1024
ACTIVE_X = (1060, 15250)
ACTIVE_Y = (300, 730)

SPEED_OF_LIGHT = 299792.458
SECONDS_PER_DAY = 86400.0
DAYS_PER_YEAR = 365.25

DISPERSION = (853.9657, 0.0772232, 2.0e-7)
"""Polynomial coefficients of the wavelength [Angstrom] in XFULL: 1500 A at mid detector, 0.08 A a pixel."""

FP_SHIFTS = {-2: -512.0, -1: -257.0, 0: 0.0, 1: 246.0}
"""Shift of the spectrum [pixel] by FPOFFSET (FP-POS minus 3)."""

FP_STEP = 250
"""Nominal shift [pixel] of one FP-POS step."""

SPECTRUM_Y = 475.0
LAMP_Y = 575.0
LAMP_SIGMA_Y = 2.5
PROFILE_CORE = (0.85, 2.2)
PROFILE_WING = (0.15, 6.0)
PROFILE_ROWS = (400, 160)
"""First row and number of rows of the tabulated profile."""

LSF_SIGMA = 1.5
"""Gaussian line spread [pixel] added to each photon; far below the width of the injected lines."""

STIMS = ((400.0, 40.0), (15990.0, 985.0))
STIM_RATE = 10
"""Events per second of both stims together, as header keyword STIMRATE counts them."""
STIM_SIGMA = 1.0
STIM_BOX = (100, 60)
THERMAL_STEP = 60.0

PULSE_HEIGHT = (11.0, 2.3)
PULSE_LIMITS = (2, 23)

DEAD_TIME = 7.5e-6
"""Dead time [s] an event; the livetime table spells out ``1 - rate * DEAD_TIME``."""

BACKGROUND = 1.0e-5
"""Detector background [count/s/pixel]; some five times what is usual, so that BACKCORR has work to do."""

FLAT_ORIGIN = (1060, 440)
FLAT_SHAPE = (170, 14190)
FLAT_BLOCK = (10, 66)
FLAT_MAXIMUM = 1.1

GEO_BIN = (64, 32)

TDS_REFERENCE = 54952.0
TDS_TIMES = (54952.0, 57000.0, 70000.0)
TDS_WAVELENGTHS = (900.0, 1400.0, 2200.0)
TDS_SLOPES = ((-4.0, -3.2, -2.4), (-1.2, -0.9, -0.6))
"""Change of the sensitivity [percent a year] by interval of time and by wavelength."""

LAMP_LINES = 70
LAMP_LINE_SIGMA = 2.5
LAMP_RATE = 900.0
LAMP_DURATION = 12.0

RA_TARGET = 150.12
DEC_TARGET = 2.21
ORBITAL_PERIOD = 5712.0
ORBITAL_VELOCITY = 6.9


def wavelength(x: Array) -> Array:
    """Wavelength before heliocentric correction.

    Parameters
    ----------
    x : ndarray
        Position [pixel] in the XFULL frame.

    Returns
    -------
    ndarray
        Wavelength [Angstrom], same shape.
    """
    c0, c1, c2 = DISPERSION
    return c0 + x * (c1 + x * c2)


def pixel(wave: float) -> float:
    """Position [pixel] in the XFULL frame of a wavelength [Angstrom]: the inverse of `wavelength`."""
    c0, c1, c2 = DISPERSION
    return (-c1 + math.sqrt(c1 * c1 - 4.0 * c2 * (c0 - wave))) / (2.0 * c2)


def dispersion(x: Array) -> Array:
    """Derivative of `wavelength` [Angstrom/pixel] at XFULL position `x`."""
    _, c1, c2 = DISPERSION
    return c1 + 2.0 * c2 * x


def sensitivity(wave: Array) -> Array:
    """Sensitivity at the reference time of the time-dependent correction.

    Parameters
    ----------
    wave : ndarray
        Wavelength [Angstrom].

    Returns
    -------
    ndarray
        Count rate of one pixel over flux [count/s/pixel per erg/s/cm2/Angstrom].
    """
    ripple = 1.0 + 0.04 * np.sin(2.0 * np.pi * wave / 70.0)
    return ripple * (7.0e12 * np.exp(-0.5 * ((wave - 1320.0) / 190.0) ** 2) + 1.2e12)


def tds_intercepts() -> list[list[float]]:
    """Intercepts, one row per interval of `TDS_TIMES`, that make the factor continuous in time."""
    rows = [[1.0] * len(TDS_WAVELENGTHS)]
    for i in range(1, len(TDS_SLOPES)):
        years = (TDS_TIMES[i] - TDS_REFERENCE) / DAYS_PER_YEAR
        before, after, last = TDS_SLOPES[i - 1], TDS_SLOPES[i], rows[-1]
        rows.append([c + years * (b - a) / 100.0 for a, b, c in zip(after, before, last, strict=True)])
    return rows


def tds_factor(wave: Array, mjd: float) -> Array:
    """Sensitivity at `mjd` relative to the reference time, at each wavelength [Angstrom]."""
    interval = max(i for i in range(len(TDS_SLOPES)) if i == 0 or mjd >= TDS_TIMES[i])
    years = (mjd - TDS_REFERENCE) / DAYS_PER_YEAR
    nodes = np.array(tds_intercepts()[interval]) + years * np.array(TDS_SLOPES[interval]) / 100.0
    return np.interp(wave, TDS_WAVELENGTHS, nodes).astype(np.float64)


def trace(x: Array) -> Array:
    """Departure [pixel] of the spectrum from a straight row at XCORR position `x`."""
    u = (x - 0.5 * NX) / (0.5 * NX)
    return 1.0 + u * (-14.0 + 6.0 * u)


def profile(rows: Array, centre: float) -> Array:
    """Cross-dispersion profile, normalised to unit sum over all rows.

    Parameters
    ----------
    rows : ndarray
        Row numbers [pixel].
    centre : float
        Row of the centre [pixel].

    Returns
    -------
    ndarray
        Fraction of the light in each row.
    """
    total = np.zeros_like(rows)
    for fraction, sigma in (PROFILE_CORE, PROFILE_WING):
        total += fraction / (sigma * math.sqrt(2.0 * math.pi)) * np.exp(-0.5 * ((rows - centre) / sigma) ** 2)
    return total


def flat_image() -> NDArray[np.float32]:
    """Flat field of the part of the detector that begins at `FLAT_ORIGIN`.

    Constant over blocks of `FLAT_BLOCK` pixels, so that it compresses well.

    Returns
    -------
    ndarray
        Shape `FLAT_SHAPE`, (y, x).
    """
    ny, nx = FLAT_SHAPE
    y = (np.arange(0, ny, FLAT_BLOCK[0]) + FLAT_ORIGIN[1]).astype(np.float64)
    x = (np.arange(0, nx, FLAT_BLOCK[1]) + FLAT_ORIGIN[0]).astype(np.float64)
    along = 0.05 * np.sin(2.0 * np.pi * x / 1900.0)
    across = 0.03 * np.cos(2.0 * np.pi * y / 160.0)
    blocks = 1.0 + along + across[:, np.newaxis]
    image = np.repeat(np.repeat(blocks, FLAT_BLOCK[0], axis=0), FLAT_BLOCK[1], axis=1)
    return image[:ny, :nx].astype(np.float32)


def geometric_shift(x: Array, y: Array) -> tuple[Array, Array]:
    """What GEOCORR subtracts.

    Parameters
    ----------
    x, y : ndarray
        Position [pixel] before the correction, shapes that broadcast.

    Returns
    -------
    tuple of ndarray
        Shift in x and in y [pixel].
    """
    dx = 6.0 * np.sin(2.0 * np.pi * x / 9000.0 + 0.4) + 0.01 * (y - 512.0)
    dy = 2.0 * np.cos(2.0 * np.pi * x / 12000.0) + 0.0 * y
    return dx, dy


def walk_shift(pulse_height: Array) -> tuple[Array, Array]:
    """What XWLKCORR and YWLKCORR subtract [pixel] at a pulse height (0 to 31)."""
    return 0.09 * (pulse_height - PULSE_HEIGHT[0]), 0.06 * (pulse_height - PULSE_HEIGHT[0])


def thermal_distortion(x: Array, y: Array, phase: Array) -> tuple[Array, Array]:
    """Stretch and shift of the read-out, the inverse of TEMPCORR.

    Parameters
    ----------
    x, y : ndarray
        Position [pixel] in the baseline reference frame.
    phase : ndarray
        Time as a fraction of the exposure, 0 to 1: the read-out warms up a little.

    Returns
    -------
    tuple of ndarray
        Raw position [pixel].
    """
    return -5.0 + 1.2 * phase + x * 1.0004, 2.5 + y * 1.001


def raw_position(x: Array, y: Array, pulse_height: Array, phase: Array) -> tuple[Array, Array]:
    """Raw position of an event: walk, geometric and thermal distortion applied to XCORR, YCORR.

    Parameters
    ----------
    x, y : ndarray
        Position [pixel] in the XCORR, YCORR frame.
    pulse_height : ndarray
        Pulse height, 0 to 31.
    phase : ndarray
        Time as a fraction of the exposure.

    Returns
    -------
    tuple of ndarray
        RAWX, RAWY [pixel], not yet rounded.
    """
    walk_x, walk_y = walk_shift(pulse_height)
    corrected_x, corrected_y = x + walk_x, y + walk_y
    # The correction is tabulated at the uncorrected position; its gradient is below 0.01, so this converges.
    before_x, before_y = corrected_x, corrected_y
    for _ in range(4):
        dx, dy = geometric_shift(before_x, before_y)
        before_x, before_y = corrected_x + dx, corrected_y + dy
    return thermal_distortion(before_x, before_y, phase)


def doppler_shift(time: Array, x: Array, fpoffset: int, seconds_since_zero: float) -> Array:
    """Shift [pixel] of the spectrum by the orbital motion of the telescope.

    Parameters
    ----------
    time : ndarray
        Time [s] since the start of the exposure.
    x : ndarray
        Position [pixel].
    fpoffset : int
        FP-POS minus 3.
    seconds_since_zero : float
        Start of the exposure [s] after the time of zero Doppler shift.

    Returns
    -------
    ndarray
        Shift [pixel], same shape as `x`.
    """
    unshifted = x - fpoffset * FP_STEP
    angle = 2.0 * np.pi * (seconds_since_zero + time) / ORBITAL_PERIOD
    return ORBITAL_VELOCITY / SPEED_OF_LIGHT * wavelength(unshifted) / dispersion(unshifted) * np.sin(angle)


def heliocentric_velocity(mjd: float) -> float:
    """Velocity [km/s] of the Earth away from the target, from an elliptic orbit (about 0.02 km/s).

    The mean elements are those of the low-precision solar position of the Astronomical Almanac.
    """
    days = mjd - 51544.5
    anomaly = math.radians(357.528 + 0.9856003 * days)
    eccentricity, perihelion = 0.0167, math.radians(102.94)
    sun = math.radians(280.460 + 0.9856474 * days + 1.915 * math.sin(anomaly) + 0.020 * math.sin(2 * anomaly))
    earth = sun + math.pi
    speed = 29.789
    along_x = -speed * (math.sin(earth) + eccentricity * math.sin(perihelion))
    along_y = speed * (math.cos(earth) + eccentricity * math.cos(perihelion))
    obliquity = math.radians(23.439)
    velocity = (along_x, along_y * math.cos(obliquity), along_y * math.sin(obliquity))
    ra, dec = math.radians(RA_TARGET), math.radians(DEC_TARGET)
    target = (math.cos(dec) * math.cos(ra), math.cos(dec) * math.sin(ra), math.sin(dec))
    return -sum(v * t for v, t in zip(velocity, target, strict=True))


def mechanism_shift(time: Array, fpoffset: int, index: int) -> Array:
    """Shift [pixel] of spectrum and lamp that WAVECORR has to find.

    The grating mechanism stops near, not at, its nominal place and then relaxes for some minutes.

    Parameters
    ----------
    time : ndarray
        Time [s] since the start of the exposure.
    fpoffset : int
        FP-POS minus 3.
    index : int
        Number of the exposure in the data set, from zero.

    Returns
    -------
    ndarray
        Shift [pixel], same shape as `time`.
    """
    stop = (27.4, 21.9, -18.6, 24.3)[index]
    return FP_SHIFTS[fpoffset] + stop - 3.0 * (1.0 - np.exp(-time / 1500.0))


def lamp_lines() -> tuple[Array, Array]:
    """The line list of the simulated wavecal lamp.

    Returns
    -------
    tuple of ndarray
        Positions [pixel] in the XFULL frame, increasing, and relative strengths of unit sum.
    """
    generator = np.random.default_rng(1105)
    positions = np.sort(generator.uniform(ACTIVE_X[0] + 200.0, ACTIVE_X[1] - 200.0, LAMP_LINES))
    strengths = generator.lognormal(0.0, 0.9, LAMP_LINES)
    return positions, strengths / strengths.sum()


def lamp_template(fpoffset: int) -> Array:
    """Expected counts of one flash as the lamp table lists them, shape (NX,), nominal mechanism position."""
    x = np.arange(NX, dtype=np.float64)
    counts = np.zeros(NX)
    scale = LAMP_RATE * LAMP_DURATION / (LAMP_LINE_SIGMA * math.sqrt(2.0 * math.pi))
    for position, strength in zip(*lamp_lines(), strict=True):
        offset = (x - position - FP_SHIFTS[fpoffset]) / LAMP_LINE_SIGMA
        near = np.abs(offset) < 6.0
        counts[near] += scale * strength * np.exp(-0.5 * offset[near] ** 2)
    counts[: ACTIVE_X[0]] = 0.0
    counts[ACTIVE_X[1] + 1 :] = 0.0
    return counts
