"""Simulated exposures: photon events, and the raw FITS files that a calibration starts from."""

from __future__ import annotations

import datetime
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from astropy.io import fits
from numpy.typing import NDArray

from caldp.simulate import instrument as ins
from caldp.simulate import spectrum
from caldp.simulate.fitsfile import Card, table, write_fits
from caldp.simulate.rules import NOT_APPLICABLE, RULES

Array = NDArray[np.float64]

START = 58800.25
"""Start of the first exposure, Modified Julian Date [day]."""

OVERHEAD = 120.0
"""Time [s] between the exposures of an association."""

DOPPLER_ZERO = START - 0.012

_SWITCHES = (
    "FLATCORR DEADCORR DQICORR TEMPCORR GEOCORR IGEOCORR RANDCORR XWLKCORR YWLKCORR PHACORR "
    "TRCECORR ALGNCORR DOPPCORR HELCORR X1DCORR BACKCORR WAVECORR FLUXCORR TDSCORR"
).split()
_SWITCHES_OFF = ("DGEOCORR", "BADTCORR", "BRSTCORR")


@dataclass(frozen=True)
class Exposure:
    """One exposure to be simulated.

    Attributes
    ----------
    rootname : str
        Nine characters, lower case.
    index : int
        Number in the data set, from zero: chooses the accident of the grating mechanism.
    fppos : int
        FP-POS, 1 to 4.
    duration : float
        Exposure time [s].
    seed : int
        Seed of the data set.
    association : str
        Rootname of the association, or empty.
    """

    rootname: str
    index: int
    fppos: int
    duration: float
    seed: int
    association: str = ""

    @property
    def fpoffset(self) -> int:
        """Grating offset from nominal, in steps of FP-POS."""
        return self.fppos - 3

    @property
    def start(self) -> float:
        """Start, Modified Julian Date [day]."""
        return START + self.index * (self.duration + OVERHEAD) / ins.SECONDS_PER_DAY

    @property
    def end(self) -> float:
        """End, Modified Julian Date [day]."""
        return self.start + self.duration / ins.SECONDS_PER_DAY

    @property
    def flashes(self) -> tuple[tuple[float, float], ...]:
        """Lamp on and off times [s] since the start: at the beginning, in the middle, at the end."""
        latest = self.duration - ins.LAMP_DURATION - 4.0
        return tuple((on, on + ins.LAMP_DURATION) for on in (2.0, round(0.5 * latest, 1), latest))

    def injected(self) -> dict[str, object]:
        """What was injected and calcos has to find: FP-POS and the shift [pixel] at each flash."""
        middles = np.array([0.5 * (on + off) for on, off in self.flashes])
        shifts = ins.mechanism_shift(middles, self.fpoffset, self.index)
        return {
            "fppos": self.fppos,
            "flash_times": [round(float(t), 3) for t in middles],
            "shift1": [round(float(s), 4) for s in shifts],
        }


@dataclass(frozen=True)
class Events:
    """Detected events in order of time, one element of each array an event.

    Attributes
    ----------
    time : ndarray of float32
        Seconds since the start of the exposure.
    x, y : ndarray of int16
        Raw detector position [pixel].
    pulse_height : ndarray of uint8
        0 to 31.
    """

    time: NDArray[np.float32]
    x: NDArray[np.int16]
    y: NDArray[np.int16]
    pulse_height: NDArray[np.uint8]


def simulate_events(exposure: Exposure) -> Events:
    """Draw the events of an exposure.

    Parameters
    ----------
    exposure : Exposure
        What to simulate.

    Returns
    -------
    Events
        Photons of target and lamp, background and stims, as the telemetry would list them.
    """
    generator = np.random.default_rng([exposure.seed, exposure.index])
    photons = [_target(exposure, generator), _lamp(exposure, generator)]
    corrected = [_flat_fielded(*group, generator) for group in [*photons, _background(exposure, generator)]]
    groups = [_telemetry(exposure, *group) for group in corrected]
    groups.append(_stims(exposure, generator))
    time, x, y, pulse_height = (np.concatenate(parts) for parts in zip(*groups, strict=True))

    kept = generator.random(time.size) < _livetime(time, exposure)
    on_detector = (x > -0.5) & (x < ins.NX - 0.5) & (y > -0.5) & (y < ins.NY - 0.5)
    selected = np.flatnonzero(kept & on_detector)
    order = selected[np.argsort(time[selected], kind="stable")]
    return Events(
        time=time[order].astype(np.float32),
        x=np.rint(x[order]).astype(np.int16),
        y=np.rint(y[order]).astype(np.int16),
        pulse_height=pulse_height[order].astype(np.uint8),
    )


