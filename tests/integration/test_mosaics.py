"""Mosaics of visits (SVM) and sky cells (MVM): the real runsinglehap and runmultihap on what caldp-process made."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits
from astropy.wcs import WCS
from PIL import Image

from tests.desk import HRC, Desk, Hrc, Shelf, assert_tidy, make_hrc

VISIT = "acs_8bt_05"
CELL = "skycell-p0047x20y18"
ELSEWHERE = "skycell-p2381x06y09"
FLT = f"{HRC}_flt.fits"
SVM_FLT = "hst_9019_05_acs_hrc_f555w_j8bt05nj_flt.fits"
LOGS = {
    f"logs/{n}" for n in ("metrics.json", "preview.txt", "preview_metrics.txt", "process.txt", "process_metrics.txt")
}
OURS = {"manifest.json", "report.html"} | LOGS


def svm_row(name: str, filters: str = "F555W;CLEAR2S") -> str:
    return f"{name},9019,8BT,05,60.0,{filters},HRC,{name}\n"


def mvm_row(name: str, cell: str = CELL) -> str:
    return f"{name},9019,8BT,05,60.0,F555W;CLEAR2S,HRC,{cell},NEW,{name}\n"


def pictures(*names: str) -> set[str]:
    return {f"previews/{name}{end}.jpg" for name in names for end in ("", "_thumb")}


@pytest.fixture(scope="session")
def visit(shelf: Shelf, hrc: Desk, hrc_environment: dict[str, str]) -> Desk:
    """The mosaic of the visit, of the one exposure that caldp-process has calibrated and drizzled."""

    def fill(inputs: Path) -> None:
        shutil.copy(hrc.folder(HRC) / FLT, inputs)
        (inputs / f"{VISIT}_input.out").write_text(svm_row(FLT))

    return shelf.calibrated("visit", VISIT, hrc_environment, fill)


@pytest.fixture(scope="session")
def cell(shelf: Shelf, visit: Desk, hrc_environment: dict[str, str]) -> Desk:
    """The mosaic of a sky cell, of the exposure as the mosaic of its visit has delivered it."""

    def fill(inputs: Path) -> None:
        shutil.copy(visit.folder(VISIT) / SVM_FLT, inputs)
        (inputs / f"{CELL}_input.out").write_text(mvm_row(SVM_FLT))

    return shelf.calibrated("cell", CELL, hrc_environment, fill)


# --- what is delivered ------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_visit_delivers_what_is_documented(visit: Desk) -> None:
    exposure, filtered, total = (f"hst_9019_05_acs_hrc_{n}" for n in ("f555w_j8bt05nj", "f555w_j8bt05", "total_j8bt05"))
    products = {f"{VISIT}_manifest.txt", "astrodrizzle.log", f"{exposure}_flt.fits"}
    products |= {f"{name}_{end}" for name in (exposure, filtered, total) for end in ("drz.fits", "trl.txt")}
    products |= {f"{name}_{end}-cat.ecsv" for name in (filtered, total) for end in ("point", "segment")}
    assert len(products) == 13
    # One filter only: there is nothing to compose.
    assert visit.tree(VISIT) == products | pictures(*(f"{n}_drz" for n in (exposure, filtered, total))) | OURS
    assert visit.folder(VISIT) == visit.output / "data" / "acs" / VISIT
    assert visit.states(VISIT) == ["datasets-processed"]
    assert_tidy(visit.home)


@pytest.mark.slow
def test_visit_manifest_and_pristine_inputs(visit: Desk, hrc: Desk) -> None:
    manifest = visit.manifest(VISIT)
    listed = {e["name"]: e["sha256"] for e in [*manifest["products"], *manifest["previews"]]}
    assert set(listed) == visit.tree(VISIT) - OURS
    for name, checksum in listed.items():
        assert hashlib.sha256((visit.folder(VISIT) / name).read_bytes()).hexdigest() == checksum
    assert (manifest["kind"], manifest["references"], manifest["context"]) == ("mosaic", [], "")
    assert {e["name"] for e in manifest["inputs"]} == {FLT, f"{VISIT}_input.out"}
    assert (visit.inputs / FLT).read_bytes() == (hrc.folder(HRC) / FLT).read_bytes()


@pytest.mark.slow
def test_visit_mosaic_shows_the_exposure(visit: Desk, hrc: Desk) -> None:
    """The drizzled image of the exposure and the mosaic show the same sky."""
    with fits.open(hrc.folder(HRC) / f"{HRC}_drz.fits") as drz:
        image, wcs = np.nan_to_num(drz["SCI"].data), WCS(drz["SCI"].header)
    brightest = np.argsort(image[200:-200, 200:-200], axis=None)[-1]
    y, x = (i + 200 for i in np.unravel_index(brightest, image[200:-200, 200:-200].shape))
    with fits.open(visit.folder(VISIT) / "hst_9019_05_acs_hrc_f555w_j8bt05_drz.fits") as hdus:
        assert hdus[0].header["EXPTIME"] == 60.0
        mosaic = np.nan_to_num(hdus["SCI"].data)
        column, row = (round(float(v)) for v in WCS(hdus["SCI"].header).all_world2pix(*wcs.all_pix2world(x, y, 0), 0))
    there = mosaic[row - 3 : row + 4, column - 3 : column + 4]
    assert there.max() > 0.5 * image[y, x]
    assert there.max() > 50 * np.median(mosaic[mosaic > 0])


@pytest.mark.slow
def test_visit_catalogue_has_stars(visit: Desk) -> None:
    from astropy.table import Table

    catalogue = Table.read(visit.folder(VISIT) / "hst_9019_05_acs_hrc_total_j8bt05_point-cat.ecsv")
    assert len(catalogue) > 500


@pytest.mark.slow
def test_cell_delivers_what_is_documented(cell: Desk) -> None:
    name = f"hst_{CELL}_acs_hrc_f555w_all"
    products = {f"{CELL}_manifest.txt", f"{name}_drz.fits", f"{name}_trl.txt"}
    assert cell.tree(CELL) == products | pictures(f"{name}_drz") | OURS
    assert cell.folder(CELL) == cell.output / "data" / "mvm" / CELL
    assert cell.states(CELL) == ["datasets-processed"]
    assert_tidy(cell.home)
    with Image.open(cell.folder(CELL) / "previews" / f"{name}_drz_thumb.jpg") as thumb:
        assert max(thumb.size) == 512


@pytest.mark.slow
def test_cell_mosaic_shows_the_exposure(cell: Desk) -> None:
    with fits.open(cell.folder(CELL) / f"hst_{CELL}_acs_hrc_f555w_all_drz.fits") as hdus:
        assert hdus[0].header["NDRIZIM"] == 1
        assert hdus[0].header["D001DATA"].endswith("j8bt05nj_flt.fits[sci,1]")
        assert np.nanmax(hdus["SCI"].data) > 100
        assert hdus["SCI"].header["CRVAL2"] == pytest.approx(-72, abs=3)


@pytest.mark.slow
def test_report_of_a_mosaic(visit: Desk) -> None:
    page = (visit.folder(VISIT) / "report.html").read_text()
    assert "runsinglehap" in page and f"{VISIT}_manifest.txt" in page


@pytest.mark.slow
def test_two_filters_make_a_picture_in_colour(
    shelf: Shelf, hrc: Desk, hrc_data: Hrc, hrc_environment: dict[str, str]
) -> None:
    other = "j8bt05nlq"

    def another(inputs: Path) -> list[str]:
        make_hrc(inputs / f"{other}_raw.fits", hrc_data.raw, FILTER1="F606W")
        return hrc_data.override

    red = shelf.calibrated("red", other, hrc_environment, another)

    def fill(inputs: Path) -> None:
        shutil.copy(hrc.folder(HRC) / FLT, inputs)
        shutil.copy(red.folder(other) / f"{other}_flt.fits", inputs)
        rows = svm_row(FLT) + svm_row(f"{other}_flt.fits", "F606W;CLEAR2S")
        (inputs / f"{VISIT}_input.out").write_text(rows)

    desk = shelf.calibrated("colours", VISIT, hrc_environment, fill)
    names = [f"hst_9019_05_acs_hrc_{n}" for n in ("f555w_j8bt05", "f606w_j8bt05", "total_j8bt05")]
    assert {f"{name}_drz.fits" for name in names} <= desk.tree(VISIT)
    colour = "hst_9019_05_acs_hrc_total_j8bt05_drz_color"
    assert pictures(colour) <= desk.tree(VISIT)
    with Image.open(desk.folder(VISIT) / "previews" / f"{colour}.jpg") as picture:
        assert picture.mode == "RGB"
        bands = np.asarray(picture).reshape(-1, 3).std(axis=0)
        assert (bands > 1).all()


# --- nothing to make --------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("dataset", [VISIT, CELL])
def test_exposures_without_time_end_processed(dataset: str, hrc_desk: Desk, hrc: Desk) -> None:
    """The programs end with 65, nothing viable: that is an answer, not a failure."""
    name, row = (FLT, svm_row) if dataset == VISIT else (SVM_FLT, mvm_row)
    shutil.copy(hrc.folder(HRC) / FLT, hrc_desk.inputs / name)
    fits.setval(hrc_desk.inputs / name, "EXPTIME", value=0.0)
    (hrc_desk.inputs / f"{dataset}_input.out").write_text(row(name))
    result = hrc_desk.process(dataset)
    assert result.code == 0, result.stderr
    assert hrc_desk.tree(dataset) == OURS
    assert hrc_desk.states(dataset) == ["datasets-processed"]
    assert "ended with 65" in hrc_desk.status(dataset)["reason"]
    assert hrc_desk.status(dataset)["reason"] in result.stdout
    assert_tidy(hrc_desk.home)


# --- failures ---------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_exposure_that_is_not_in_the_sky_cell(hrc_desk: Desk, hrc: Desk) -> None:
    """The real runmultihap ends with 0 then, and leaves an empty manifest."""
    shutil.copy(hrc.folder(HRC) / FLT, hrc_desk.inputs / SVM_FLT)
    (hrc_desk.inputs / f"{ELSEWHERE}_input.out").write_text(mvm_row(SVM_FLT, ELSEWHERE))
    result = hrc_desk.process(ELSEWHERE)
    hrc_desk.assert_failed(result, ELSEWHERE, 41, "runmultihap made no image", f"{ELSEWHERE}_manifest.txt lists none")


@pytest.mark.slow
def test_exposure_whose_distortion_is_not_corrected(hrc_desk: Desk, hrc: Desk) -> None:
    """An exposure as calacs.e leaves it, before runastrodriz: the real runsinglehap fails with it."""
    with fits.open(hrc.folder(HRC) / FLT) as hdus:
        plain = fits.HDUList([hdu.copy() for hdu in hdus[:4]])
    plain[0].header["NEXTEND"] = 3
    for keyword in [k for k in plain["SCI"].header if k.startswith(("A_", "B_", "CPDIS", "CPERR", "DP", "WCSNAME"))]:
        plain["SCI"].header.remove(keyword, ignore_missing=True, remove_all=True)
    plain.writeto(hrc_desk.inputs / FLT, output_verify="silentfix")
    (hrc_desk.inputs / f"{VISIT}_input.out").write_text(svm_row(FLT))
    hrc_desk.assert_failed(hrc_desk.process(VISIT), VISIT, 40, "runsinglehap")


@pytest.mark.parametrize("dataset", [VISIT, CELL])
@pytest.mark.parametrize(
    ("content", "word"),
    [
        (None, "_input.out"),
        (svm_row(FLT), FLT),
        ("rubbish\n", "'rubbish'"),
        ("", "lists no exposure"),
        ("\0\1\2" * 40, "which is no calibrated exposure"),
        (svm_row("../../../etc/passwd"), "which is no calibrated exposure"),
    ],
)
def test_bad_list_of_exposures(hrc_desk: Desk, dataset: str, content: str | None, word: str) -> None:
    if content is not None:
        (hrc_desk.inputs / f"{dataset}_input.out").write_text(content)
    result = hrc_desk.process(dataset)
    hrc_desk.assert_failed(result, dataset, 21, word)


@pytest.mark.slow
def test_dry_run_of_a_mosaic(hrc_desk: Desk, hrc: Desk) -> None:
    shutil.copy(hrc.folder(HRC) / FLT, hrc_desk.inputs)
    (hrc_desk.inputs / f"{VISIT}_input.out").write_text(svm_row(FLT))
    result = hrc_desk.process(VISIT, "--dry-run", "--json")
    assert result.code == 0, result.stderr
    plan = json.loads(result.stdout.splitlines()[-1])["plan"]
    ((program, poller),) = plan["programs"]
    assert program == "runsinglehap" and Path(poller).is_absolute() and Path(poller).name == f"{VISIT}_input.out"
    assert plan["references"] == []
    assert [p.name for p in hrc_desk.home.iterdir()] == ["IN"]
