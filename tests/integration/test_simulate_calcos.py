"""The real crds and calcos recover the spectrum that was injected into a simulated exposure."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits
from astropy.table import Table

from caldp import programs
from caldp.simulate import Simulation, compare, simulate
from caldp.simulate.rules import NOT_APPLICABLE, RULES

pytestmark = pytest.mark.slow

TIMEOUT = 600


@dataclass(frozen=True)
class Calibrated:
    """A simulation after best references and calibration."""

    simulation: Simulation
    bestrefs: str
    calcos: str
    work: Path

    def product(self, suffix: str) -> Path:
        """A product of the exposure."""
        return self.work / "out" / f"{self.simulation.dataset}_{suffix}.fits"


def _run(command: list[str], work: Path, environment: dict[str, str]) -> str:
    done = subprocess.run(
        command,
        cwd=work,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        timeout=TIMEOUT,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-4000:]
    return done.stdout


def _calcos_program() -> str:
    found = programs.find("calcos", os.environ.get("PATH", ""))
    assert found is not None, "calcos is a dependency: install this package"
    return found


@pytest.fixture(scope="module")
def calibrated(tmp_path_factory: pytest.TempPathFactory) -> Calibrated:
    directory = tmp_path_factory.mktemp("simulated")
    simulation = simulate(directory)
    work = directory / "work"
    shutil.copytree(simulation.inputs, work)
    environment = {name: value for name, value in os.environ.items() if not name.startswith("CRDS_")} | {
        "CRDS_PATH": str(simulation.crds_path),
        "CRDS_OBSERVATORY": "hst",
        "CRDS_SERVER_URL": "https://hst-serverless-mode.stsci.edu",
        "CRDS_READONLY_CACHE": "1",
        "lref": f"{simulation.crds_path}/references/hst/",
    }
    raw = f"{simulation.dataset}_rawtag_a.fits"
    command = [sys.executable, "-m", "crds.bestrefs", "--update-bestrefs", "--files", raw]
    bestrefs = _run([*command, "--new-context", simulation.context], work, environment)
    calcos = _run([_calcos_program(), "-o", "out", raw], work, environment)
    return Calibrated(simulation, bestrefs, calcos, work)


def test_rules_select_every_reference(calibrated: Calibrated) -> None:
    assert re.search(r"\b0 errors", calibrated.bestrefs)
    assert re.search(r"\b0 warnings", calibrated.bestrefs)
    header = fits.getheader(calibrated.work / f"{calibrated.simulation.dataset}_rawtag_a.fits")
    assert header["CRDS_CTX"] == calibrated.simulation.context
    assert {rule.kind: header[rule.kind] for rule in RULES} == {rule.kind: f"lref${rule.reference}" for rule in RULES}
    assert {header[kind] for kind in NOT_APPLICABLE} == {"N/A"}


def test_all_products_and_all_steps(calibrated: Calibrated) -> None:
    for suffix in ("corrtag_a", "counts_a", "flt_a", "lampflash", "x1d"):
        assert calibrated.product(suffix).stat().st_size > 0
    assert "No data in" not in calibrated.calcos
    header = fits.getheader(calibrated.product("x1d"))
    steps = (
        "RANDCORR TEMPCORR GEOCORR IGEOCORR XWLKCORR YWLKCORR DEADCORR PHACORR DOPPCORR FLATCORR WAVECORR "
        "TRCECORR ALGNCORR DQICORR X1DCORR BACKCORR FLUXCORR TDSCORR HELCORR"
    ).split()
    assert {step: header[step] for step in steps} == dict.fromkeys(steps, "COMPLETE")


def test_injected_spectrum_is_recovered(calibrated: Calibrated) -> None:
    result = compare(calibrated.product("x1d"), calibrated.simulation.truth)
    assert result.worst_line_offset <= 1.0, str(result)
    assert result.worst_flux_error <= 0.05, str(result)
    assert result.recovered
    # Photon noise averages out over the bins; what is left is the error of the flux scale itself.
    assert result.mean_flux_ratio == pytest.approx(1.0, abs=0.01)


def test_wrong_expectations_are_noticed(calibrated: Calibrated, tmp_path: Path) -> None:
    truth = Table.read(calibrated.simulation.truth, format="ascii.ecsv")
    displaced = truth.copy()
    displaced["wavelength"] += 3.0
    displaced.meta["lines"] = [line + 3.0 for line in truth.meta["lines"]]
    brighter = truth.copy()
    brighter["flux"] *= 1.1
    for name, wrong in (("displaced", displaced), ("brighter", brighter)):
        path = tmp_path / f"{name}.ecsv"
        wrong.write(path, format="ascii.ecsv")
        assert not compare(calibrated.product("x1d"), path).recovered
    assert compare(calibrated.product("x1d"), tmp_path / "displaced.ecsv").worst_line_offset > 2.0
    assert compare(calibrated.product("x1d"), tmp_path / "brighter.ecsv").mean_flux_ratio < 0.95


def test_wavecal_finds_the_injected_shift(calibrated: Calibrated) -> None:
    truth = Table.read(calibrated.simulation.truth, format="ascii.ecsv")
    injected = truth.meta["exposures"][calibrated.simulation.dataset]
    with fits.open(calibrated.product("lampflash")) as hdus:
        flashes = hdus["LAMPFLASH"].data
        assert flashes["SPEC_FOUND"].all()
        assert np.allclose(flashes["TIME"], injected["flash_times"], atol=1.0)
        assert np.allclose(flashes["SHIFT_DISP"], injected["shift1"], atol=1.0)
    assert min(abs(shift) for shift in injected["shift1"]) > 15.0