def _pulse_heights(generator: np.random.Generator, size: int) -> Array:
    """Pulse heights of photons: none is beyond the limits, so the screening removes background only."""
    mean, sigma = ins.PULSE_HEIGHT
    return np.clip(np.rint(generator.normal(mean, sigma, size)), *ins.PULSE_LIMITS)


def _target(exposure: Exposure, generator: np.random.Generator) -> tuple[Array, Array, Array, Array]:
    """Photons of the target: time [s] and position [pixel] in XCORR, YCORR, pulse height."""
    middle = exposure.start + 0.5 * exposure.duration / ins.SECONDS_PER_DAY
    low, high = spectrum.USEFUL_RANGE
    margin = spectrum.TAPER + 5.0
    x = np.arange(ins.pixel(low - margin), ins.pixel(high + margin), 0.25)
    observed = ins.wavelength(x)
    heliocentric = observed * (1.0 - ins.heliocentric_velocity(middle) / ins.SPEED_OF_LIGHT)
    rate = spectrum.flux(heliocentric) * ins.sensitivity(observed) * ins.tds_factor(observed, middle)
    cumulative = np.concatenate([[0.0], np.cumsum(0.5 * (rate[1:] + rate[:-1]) * 0.25)])

    number = int(generator.poisson(cumulative[-1] * exposure.duration * ins.FLAT_MAXIMUM))
    time = generator.uniform(0.0, exposure.duration, number)
    xfull = np.interp(generator.uniform(0.0, cumulative[-1], number), cumulative, x)
    xfull += generator.normal(0.0, ins.LSF_SIGMA, number)
    xdopp = xfull + ins.mechanism_shift(time, exposure.fpoffset, exposure.index)
    elapsed = (exposure.start - DOPPLER_ZERO) * ins.SECONDS_PER_DAY
    xcorr = xdopp + ins.doppler_shift(time, xdopp, exposure.fpoffset, elapsed)

    width = np.where(generator.random(number) < ins.PROFILE_CORE[0], ins.PROFILE_CORE[1], ins.PROFILE_WING[1])
    centring = (0.8, -0.5, 0.3, 0.6)[exposure.index]
    centre = ins.SPECTRUM_Y + _mechanism_y(exposure) + centring
    ycorr = centre + ins.trace(xcorr) + width * generator.standard_normal(number)
    return time, xcorr, ycorr, _pulse_heights(generator, number)


def _mechanism_y(exposure: Exposure) -> float:
    """Shift [pixel] of spectrum and lamp across the dispersion."""
    return (1.3, -0.9, 1.8, 0.4)[exposure.index]


def _lamp(exposure: Exposure, generator: np.random.Generator) -> tuple[Array, Array, Array, Array]:
    """Photons of the wavecal lamp in its flashes, as `_target` gives them."""
    positions, strengths = ins.lamp_lines()
    times = [
        generator.uniform(on, off, int(generator.poisson(ins.LAMP_RATE * (off - on) * ins.FLAT_MAXIMUM)))
        for on, off in exposure.flashes
    ]
    time = np.concatenate(times)
    line = generator.choice(positions.size, size=time.size, p=strengths)
    x = positions[line] + generator.normal(0.0, ins.LAMP_LINE_SIGMA, time.size)
    x += ins.mechanism_shift(time, exposure.fpoffset, exposure.index)
    y = ins.LAMP_Y + _mechanism_y(exposure) + generator.normal(0.0, ins.LAMP_SIGMA_Y, time.size)
    inside = (x > ins.ACTIVE_X[0]) & (x < ins.ACTIVE_X[1])
    return time[inside], x[inside], y[inside], _pulse_heights(generator, int(inside.sum()))


def _background(exposure: Exposure, generator: np.random.Generator) -> tuple[Array, Array, Array, Array]:
    """Detector background over the active area, as `_target` gives it; all pulse heights occur."""
    (left, right), (bottom, top) = ins.ACTIVE_X, ins.ACTIVE_Y
    rate = ins.BACKGROUND * (right - left + 1) * (top - bottom + 1)
    number = int(generator.poisson(rate * exposure.duration * ins.FLAT_MAXIMUM))
    return (
        generator.uniform(0.0, exposure.duration, number),
        generator.uniform(left, right, number),
        generator.uniform(bottom, top, number),
        generator.integers(0, 32, number).astype(np.float64),
    )


