"""ACS and STIS: the real crds, calacs.e or a stand-in for it, cs0.e, the real runastrodriz, real previews.

HSTCAL (calacs.e, cs0.e) cannot be required: it is not in the Python package index.  Where calacs.e is missing, what
stands in for it makes the same ``flt`` of the same raw data, and all else is real; cs0.e has no stand-in.
"""

from __future__ import annotations

import hashlib
import html
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits
from astropy.wcs import WCS
from numpy.typing import NDArray
from PIL import Image

from tests.desk import (
    CONTEXT,
    HRC,
    REPOSITORY,
    SCRIPTS,
    Desk,
    Hrc,
    Shelf,
    assert_tidy,
    child_named,
    choose_references,
    make_hrc,
    needs_calacs,
    needs_cs0,
    shim,
    unpacked,
    without_hstcal,
)

LOGS = {
    f"logs/{n}" for n in ("metrics.json", "preview.txt", "preview_metrics.txt", "process.txt", "process_metrics.txt")
}
OURS = {"manifest.json", "report.html"} | LOGS
STIS = "ocmv0lw6q"

Floats = NDArray[np.float64]


def pictures(*names: str) -> set[str]:
    return {f"previews/{name}{end}.jpg" for name in names for end in ("", "_thumb")}


def checksum(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def programs_run(desk: Desk, dataset: str) -> list[str]:
    """Names of the calibration programs that ran, in order."""
    metrics = json.loads((desk.folder(dataset) / "logs" / "metrics.json").read_text())
    stage = next(s for s in metrics["stages"] if s["name"] == "calibrate")
    return [p["program"] for p in stage["programs"]]


def bright_stars(path: Path, count: int = 40) -> tuple[Floats, Floats]:
    """Positions on the sky of bright, lonely, unsaturated stars of a calibrated exposure."""
    with fits.open(path) as hdus:
        image, bad = hdus["SCI"].data.astype(float), hdus["DQ"].data != 0
        wcs = WCS(hdus["SCI"].header, hdus)
    image -= np.median(image)
    found: list[tuple[float, float]] = []
    for index in np.argsort(image, axis=None)[::-1]:
        y, x = divmod(int(index), image.shape[1])
        box = (slice(y - 7, y + 8), slice(x - 7, x + 8))
        if 40 < x < 984 and 40 < y < 984 and not bad[box].any() and image[box].max() == image[y, x]:
            found.append(centroid(image, x, y))
        if len(found) == count:
            break
    columns, rows = np.array(found).T
    right_ascension, declination = wcs.all_pix2world(columns, rows, 0)
    return right_ascension, declination


def centroid(image: Floats, x: int, y: int, reach: int = 2) -> tuple[float, float]:
    box = np.clip(image[y - reach : y + reach + 1, x - reach : x + reach + 1], 0, None)
    rows, columns = np.mgrid[-reach : reach + 1, -reach : reach + 1]
    return x + (box * columns).sum() / box.sum(), y + (box * rows).sum() / box.sum()


def offset_of_stars(flt: Path, drz: Path) -> tuple[float, float]:
    """Compare where a drizzled image has the stars of an exposure with where they were.

    Returns
    -------
    tuple of float
        Length of the median offset, and median length of the offsets, in pixels.
    """
    right_ascension, declination = bright_stars(flt)
    assert len(right_ascension) > 20
    with fits.open(drz) as hdus:
        image = np.nan_to_num(hdus["SCI"].data.astype(float))
        image -= np.median(image[hdus["WHT"].data > 0])
        expected = WCS(hdus["SCI"].header).all_world2pix(right_ascension, declination, 0)
    found = [centroid(image, round(float(x)), round(float(y))) for x, y in zip(*expected, strict=True)]
    offsets = np.array(found).T - np.array(expected)
    return float(np.hypot(*np.median(offsets, axis=1))), float(np.median(np.hypot(*offsets)))


# --- one exposure -----------------------------------------------------------------------------------------------


def test_exposure_delivers_what_is_documented(hrc: Desk) -> None:
    products = {f"{HRC}.tra", *(f"{HRC}_{s}.fits" for s in ("raw", "flt", "flt_hlet", "drz"))}
    assert hrc.tree(HRC) == products | pictures(*(f"{HRC}_{s}" for s in ("raw", "flt", "drz"))) | OURS
    assert hrc.states(HRC) == ["datasets-processed"]
    assert hrc.status(HRC)["exit_code"] == 0
    assert programs_run(hrc, HRC) == ["calacs.e", "runastrodriz"]
    assert_tidy(hrc.home)


def test_exposure_inputs_stay_pristine(hrc: Desk, hrc_data: Hrc) -> None:
    assert [p.name for p in hrc.inputs.iterdir()] == [f"{HRC}_raw.fits"]
    assert checksum(hrc.inputs / f"{HRC}_raw.fits") == checksum(hrc_data.raw)


def test_exposure_manifest(hrc: Desk, hrc_data: Hrc) -> None:
    manifest = hrc.manifest(HRC)
    listed = {e["name"]: e for e in [*manifest["products"], *manifest["previews"]]}
    assert set(listed) == hrc.tree(HRC) - OURS
    assert all(checksum(hrc.folder(HRC) / name) == entry["sha256"] for name, entry in listed.items())
    assert (manifest["context"], manifest["kind"], manifest["instrument"]) == (CONTEXT, "exposure", "acs")
    references = {r["type"]: r for r in manifest["references"]}
    assert {k: r["name"] for k, r in references.items()} == {
        "BPIXTAB": "m8r09169j_bpx.fits",
        "CCDTAB": "o1515069j_ccd.fits",
        "OSCNTAB": "14s1737dj_osc.fits",
        "BIASFILE": "m4r1753rj_bia.fits",
        "DARKFILE": "n3o1059hj_drk.fits",
        "PFLTFILE": "o3u1448rj_pfl.fits",
        "IMPHTTAB": "2391649pj_imp.fits",
        "IDCTAB": "p7d1548qj_idc.fits",
        "MDRIZTAB": "ub215378j_mdz.fits",
        "NPOLFILE": "v9718263j_npl.fits",
        "SATUFILE": "zzsynth1j_sat.fits",
    }
    assert [k for k, r in references.items() if r["override"]] == ["SATUFILE"]
    assert manifest["versions"]["calacs.e"]


def test_exposure_headers(hrc: Desk) -> None:
    folder = hrc.folder(HRC)
    for suffix in ("raw", "flt", "drz"):
        header = fits.getheader(folder / f"{HRC}_{suffix}.fits")
        assert header["CRDS_CTX"] == CONTEXT
        assert header["CALDPVER"] == hrc.manifest(HRC)["versions"]["caldp"]
        assert header["CSYS_VER"] == header["AWSDPVER"] == header["AWSYSVER"] == "UNDEFINED"
        assert header["ROOTNAME"].strip() == HRC
        assert header["SATUFILE"] == "jref$zzsynth1j_sat.fits"
        assert header["EXPTIME"] == 60.0
    drz = fits.getheader(folder / f"{HRC}_drz.fits")
    assert (drz["D001DATA"], drz["NDRIZIM"]) == (f"{HRC}_flt.fits[sci,1]", 1)
    assert fits.getheader(folder / f"{HRC}_drz.fits", "SCI")["BUNIT"] == "ELECTRONS/S"
    # runastrodriz writes the distortion into the exposure it has drizzled, and keeps it in a headerlet too.
    assert fits.getheader(folder / f"{HRC}_flt.fits", "SCI")["WCSNAME"] == "IDC_p7d1548qj"
    headerlet = fits.getheader(folder / f"{HRC}_flt_hlet.fits")
    assert (headerlet["DESTIM"], headerlet["NPOLFILE"]) == (HRC, "jref$v9718263j_npl.fits")


def test_stars_are_where_they_were(hrc: Desk, tell: Callable[[str], None]) -> None:
    folder = hrc.folder(HRC)
    common, each = offset_of_stars(folder / f"{HRC}_flt.fits", folder / f"{HRC}_drz.fits")
    tell(f"stars of {HRC}_drz against its flt: offset {common:.3f} pixels, each {each:.3f}")
    assert common < 0.1
    assert each < 0.3


def test_the_sky_is_as_bright_as_it_was(hrc: Desk) -> None:
    folder = hrc.folder(HRC)
    with fits.open(folder / f"{HRC}_flt.fits") as flt, fits.open(folder / f"{HRC}_drz.fits") as drz:
        rows, columns = np.mgrid[40:984:5, 40:984:5].reshape(2, -1)
        before = flt["SCI"].data[rows, columns] - flt["SCI"].header["MDRIZSKY"]
        good = (flt["DQ"].data[rows, columns] == 0) & (before > 30) & (before < 5000)
        sky = WCS(flt["SCI"].header, flt).all_pix2world(columns, rows, 0)
        x, y = np.rint(WCS(drz["SCI"].header).all_world2pix(*sky, 0)).astype(int)
        after = drz["SCI"].data[y, x] * drz[0].header["EXPTIME"]
    good &= np.isfinite(after)
    assert good.sum() > 10000
    assert after[good].sum() == pytest.approx(before[good].sum(), rel=0.05)
    assert np.corrcoef(before[good], after[good])[0, 1] > 0.85


def test_previews_can_be_looked_at(hrc: Desk) -> None:
    previews = hrc.folder(HRC) / "previews"
    for suffix in ("raw", "flt", "drz"):
        with fits.open(hrc.folder(HRC) / f"{HRC}_{suffix}.fits") as hdus:
            rows, columns = hdus["SCI"].data.shape
        with Image.open(previews / f"{HRC}_{suffix}.jpg") as full:
            assert full.size == (columns, rows)
            assert np.asarray(full.convert("L")).std() > 5
        with Image.open(previews / f"{HRC}_{suffix}_thumb.jpg") as thumb:
            assert max(thumb.size) == 128


def test_report_shows_both_programs(hrc: Desk) -> None:
    page = html.unescape((hrc.folder(HRC) / "report.html").read_text())
    for word in ("calacs.e", "runastrodriz", f"{HRC}_drz.fits", "zzsynth1j_sat.fits", CONTEXT):
        assert word in page


@needs_calacs
def test_stand_in_makes_what_calacs_makes(hrc_data: Hrc, crds_rules: dict[str, str], tmp_path: Path) -> None:
    env = {**crds_rules, "jref": f"{hrc_data.references}/"}
    stand_in = [sys.executable, str(REPOSITORY / "tests/fakes/hrc.py")]
    for name, command in {"real": ["calacs.e"], "fake": stand_in}.items():
        (tmp_path / name).mkdir()
        shutil.copy(hrc_data.folder / "chosen" / f"{HRC}_raw.fits", tmp_path / name)
        subprocess.run([*command, f"{HRC}_raw.fits"], cwd=tmp_path / name, env=env, check=True, capture_output=True)
    with (
        fits.open(tmp_path / "real" / f"{HRC}_flt.fits") as real,
        fits.open(tmp_path / "fake" / f"{HRC}_flt.fits") as fake,
    ):
        assert [h.name for h in real] == [h.name for h in fake]
        difference = np.abs(real["SCI"].data - fake["SCI"].data)
        assert difference.max() < 0.2 * np.median(real["ERR"].data)
        assert np.median(np.abs(real["ERR"].data / fake["ERR"].data - 1)) < 0.01
        assert (real["DQ"].data != fake["DQ"].data).sum() <= 6  # the bad pixels of the stand-in table
        for keyword in ("CRPIX1", "CRPIX2", "CRVAL1", "CD1_1", "LTV1", "LTV2", "BUNIT", "PHOTFLAM", "PHOTPLAM"):
            assert real["SCI"].header[keyword] == fake["SCI"].header[keyword], keyword
        switches = [k for k in real[0].header if k.endswith("CORR")]
        assert {k: real[0].header[k] for k in switches} == {k: fake[0].header[k] for k in switches}


# --- associations -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def dithered(shelf: Shelf, hrc_data: Hrc, hrc_environment: dict[str, str]) -> Desk:
    """Two exposures that are offset by a dither."""
    return shelf.calibrated("dithered", "j8bt05020", hrc_environment, hrc_data.dithered)


@pytest.fixture(scope="session")
def split(shelf: Shelf, hrc_data: Hrc, hrc_environment: dict[str, str]) -> Desk:
    """Two exposures that were split against cosmic rays."""
    return shelf.calibrated("split", "j8bt09040", hrc_environment, hrc_data.split)


@pytest.mark.slow
def test_dither_association(dithered: Desk) -> None:
    members = ("j8bt05njq", "j8bt05nkq")
    products = {"j8bt05020.tra", "j8bt05020_asn.fits", "j8bt05021_drz.fits"}
    for member in members:
        products |= {f"{member}.tra", *(f"{member}_{s}.fits" for s in ("raw", "flt", "flt_hlet"))}
    seen = pictures("j8bt05021_drz", *(f"{m}_{s}" for m in members for s in ("raw", "flt")))
    assert dithered.tree("j8bt05020") == products | seen | OURS
    header = fits.getheader(dithered.folder("j8bt05020") / "j8bt05021_drz.fits")
    assert [header["D001DATA"], header["D002DATA"]] == [f"{m}_flt.fits[sci,1]" for m in members]
    assert header["EXPTIME"] == 120.0
    assert dithered.manifest("j8bt05020")["kind"] == "association"


@pytest.mark.slow
def test_dithered_stars_fall_on_each_other(dithered: Desk, tell: Callable[[str], None]) -> None:
    folder = dithered.folder("j8bt05020")
    for member in ("j8bt05njq", "j8bt05nkq"):
        common, each = offset_of_stars(folder / f"{member}_flt.fits", folder / "j8bt05021_drz.fits")
        tell(f"stars of j8bt05021_drz against {member}_flt: offset {common:.3f} pixels, each {each:.3f}")
        assert common < 0.3  # the dither was of whole pixels, before the distortion was known
        assert each < 0.5


@pytest.mark.slow
def test_association_split_against_cosmic_rays(split: Desk) -> None:
    members = ("j8bt09jcq", "j8bt09jdq")
    products = {"j8bt09040.tra", "j8bt09040_asn.fits", "j8bt09041.tra", "j8bt09041_crj.fits", "j8bt09041_drz.fits"}
    for member in members:
        products |= {f"{member}.tra", *(f"{member}_{s}.fits" for s in ("raw", "flt", "flt_hlet"))}
    seen = pictures("j8bt09041_crj", "j8bt09041_drz", *(f"{m}_{s}" for m in members for s in ("raw", "flt")))
    assert split.tree("j8bt09040") == products | seen | OURS
    folder = split.folder("j8bt09040")
    assert fits.getheader(folder / "j8bt09041_crj.fits")["EXPTIME"] == 120.0
    header = fits.getheader(folder / "j8bt09041_drz.fits")
    assert [header["D001DATA"], header["D002DATA"]] == [f"{m}_flt.fits[sci,1]" for m in members]


@pytest.mark.slow
def test_cosmic_rays_are_gone(split: Desk) -> None:
    folder = split.folder("j8bt09040")
    one, two = (fits.getdata(folder / f"{m}_flt.fits", "SCI") for m in ("j8bt09jcq", "j8bt09jdq"))
    both = fits.getdata(folder / "j8bt09041_crj.fits", "SCI")
    hit = one - two > 5000  # the rays are of 11,000 electrons
    assert hit.sum() > 150
    assert np.median(np.abs(both[hit] - 2 * two[hit])) < 0.05 * np.median(one[hit])


@pytest.mark.slow
def test_reference_named_in_the_raw_file_needs_no_override(split: Desk) -> None:
    satufile = next(r for r in split.manifest("j8bt09040")["references"] if r["type"] == "SATUFILE")
    assert (satufile["name"], satufile["override"]) == ("zzsynth1j_sat.fits", False)


def test_dry_run_lists_both_programs_in_order(hrc_desk: Desk, hrc_data: Hrc) -> None:
    options = hrc_data.dithered(hrc_desk.inputs)
    result = hrc_desk.process("j8bt05020", *options, "--dry-run", "--json")
    assert result.code == 0, result.stderr
    plan = json.loads(result.stdout.splitlines()[-1])["plan"]
    assert plan["programs"] == [["calacs.e", "j8bt05020_asn.fits"], ["runastrodriz", "-n", "1", "j8bt05020_asn.fits"]]
    assert plan["products"] == ["j8bt05021_drz.fits", "j8bt05njq_flt.fits", "j8bt05nkq_flt.fits"]
    assert [p.name for p in hrc_desk.home.iterdir()] == ["IN"]


def test_missing_member(hrc_desk: Desk, hrc_data: Hrc) -> None:
    options = hrc_data.dithered(hrc_desk.inputs)
    (hrc_desk.inputs / "j8bt05nkq_raw.fits").unlink()
    hrc_desk.assert_failed(hrc_desk.process("j8bt05020", *options), "j8bt05020", 21, "j8bt05nkq")


# --- what runastrodriz must not be trusted with ------------------------------------------------------------------


@pytest.mark.slow
def test_exposure_that_is_not_to_be_drizzled_and_its_neighbour(hrc_desk: Desk, hrc_data: Hrc) -> None:
    """D5: there are two raw files of one visit; D8: DRIZCORR says that no drz is a success."""
    hrc_data.give(hrc_desk.inputs)
    make_hrc(hrc_desk.inputs / "j8bt05nkq_raw.fits", hrc_data.raw, DRIZCORR="OMIT")
    before = checksum(hrc_desk.inputs / f"{HRC}_raw.fits")
    result = hrc_desk.process("j8bt05nkq", *hrc_data.override)
    assert result.code == 0, result.stderr
    products = {"j8bt05nkq.tra", "j8bt05nkq_flt.fits", "j8bt05nkq_raw.fits"}
    assert hrc_desk.tree("j8bt05nkq") == products | pictures("j8bt05nkq_flt", "j8bt05nkq_raw") | OURS
    assert hrc_desk.states("j8bt05nkq") == ["datasets-processed"]
    assert programs_run(hrc_desk, "j8bt05nkq") == ["calacs.e"]
    assert checksum(hrc_desk.inputs / f"{HRC}_raw.fits") == before
    assert not hrc_desk.folder(HRC).exists()


def test_d8_raw_file_is_never_drizzled(hrc_desk: Desk, hrc_data: Hrc) -> None:
    """Nothing is to be calibrated, but DRIZCORR asks for a drz: runastrodriz would make one of the raw image."""
    steps = ("DQICORR", "BLEVCORR", "BIASCORR", "DARKCORR", "FLATCORR", "PHOTCORR")
    make_hrc(hrc_desk.inputs / f"{HRC}_raw.fits", hrc_data.raw, **dict.fromkeys(steps, "OMIT"))
    result = hrc_desk.process(HRC)
    assert result.code == 0, result.stderr
    assert {n for n in hrc_desk.tree(HRC) if n.endswith(".fits")} == {f"{HRC}_raw.fits"}
    assert "nothing was calibrated" in hrc_desk.status(HRC)["reason"]
    assert programs_run(hrc_desk, HRC) == ["calacs.e"]


def test_d8_calacs_that_writes_nothing_stops_the_run(hrc_desk: Desk, hrc_data: Hrc) -> None:
    options = hrc_data.give(hrc_desk.inputs)
    path = f"{shim(hrc_desk.home / 'bin', 'calacs.e', 'exit 0')}{os.pathsep}{hrc_desk.env['PATH']}"
    result = hrc_desk.process(HRC, *options, env={"PATH": path})
    hrc_desk.assert_failed(result, HRC, 23, f"did not write {HRC}_flt.fits")
    assert programs_run(hrc_desk, HRC) == ["calacs.e"]


@pytest.mark.slow
def test_table_that_leaves_the_drizzled_image_in_pieces(hrc_desk: Desk, hrc_data: Hrc) -> None:
    """Without BUILD, runastrodriz writes _drz_sci, _drz_wht and _drz_ctx, and ends with 0."""
    options = hrc_data.give(hrc_desk.inputs)
    table = hrc_desk.home / "pieces_mdz.fits"
    with fits.open(hrc_data.references / "ub215378j_mdz.fits") as hdus:
        hdus[1].data["build"] = False
        hdus.writeto(table)
    result = hrc_desk.process(HRC, *options, "--override", f"MDRIZTAB={table}")
    hrc_desk.assert_failed(result, HRC, 24, f"runastrodriz did not write {HRC}_drz.fits")


@pytest.mark.slow
def test_drizzling_stopped_by_a_signal(hrc_desk: Desk, hrc_data: Hrc) -> None:
    options = hrc_data.give(hrc_desk.inputs)
    process = hrc_desk.start(HRC, "file:IN", "file:OUT", *options)
    child_named(process, "runastrodriz").kill()
    stdout, stderr = process.communicate(timeout=60)
    assert process.returncode == 24, stdout + stderr
    assert "runastrodriz: killed by SIGKILL" in stderr
    assert hrc_desk.status(HRC)["state"] == "error"
    assert hrc_desk.tree(HRC) == LOGS
    assert_tidy(hrc_desk.home)


# --- failures ---------------------------------------------------------------------------------------------------


def test_reference_that_the_rules_do_not_know(hrc_desk: Desk, hrc_data: Hrc) -> None:
    hrc_data.give(hrc_desk.inputs)
    hrc_desk.assert_failed(hrc_desk.process(HRC), HRC, 23, "calacs.e", "exit status 2", "SATUFILE")
    assert "SATUFILE" in (hrc_desk.folder(HRC) / "logs" / "process.txt").read_text()


def test_missing_reference(hrc_desk: Desk, hrc_data: Hrc, tmp_path: Path) -> None:
    options = hrc_data.give(hrc_desk.inputs)
    there = tmp_path / "references"
    shutil.copytree(hrc_data.references, there, copy_function=os.symlink)
    (there / "n3o1059hj_drk.fits").unlink()
    result = hrc_desk.process(HRC, *options, env={"jref": str(there)})
    hrc_desk.assert_failed(result, HRC, 27, "DARKFILE", "n3o1059hj_drk.fits")


def test_reference_that_no_program_reads_may_be_missing(hrc: Desk, hrc_data: Hrc) -> None:
    raw = fits.getheader(hrc.folder(HRC) / f"{HRC}_raw.fits")
    assert raw["DGEOFILE"] == "jref$o8u2214mj_dxy.fits"
    assert not (hrc_data.references / "o8u2214mj_dxy.fits").exists()


@needs_calacs
def test_calacs_out_of_memory(hrc_desk: Desk, hrc_data: Hrc) -> None:
    options = hrc_data.give(hrc_desk.inputs)
    real = shutil.which("calacs.e", path=hrc_desk.env["PATH"])
    limited = shim(hrc_desk.home / "bin", "calacs.e", f"ulimit -v 45000; exec '{real}' \"$@\"")
    result = hrc_desk.process(HRC, *options, env={"PATH": f"{limited}{os.pathsep}{hrc_desk.env['PATH']}"})
    hrc_desk.assert_failed(result, HRC, 31, "calacs.e ran out of memory")


def test_calacs_is_not_installed(hrc_desk: Desk, hrc_data: Hrc, crds_rules: dict[str, str], tmp_path: Path) -> None:
    options = hrc_data.give(hrc_desk.inputs)
    env = {"PATH": without_hstcal(crds_rules, tmp_path / "links")["PATH"]}
    result = hrc_desk.process(HRC, *options, env=env)
    hrc_desk.assert_failed(result, HRC, 23, "calacs.e is not installed", "HSTCAL")
    assert programs_run(hrc_desk, HRC) == []


def test_cs0_is_not_installed(stis_desk: Desk, shared_data: Path, crds_rules: dict[str, str], tmp_path: Path) -> None:
    unpacked(shared_data / "stis-acq" / f"{STIS}_raw.fits.gz", stis_desk.inputs / f"{STIS}_raw.fits")
    env = {"PATH": without_hstcal(crds_rules, tmp_path / "links")["PATH"]}
    stis_desk.assert_failed(stis_desk.process(STIS, env=env), STIS, 23, "cs0.e is not installed", "HSTCAL")


def test_doctor_names_what_is_not_installed(crds_rules: dict[str, str], tmp_path: Path) -> None:
    env = without_hstcal(crds_rules, tmp_path / "links")
    done = subprocess.run(
        [SCRIPTS / "caldp", "doctor", "--json"], capture_output=True, text=True, env=env, cwd=tmp_path
    )
    found = {f["what"].removeprefix("program "): f for f in json.loads(done.stdout)}
    for name in ("calacs.e", "calwf3.e", "cs0.e"):
        assert not found[name]["ok"]
        assert "hstcal" in found[name]["remedy"].lower()
    for name in ("runastrodriz", "runsinglehap", "runmultihap"):
        assert found[name]["ok"]


# --- STIS -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def stis_references(shelf: Shelf, shared_data: Path, crds_rules: dict[str, str]) -> Path:
    """Stand-ins for the references that CRDS chooses for the acquisition; what no step reads is an empty file."""
    references = shelf.home / "stis-data" / "references"
    with shelf.once("stis-data") as folder:
        if folder is not None:
            raw = unpacked(shared_data / "stis-acq" / f"{STIS}_raw.fits.gz", folder / f"{STIS}_raw.fits")
            choose_references(folder, [raw], crds_rules)
            make = [sys.executable, str(shared_data / "stis-acq" / "make_refs_stis.py"), str(references), str(raw)]
            subprocess.run(make, check=True, capture_output=True)
            for value in fits.getheader(raw).values():
                name = str(value).partition("oref$")[2].strip()
                if name and not (references / name).exists():
                    fits.HDUList([fits.PrimaryHDU()]).writeto(references / name)
    return references


@pytest.fixture
def stis_desk(tmp_path: Path, crds_rules: dict[str, str], stis_references: Path) -> Desk:
    """An empty directory to work on STIS data in."""
    (tmp_path / "IN").mkdir()
    return Desk(tmp_path, {**crds_rules, "oref": str(stis_references)})


@needs_cs0
def test_stis_acquisition_as_delivered_is_processed_without_products(stis_desk: Desk, shared_data: Path) -> None:
    for name in (f"{STIS}_raw.fits", f"{STIS}_spt.fits"):
        unpacked(shared_data / "stis-acq" / f"{name}.gz", stis_desk.inputs / name)
    result = stis_desk.process(STIS)
    assert result.code == 0, result.stderr
    assert stis_desk.tree(STIS) == {f"{STIS}_raw.fits", f"{STIS}_spt.fits"} | OURS
    assert stis_desk.states(STIS) == ["datasets-processed"]
    assert "nothing was calibrated" in stis_desk.status(STIS)["reason"]
    assert programs_run(stis_desk, STIS) == ["cs0.e"]


@needs_cs0
def test_stis_acquisition_with_steps_and_its_neighbour(stis_desk: Desk, shared_data: Path) -> None:
    """D6: of two names cs0.e writes one exposure's pixels under the other's name; here it sees one."""
    raw = unpacked(shared_data / "stis-acq" / f"{STIS}_raw.fits.gz", stis_desk.inputs / f"{STIS}_raw.fits")
    with fits.open(raw, mode="update") as hdus:
        hdus[0].header.update(DQICORR="PERFORM", DARKCORR="PERFORM", FLATCORR="PERFORM")
    neighbour = stis_desk.inputs / "ocmv0lw7q_raw.fits"
    shutil.copy(raw, neighbour)
    with fits.open(neighbour, mode="update") as hdus:
        hdus[0].header["ROOTNAME"] = "ocmv0lw7q"
        hdus["SCI", 1].data += 1000
    before = checksum(neighbour)
    result = stis_desk.process(STIS)
    assert result.code == 0, result.stderr
    products = {f"{STIS}_raw.fits", f"{STIS}_flt.fits"}
    assert stis_desk.tree(STIS) == products | pictures(f"{STIS}_flt") | OURS
    with fits.open(stis_desk.folder(STIS) / f"{STIS}_flt.fits") as flt, fits.open(raw) as was:
        assert flt[0].header["ROOTNAME"].strip() == STIS
        assert flt[0].header["FLATCORR"] == "COMPLETE"
        assert flt[0].header["CRDS_CTX"] == CONTEXT
        for number in (1, 2, 3):
            counts, made = was["SCI", number].data, flt["SCI", number].data
            assert made.shape == counts.shape
            assert np.median(np.abs(made - counts)) < 1  # unity flat, a small dark
    assert checksum(neighbour) == before
    assert not stis_desk.folder("ocmv0lw7q").exists()
    assert stis_desk.manifest(STIS)["versions"]["cs0.e"]


@needs_cs0
def test_stis_missing_reference(stis_desk: Desk, shared_data: Path, stis_references: Path, tmp_path: Path) -> None:
    unpacked(shared_data / "stis-acq" / f"{STIS}_raw.fits.gz", stis_desk.inputs / f"{STIS}_raw.fits")
    there = tmp_path / "references"
    shutil.copytree(stis_references, there, copy_function=os.symlink)
    (there / "16j1600do_ccd.fits").unlink()
    result = stis_desk.process(STIS, env={"oref": str(there)})
    stis_desk.assert_failed(result, STIS, 27, "CCDTAB", "16j1600do_ccd.fits")
