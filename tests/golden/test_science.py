"""Science: what caldp-process delivers is what calcos makes by hand, and agrees with the archive's own products."""

from __future__ import annotations

import gzip
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits
from numpy.typing import NDArray

from tests.desk import CONTEXT, SCRIPTS, Desk

#: Keywords that tell when and by whom a file was made, not what is in it.
PROVENANCE = ["DATE", "CALDPVER", "CSYS_VER", "AWSDPVER", "AWSYSVER", "CHECKSUM", "DATASUM"]

#: Range in which the truth was measured well, in Angstrom.
RANGE = (1150.0, 2000.0)

Floats = NDArray[np.float64]


def by_hand(desk: Desk, names: list[str], argument: str) -> Path:
    """Calibrate as the manuals say: bestrefs on copies, RANDSEED, calcos."""
    work = desk.home / "by-hand"
    work.mkdir()
    for name in names:
        (work / name).write_bytes(gzip.decompress((desk.inputs / f"{name}.gz").read_bytes()))
    raws = [n for n in names if "_raw" in n]
    env = {**desk.env, "CRDS_OBSERVATORY": "hst", "CRDS_READONLY_CACHE": "1"}
    env["lref"] = f"{env['CRDS_PATH']}/references/hst/"
    bestrefs = [sys.executable, "-m", "crds.bestrefs", "--update-bestrefs", "--new-context", CONTEXT, "--files", *raws]
    subprocess.run(bestrefs, cwd=work, env=env, check=True, capture_output=True)
    for name in raws:
        fits.setval(work / name, "RANDSEED", value=1)
    subprocess.run([SCRIPTS / "calcos", "-o", "out", argument], cwd=work, env=env, check=True, capture_output=True)
    return work / "out"


def assert_same(made: Path, hand: Path) -> int:
    """Assert that every product made by hand is delivered with the same headers and pixels; return how many."""
    products = sorted(hand.glob("*.fits"))
    for path in products:
        with fits.open(made / path.name) as ours, fits.open(path) as theirs:
            for hdu in (*ours, *theirs):
                for keyword in PROVENANCE:
                    hdu.header.remove(keyword, ignore_missing=True)
            difference = fits.FITSDiff(ours, theirs, ignore_comments=["*"])
            assert difference.identical, difference.report()
    return len(products)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("dataset", "names", "count"),
    [
        ("ldfd01vlq", ["ldfd01vlq_rawacq.fits", "ldfd01vlq_spt.fits"], 2),
        ("ldfd01vnq", ["ldfd01vnq_rawtag_a.fits", "ldfd01vnq_spt.fits"], 5),
    ],
)
def test_exposure_is_what_calcos_makes_by_hand(
    desk: Desk, give: Callable[..., None], dataset: str, names: list[str], count: int
) -> None:
    give(f"{dataset}*")
    assert desk.process(dataset).code == 0
    assert assert_same(desk.folder(dataset), by_hand(desk, names, names[0])) == count


@pytest.mark.slow
def test_association_is_what_calcos_makes_by_hand(association: Desk, desk: Desk, cos_data: Path) -> None:
    shutil.copytree(cos_data / "inputs", desk.inputs, dirs_exist_ok=True)
    names = [p.name.removesuffix(".gz") for p in desk.inputs.iterdir() if p.name[9:13] in ("_asn", "_raw", "_spt")]
    hand = by_hand(desk, names, "ldfd01010_asn.fits")
    assert assert_same(association.folder("ldfd01010"), hand) == 27


@dataclass(frozen=True)
class Spectrum:
    """Good pixels of one spectrum: wavelength in Angstrom, flux in erg/s/cm2/A."""

    wavelength: Floats
    flux: Floats

    @classmethod
    def read(cls, path: Path) -> Spectrum:
        table = fits.getdata(path, 1)
        wavelength, flux, weight = (np.ravel(table[c]).astype(float) for c in ("WAVELENGTH", "FLUX", "DQ_WGT"))
        good = (weight > 0) & (wavelength > RANGE[0] - 5) & (wavelength < RANGE[1] + 5)
        return cls(wavelength[good], flux[good])


def shift_between(ours: Spectrum, truth: Spectrum) -> tuple[float, float]:
    """Return by how many Angstrom ours lies redwards of the truth, and the correlation there."""
    step, reach = 0.01, 100
    grid = np.arange(*RANGE, step)
    kernel = np.ones(100) / 100  # 1 A: above the pixel-to-pixel dither
    a, b = (np.convolve(np.interp(grid, s.wavelength, s.flux), kernel, "valid") for s in (ours, truth))
    lags = np.arange(-reach, reach + 1)
    inner = slice(reach, -reach)
    correlation = np.array([np.corrcoef(np.roll(a, -lag)[inner], b[inner])[0, 1] for lag in lags])
    best = int(correlation.argmax())
    assert 0 < best < len(lags) - 1, "no peak within 1 A"
    left, peak, right = correlation[best - 1 : best + 2]
    return step * float(lags[best] + 0.5 * (left - right) / (left - 2 * peak + right)), float(peak)


def binned_ratios(ours: Spectrum, truth: Spectrum, pixels: int = 64) -> Floats:
    """Return ours / truth of the mean flux in bins of 64 truth pixels (5 A), matched by wavelength."""
    inside = (truth.wavelength >= RANGE[0]) & (truth.wavelength <= RANGE[1])
    edges = truth.wavelength[inside][::pixels]
    ratios = []
    for low, high in zip(edges[:-1], edges[1:], strict=True):
        means = [s.flux[(s.wavelength >= low) & (s.wavelength < high)] for s in (ours, truth)]
        if all(len(m) > pixels // 4 for m in means) and means[1].mean() > 0:
            ratios.append(means[0].mean() / means[1].mean())
    return np.array(ratios)


@pytest.fixture(scope="module")
def truth(cos_data: Path) -> Spectrum:
    return Spectrum.read(cos_data / "truth" / "ldfd01010_x1dsum.fits.gz")


def test_association_agrees_with_the_archive(association: Desk, truth: Spectrum, tell: Callable[[str], None]) -> None:
    """The references are stand-ins, some inverted from this truth: this proves the plumbing, not the calibration."""
    ours = Spectrum.read(association.folder("ldfd01010") / "ldfd01010_x1dsum.fits")
    shift, correlation = shift_between(ours, truth)
    error = np.abs(binned_ratios(ours, truth) - 1)
    within = ", ".join(f"{limit:.0%}: {np.mean(error < limit):.1%}" for limit in (0.01, 0.05, 0.10))
    tell(
        f"ldfd01010_x1dsum against the archive: shift {shift:+.3f} A (r {correlation:.4f}); flux in {len(error)} "
        f"bins of 64 pixels: median {np.median(error):.2%}; within {within}"
    )
    assert len(error) > 150
    assert abs(shift) <= 0.05
    assert np.median(error) <= 0.005


def test_the_comparison_notices_a_wrong_result(truth: Spectrum) -> None:
    moved = Spectrum(truth.wavelength + 0.2, truth.flux)
    assert shift_between(moved, truth)[0] == pytest.approx(0.2, abs=0.01)
    bright = Spectrum(truth.wavelength, truth.flux * 1.02)
    assert np.median(np.abs(binned_ratios(bright, truth) - 1)) == pytest.approx(0.02, abs=0.001)