def _flat_fielded(
    time: Array, x: Array, y: Array, pulse_height: Array, generator: np.random.Generator
) -> tuple[Array, Array, Array, Array]:
    """Detect events with the probability of the flat field; the groups were drawn for its maximum."""
    image = ins.flat_image()
    column = np.rint(x).astype(np.int64) - ins.FLAT_ORIGIN[0]
    row = np.rint(y).astype(np.int64) - ins.FLAT_ORIGIN[1]
    inside = (column >= 0) & (column < image.shape[1]) & (row >= 0) & (row < image.shape[0])
    flat = np.ones(x.size)
    flat[inside] = image[row[inside], column[inside]]
    kept = generator.random(x.size) * ins.FLAT_MAXIMUM < flat
    return time[kept], x[kept], y[kept], pulse_height[kept]


def _telemetry(
    exposure: Exposure, time: Array, x: Array, y: Array, pulse_height: Array
) -> tuple[Array, Array, Array, Array]:
    """Events moved from corrected to raw position."""
    raw_x, raw_y = ins.raw_position(x, y, pulse_height, time / exposure.duration)
    return time, raw_x, raw_y, pulse_height


def _stims(exposure: Exposure, generator: np.random.Generator) -> tuple[Array, Array, Array, Array]:
    """Electronic pulses at two known places; only the thermal distortion moves them."""
    number = int(exposure.duration * ins.STIM_RATE / 2.0)
    groups = []
    for x, y in ins.STIMS:
        time = (np.arange(number) + generator.random()) * 2.0 / ins.STIM_RATE
        place_x = x + generator.normal(0.0, ins.STIM_SIGMA, number)
        place_y = y + generator.normal(0.0, ins.STIM_SIGMA, number)
        raw_x, raw_y = ins.thermal_distortion(place_x, place_y, time / exposure.duration)
        groups.append((time, raw_x, raw_y, np.full(number, 15.0)))
    time, raw_x, raw_y, pulse_height = (np.concatenate(parts) for parts in zip(*groups, strict=True))
    inside = time < exposure.duration
    return time[inside], raw_x[inside], raw_y[inside], pulse_height[inside]


def _livetime(time: Array, exposure: Exposure) -> Array:
    """Probability of detection at each time [s], from the rate in bins of one second.

    A non-paralysable dead time t turns a true rate R into R / (1 + R t); as a function of the observed rate
    the livetime is then ``1 - rate * t``, which is what the livetime table says.
    """
    bins = max(1, math.ceil(exposure.duration))
    second = np.minimum(time.astype(np.int64), bins - 1)
    rate = np.bincount(second, minlength=bins).astype(np.float64)
    live: Array = (1.0 / (1.0 + rate * ins.DEAD_TIME))[second]
    return live


def write_exposure(directory: Path, exposure: Exposure) -> None:
    """Write the raw events and the support file of an exposure.

    Parameters
    ----------
    directory : Path
        Where to write ``<rootname>_rawtag_a.fits`` and ``<rootname>_spt.fits``.
    exposure : Exposure
        What to simulate.
    """
    events = simulate_events(exposure)
    columns = [
        fits.Column("TIME", "1E", unit="seconds", array=events.time),
        fits.Column("RAWX", "1I", unit="pixels", array=events.x),
        fits.Column("RAWY", "1I", unit="pixels", array=events.y),
        fits.Column("PHA", "1B", array=events.pulse_height),
    ]
    intervals = [
        fits.Column("START", "1D", unit="seconds", array=[0.0]),
        fits.Column("STOP", "1D", unit="seconds", array=[exposure.duration]),
    ]
    name = {"ROOTNAME": exposure.rootname, "EXPNAME": exposure.rootname}
    extensions = [
        table(columns, _event_keywords(exposure, events.time.size), "EVENTS"),
        table(intervals, name, "GTI"),
    ]
    write_fits(directory / f"{exposure.rootname}_rawtag_a.fits", _raw_primary(exposure), extensions)
    _write_support(directory, exposure)


def _common_primary(rootname: str, filetype: str) -> dict[str, Card]:
    """Primary keywords that all raw files share."""
    return {
        "FILETYPE": filetype,
        "TELESCOP": "HST",
        "INSTRUME": "COS",
        "EQUINOX": 2000.0,
        "ROOTNAME": rootname,
        "PRIMESI": "COS",
        "TARGNAME": "SIMULATED",
        "RA_TARG": ins.RA_TARGET,
        "DEC_TARG": ins.DEC_TARGET,
        "PROPOSID": 0,
        "LINENUM": "01.001",
        "PR_INV_L": "SIMULATED",
        "PR_INV_F": "",
        "PR_INV_M": "",
    }


def _raw_primary(exposure: Exposure) -> dict[str, Card]:
    """Primary header of the raw events: what calcos and the CRDS rules read, and what products carry on."""
    cards = _common_primary(exposure.rootname, "SCI")
    cards |= {
        "IMAGETYP": "TIME-TAG",
        "POSTARG1": 0.0,
        "POSTARG2": 0.0,
        "CAL_VER": "",
        "OBSTYPE": "SPECTROSCOPIC",
        "OBSMODE": "TIME-TAG",
        "EXPTYPE": "EXTERNAL/SCI",
        "DETECTOR": "FUV",
        "SEGMENT": ins.SEGMENT,
        "DETECTHV": "NomA",
        "COSCOORD": "USER",
        "SUBARRAY": False,
        "LAMPPLAN": "P1",
        "LAMPUSED": "P1",
        "LAMPSET": "Medium",
        "LIFE_ADJ": ins.LIFE_ADJ,
        "EXP_NUM": 1,
        "NRPTEXP": 1,
        "FPPOS": exposure.fppos,
        "FPOFFSET": exposure.fpoffset,
        "CENWAVE": ins.CENWAVE,
        "APERTURE": ins.APERTURE,
        "PROPAPER": ins.APERTURE,
        "APERXPOS": 22.1,
        "APERYPOS": 182.1,
        "OPT_ELEM": ins.OPT_ELEM,
        "SHUTTER": "Open",
        "EXTENDED": "NO",
        "TAGFLASH": "AUTO",
    }
    cards |= dict.fromkeys(_SWITCHES, "PERFORM") | dict.fromkeys(_SWITCHES_OFF, "OMIT")
    cards |= {"STATFLAG": True, "RANDSEED": 1, "XTRCTALG": "TWOZONE"}
    cards |= {rule.kind: "N/A" for rule in RULES} | dict.fromkeys(NOT_APPLICABLE, "N/A")
    cards |= {"PHAFILE": "N/A", "IMPHTTAB": "N/A"}
    association = exposure.association
    return cards | {
        "BANDWID": 0.0,
        "SPECRES": 0.0,
        "CENTRWV": float(ins.CENWAVE),
        "MINWAVE": 0.0,
        "MAXWAVE": 0.0,
        "PLATESC": 0.0,
        "OBSET_ID": exposure.rootname[4:6],
        "ASN_ID": association.upper() or "NONE",
        "ASN_TAB": f"{association}_asn.fits" if association else "NONE",
    }


def _event_keywords(exposure: Exposure, number: int) -> dict[str, Card]:
    """Keywords of the EVENTS extension."""
    started = datetime.datetime(1858, 11, 17, tzinfo=datetime.UTC) + datetime.timedelta(days=exposure.start)
    rate = number / exposure.duration
    full_frame = (("X", ins.NX), ("Y", ins.NY))
    cards: dict[str, Card] = {
        "ROOTNAME": exposure.rootname,
        "EXPNAME": exposure.rootname,
        "ASN_MTYP": "EXP-FP" if exposure.association else "",
        "RA_APER": ins.RA_TARGET,
        "DEC_APER": ins.DEC_TARGET,
        "PA_APER": 0.0,
        "DISPAXIS": 1,
        "X_OFFSET": 0,
        "ORIENTAT": 0.0,
        "DATE-OBS": started.strftime("%Y-%m-%d"),
        "TIME-OBS": started.strftime("%H:%M:%S"),
        "EXPSTART": exposure.start,
        "EXPEND": exposure.end,
        "EXPTIME": exposure.duration,
        "EXPTIMEA": exposure.duration,
        "EXPTIMEB": 0.0,
        "EXPFLAG": "NORMAL",
        "EXPSTRTJ": exposure.start + 2400000.5,
        "EXPENDJ": exposure.end + 2400000.5,
        "PLANTIME": exposure.duration,
        "NINTERPT": 0,
        "OVERFLOW": 0,
        "NUMFLASH": len(exposure.flashes),
    }
    for number_of_flash, (on, off) in enumerate(exposure.flashes, start=1):
        cards |= {
            f"LMPDUR{number_of_flash}": off - on,
            f"LMP_ON{number_of_flash}": on,
            f"LMPOFF{number_of_flash}": off,
            f"LMPMED{number_of_flash}": 0.5 * (on + off),
        }
    return cards | {
        "V_HELIO": -999.0,
        "ORBITPER": ins.ORBITAL_PERIOD,
        "DOPPER": 0.0,
        "DOPPMAG": 0.0,
        "DOPPMAGV": ins.ORBITAL_VELOCITY,
        "DOPPON": False,
        "DOPPZERO": DOPPLER_ZERO,
        "NSUBARRY": 1,
        **{f"CORNER{n}{axis}": 0 for n in range(8) for axis in "XY"},
        **{f"SIZE{n}{axis}": size if n == 0 else 0 for n in range(8) for axis, size in full_frame},
        "STIMRATE": ins.STIM_RATE,
        "SDQFLAGS": 8346,
        "SDQOUTER": 2,
        "NEVENTS": number,
        "NEVENTSA": number,
        "RAWTIME": exposure.duration,
        "DEVENTA": rate,
        "DEVENTB": 0.0,
        "HVLEVELA": ins.HV_LEVEL,
        "HVLEVELB": 100,
    }


def _write_support(directory: Path, exposure: Exposure) -> None:
    """Write the support file: a circular orbit, from which calcos computes the TIMELINE extension."""
    radius = 6.915e6
    inclination = math.radians(28.47)
    period = ins.ORBITAL_PERIOD
    # calcos counts from 1985 January 1; angles are in revolutions, but the mean anomaly is in radians.
    epoch = (START - 46066.0) * ins.SECONDS_PER_DAY
    cards = _common_primary(exposure.rootname, "SPT") | {
        "ARGPERIG": 0.0,
        "CIRVELOC": 2.0 * math.pi * radius / period,
        "COSINCLI": math.cos(inclination),
        "ECBDX3": 0.0,
        "ECCENTRY": 0.0,
        "ECCENTX2": 0.0,
        "ECBDX4D3": 0.0,
        "EPCHTIME": epoch,
        "ESQDX5D2": 0.0,
        "FDMEANAN": 1.0 / period,
        "HSTHORB": 0.5 * period,
        "MEANANOM": 1.0,
        "RASCASCN": 0.3,
        "RCARGPER": 0.0,
        "RCASCNRV": 0.0,
        "SDMEANAN": 0.0,
        "SEMILREC": radius,
        "SINEINCL": math.sin(inclination),
        "OBSET_ID": exposure.rootname[4:6],
        "OBSERVTN": exposure.rootname[6:8].upper(),
    }
    support = fits.ImageHDU(name="SUPPORT", ver=1)
    support.header["ROOTNAME"] = exposure.rootname
    support.header["EXPNAME"] = exposure.rootname
    support.header["ASN_MTYP"] = "EXP-FP" if exposure.association else ""
    write_fits(directory / f"{exposure.rootname}_spt.fits", cards, [support])


def write_association(directory: Path, association: str, members: Sequence[str]) -> None:
    """Write the association table of `members` and the product `association` into `directory`."""
    names = [*(member.upper() for member in members), association.upper()]
    columns = [
        fits.Column("MEMNAME", "14A", array=names),
        fits.Column("MEMTYPE", "14A", array=["EXP-FP"] * len(members) + ["PROD-FP"]),
        fits.Column("MEMPRSNT", "L", array=[True] * len(names)),
    ]
    cards = _common_primary(association, "ASN_TABLE") | {
        "DETECTOR": "FUV",
        "ASN_ID": association.upper(),
        "ASN_TAB": f"{association}_asn.fits",
        "ASN_STAT": "COMPLETE",
        "ASN_PROD": True,
    }
    extension = table(columns, {"ROOTNAME": association, "EXPNAME": association}, "ASN")
    write_fits(directory / f"{association}_asn.fits", cards, [extension])
