"""Calibrate: what a program claims is worth nothing until its products prove it."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from astropy.io import fits

import caldp
from caldp import calibrate as calibration
from caldp.calibrate import Products, calibrate, commands, expected
from caldp.errors import CaldpError, OutputError, ProgramMemoryError, Stage1Error, Stage2Error
from caldp.inputs import Inputs, fetch
from caldp.programs import ProgramRun
from caldp.references import References
from caldp.run import Run
from tests.conftest import RunFactory
from tests.fakes import direct, programs
from tests.fakes.cos import write_asn, write_raw, write_support

EXPOSURE = ["ldfd01vnq_corrtag_a.fits", "ldfd01vnq_counts_a.fits", "ldfd01vnq_flt_a.fits", "ldfd01vnq_lampflash.fits",
            "ldfd01vnq_x1d.fits"]  # fmt: skip
SECOND = [name.replace("vnq", "vpq") for name in EXPOSURE]
SUMS = ["ldfd01010_x1dsum.fits", "ldfd01010_x1dsum3.fits"]

Calibrated = Callable[..., tuple[Run, Products]]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "raw"
    path.mkdir()
    return path


@pytest.fixture
def calibrated(make_run: RunFactory, folder: Path, tmp_path: Path) -> Calibrated:
    """Calibrate what is in the folder with a fake calcos that behaves in a certain way."""

    def calibrated(
        behaviour: str = "ok", products: list[str] = EXPOSURE, dataset: str = "ldfd01vnq", **settings: Any
    ) -> tuple[Run, Products]:
        run = make_run(
            dataset,
            settings=settings,
            FAKE_CALCOS=behaviour,
            FAKE_PRODUCTS=" ".join(products),
            FAKE_ARGUMENTS=str(tmp_path / "arguments"),
        )
        references = References("hst_0001.pmap", "14", (), run.workspace.references)
        return run, calibrate(run, fetch(run, f"file:{folder}"), references)

    return calibrated


@pytest.fixture
def exposure(folder: Path) -> None:
    write_raw(folder, "ldfd01vnq")
    write_support(folder, "ldfd01vnq")


@pytest.fixture
def association(folder: Path) -> None:
    write_asn(
        folder,
        "ldfd01010",
        ("ldfd01vnq", "EXP-FP", True),
        ("ldfd01vpq", "EXP-FP", True),
        ("ldfd01010", "PROD-FP", True),
    )
    write_raw(folder, "ldfd01vnq")
    write_raw(folder, "ldfd01vpq")


def names(files: tuple[Path, ...]) -> list[str]:
    return [f.name for f in files]


def failed(calibrated: Calibrated, error: type[CaldpError], code: int, words: list[str], *args: Any) -> None:
    with pytest.raises(error) as caught:
        calibrated(*args)
    assert caught.value.exit_code == code
    assert type(caught.value) is error
    for word in ["ldfd01", *words]:
        assert word in str(caught.value), str(caught.value)
    assert "\n" not in str(caught.value)
    assert caught.value.remedy


# ---- success


@pytest.mark.usefixtures("exposure")
def test_an_exposure(calibrated: Calibrated, tmp_path: Path) -> None:
    run, products = calibrated()
    assert names(products.calibrated) == EXPOSURE
    assert names(products.files) == sorted([*EXPOSURE, "ldfd01vnq_rawtag_a.fits", "ldfd01vnq_spt.fits"])
    assert names(products.previewed) == ["ldfd01vnq_x1d.fits"]
    assert (products.reason, products.versions) == ("", {"calcos": "3.6.2"})
    cwd, *argv, lref = (tmp_path / "arguments").read_text().splitlines()
    assert argv == ["-o", str(run.workspace.products), "ldfd01vnq_rawtag_a.fits"]
    assert (cwd, lref) == (str(run.workspace.inputs), f"lref={run.workspace.references}/")
    assert [p.name for p in run.telemetry.stages[-1].programs] == ["calcos"]
    assert run.telemetry.stages[-1].bytes_out == sum(f.stat().st_size for f in products.calibrated)


@pytest.mark.usefixtures("association")
def test_an_association_is_named_once(calibrated: Calibrated, tmp_path: Path) -> None:
    run, products = calibrated("ok", [*EXPOSURE, *SECOND, *SUMS], "ldfd01010")
    assert names(products.calibrated) == sorted([*EXPOSURE, *SECOND, *SUMS])
    assert "ldfd01010_asn.fits" in names(products.files)
    assert names(products.previewed) == sorted([*SUMS, "ldfd01vnq_x1d.fits", "ldfd01vpq_x1d.fits"])
    assert (tmp_path / "arguments").read_text().splitlines()[3] == "ldfd01010_asn.fits"
    assert len(run.telemetry.stages[-1].programs) == 1


def test_d5_two_segments_are_one_call(calibrated: Calibrated, folder: Path, tmp_path: Path) -> None:
    write_raw(folder, "ldfd01vnq", "rawtag_a")
    write_raw(folder, "ldfd01vnq", "rawtag_b")
    both = [*EXPOSURE, *(n.replace("_a.", "_b.") for n in EXPOSURE if "_a." in n)]
    run, products = calibrated("ok", both)
    assert names(products.calibrated) == sorted(both)
    assert (tmp_path / "arguments").read_text().splitlines()[3] == "ldfd01vnq_rawtag_a.fits"
    assert len(run.telemetry.stages[-1].programs) == 1


def test_an_empty_segment_yields_nothing_and_may_be_complained_of(calibrated: Calibrated, folder: Path) -> None:
    write_raw(folder, "ldfd01vnq", "rawtag_a", events=0)
    write_raw(folder, "ldfd01vnq", "rawtag_b")
    products = [n.replace("_a.", "_b.") for n in EXPOSURE]
    assert names(calibrated("no-data", products)[1].calibrated) == products


@pytest.mark.usefixtures("exposure")
def test_versions_and_seed_are_written_into_the_raw_headers(calibrated: Calibrated) -> None:
    _, products = calibrated(system_version="sys-1", aws_dp_version="dp-2", aws_system_version="aws-3")
    (raw,) = [f for f in products.files if "rawtag" in f.name]
    header = fits.getheader(raw)
    keys = ("CALDPVER", "CSYS_VER", "AWSDPVER", "AWSYSVER", "RANDSEED")
    assert [header[k] for k in keys] == [caldp.__version__, "sys-1", "dp-2", "aws-3", 1]


@pytest.mark.usefixtures("exposure")
def test_d9_output_that_is_not_text(calibrated: Calibrated) -> None:
    run, products = calibrated("bytes")
    assert len(products.calibrated) == len(EXPOSURE)
    assert "calcos: caf\ufffd \ufffd\ufffd" in (run.workspace.logs / "process.txt").read_text()


@pytest.mark.usefixtures("exposure")
def test_lamp_flashes_without_data_are_no_failure(calibrated: Calibrated) -> None:
    assert calibrated("no-lampflash-data")[1].reason == ""


@pytest.mark.parametrize(
    ("behaviour", "header", "suffix", "reason"),
    [
        ("exit-5", {"EXPTYPE": "ACQ/PEAKD"}, "rawacq", "calcos makes no products of ACQ/PEAKD exposures like this"),
        (
            *("nothing", {"FLATCORR": "OMIT", "WAVECORR": "OMIT", "X1DCORR": "OMIT"}, "rawtag_a"),
            "the headers ask calcos for no calibration step",
        ),
    ],
)
def test_d8_nothing_to_calibrate_is_said(
    calibrated: Calibrated, folder: Path, behaviour: str, header: dict[str, Any], suffix: str, reason: str
) -> None:
    write_raw(folder, "ldfd01vnq", suffix, **header)
    run, products = calibrated(behaviour, [])
    assert products.reason == f"nothing was calibrated: {reason}"
    assert f"ldfd01vnq_{suffix}.fits" in names(products.files)
    assert (products.calibrated, products.previewed) == ((), ())
    assert run.telemetry.warnings == [products.reason]


def test_files_of_other_datasets_are_not_delivered(calibrated: Calibrated, folder: Path) -> None:
    write_raw(folder, "ldfd01vnq")
    _, products = calibrated("ok", [*EXPOSURE, "ldfd01vpq_x1d.fits", "notes.txt", "ldfd01vnq_extra.fits"])
    assert "ldfd01vpq_x1d.fits" not in names(products.files)
    assert "notes.txt" not in names(products.files)
    assert "ldfd01vnq_extra.fits" in names(products.calibrated)


# ---- failure


@pytest.mark.usefixtures("exposure")
@pytest.mark.parametrize(
    ("behaviour", "error", "code", "words"),
    [
        ("nothing", Stage1Error, 23, ["did not write", "(5 of 5 products are missing)", "and others"]),
        ("no-data", Stage1Error, 23, ["exit status 0", "table of events is empty", "No data in ldfd01vnq"]),
        ("no-data-early", Stage1Error, 23, ["table of events is empty"]),
        ("no-files", Stage1Error, 23, ["raw data of a member were not found", "ldfd01vpq"]),
        ("exit-5", Stage1Error, 23, ["exit status 5"]),
        ("exit-40", Stage1Error, 23, ["exit status 40"]),
        ("reference", Stage1Error, 23, ["exit status 1", "missing reference file(s)", "fluxtab = /refs/x_phot.fits"]),
        ("kill", Stage1Error, 23, ["killed by SIGKILL"]),
        ("segv", Stage1Error, 23, ["killed by SIGSEGV"]),
        ("memory", ProgramMemoryError, 31, ["out of memory", "exit status 1"]),
        ("allocate", ProgramMemoryError, 31, ["out of memory"]),
        ("full-astropy", OutputError, 29, ["no space left"]),
        ("full", OutputError, 29, ["no space left", "CALDP_HOME"]),
        ("truncated", Stage1Error, 23, ["ldfd01vnq_corrtag_a.fits", "not whole FITS"]),
    ],
)
def test_d1_d8_d17_failures_are_named(
    calibrated: Calibrated, behaviour: str, error: type[CaldpError], code: int, words: list[str]
) -> None:
    failed(calibrated, error, code, words, behaviour)


@pytest.mark.parametrize(
    ("tail", "said"),
    [
        (("FLUXTAB= lref$x_phot.fits", "", "------- ----", "   12   34"), " (FLUXTAB= lref$x_phot.fits)"),
        (("------- ----",), ""),
        ((), ""),
    ],
)
def test_only_lines_with_words_are_quoted(tail: tuple[str, ...], said: str) -> None:
    assert calibration._last_words(ProgramRun(("calcos",), -9, 1.0, 1.0, 0, tail=tail)) == said


@pytest.mark.usefixtures("exposure")
@pytest.mark.parametrize("missing", EXPOSURE)
def test_d8_each_expected_product_is_needed(calibrated: Calibrated, missing: str) -> None:
    rest = [name for name in EXPOSURE if name != missing]
    failed(calibrated, Stage1Error, 23, [f"did not write {missing} (1 of 5"], "ok", rest)


@pytest.mark.usefixtures("association")
@pytest.mark.parametrize("missing", ["ldfd01vpq_x1d.fits", "ldfd01010_x1dsum.fits", "ldfd01010_x1dsum3.fits"])
def test_d8_a_partial_association_is_no_success(calibrated: Calibrated, missing: str) -> None:
    rest = [name for name in [*EXPOSURE, *SECOND, *SUMS] if name != missing]
    failed(calibrated, Stage1Error, 23, [f"did not write {missing}"], "ok", rest, "ldfd01010")


def test_d1_an_uncalibrated_exposure_still_fails_when_calcos_is_killed(calibrated: Calibrated, folder: Path) -> None:
    write_raw(folder, "ldfd01vnq", "rawacq", EXPTYPE="ACQ/PEAKD")
    failed(calibrated, Stage1Error, 23, ["killed by SIGKILL"], "kill", [])


@pytest.mark.usefixtures("exposure")
def test_calcos_is_not_installed(make_run: RunFactory, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = make_run(settings={"environment": {"PATH": "/nowhere"}})
    monkeypatch.setattr("sysconfig.get_path", lambda name: "/nowhere")
    with pytest.raises(Stage1Error, match="calcos is not installed.*pip install calcos"):
        calibrate(run, fetch(run, f"file:{folder}"), References("", "", (), run.workspace.references))


@pytest.mark.usefixtures("exposure")
def test_calcos_that_cannot_be_started(make_run: RunFactory, folder: Path, tmp_path: Path) -> None:
    broken = tmp_path / "bin" / "calcos"
    broken.parent.mkdir()
    broken.write_text("#!/no/such/interpreter\n")
    broken.chmod(0o755)
    run = make_run(PATH=f"{broken.parent}{os.pathsep}{os.environ['PATH']}")
    with pytest.raises(Stage1Error, match="calcos cannot be started"):
        calibrate(run, fetch(run, f"file:{folder}"), References("", "", (), run.workspace.references))


@pytest.mark.usefixtures("exposure")
def test_a_product_that_is_a_folder_is_missing(calibrated: Calibrated, make_run: RunFactory, folder: Path) -> None:
    run = make_run(FAKE_CALCOS="ok", FAKE_PRODUCTS=" ".join(EXPOSURE[:-1]))
    (run.workspace.products / EXPOSURE[-1]).mkdir()
    with pytest.raises(Stage1Error, match=r"did not write ldfd01vnq_x1d\.fits"):
        calibrate(run, fetch(run, f"file:{folder}"), References("", "", (), run.workspace.references))


# ---- planning


@pytest.mark.usefixtures("association")
def test_commands_and_expectations(make_run: RunFactory, folder: Path) -> None:
    run = make_run("ldfd01010")
    inputs = fetch(run, f"file:{folder}")
    assert commands(run, inputs) == [["calcos", "-o", str(run.workspace.products), "ldfd01010_asn.fits"]]
    assert sorted(expected(run, inputs)) == sorted([*EXPOSURE, *SECOND, *SUMS])


def test_an_association_of_acquisitions_expects_nothing(make_run: RunFactory, folder: Path) -> None:
    write_asn(folder, "ldfd01010", ("ldfd01vnq", "EXP-FP", True), ("ldfd01010", "PROD-FP", True))
    write_raw(folder, "ldfd01vnq", "rawacq", EXPTYPE="ACQ/PEAKXD")
    run = make_run("ldfd01010")
    inputs: Inputs = fetch(run, f"file:{folder}")
    assert expected(run, inputs) == []


def test_the_fake_is_executable() -> None:
    assert os.access(Path(__file__).parents[1] / "fakes" / "bin" / "calcos", os.X_OK)


# ---- several programs


@pytest.fixture
def direct_run(
    make_run: RunFactory, folder: Path, tmp_path: Path, clean_environment: pytest.MonkeyPatch
) -> Callable[..., tuple[Run, Inputs, Callable[[], Products]]]:
    """Make a run of ACS or WFC3 data with fake programs."""
    found = programs.install(tmp_path / "bin")
    clean_environment.setenv("PATH", f"{found}{os.pathsep}{os.environ['PATH']}")

    def direct_run(dataset: str, **environ: str) -> tuple[Run, Inputs, Callable[[], Products]]:
        switches = dict.fromkeys(("ASTROMETRY_COMPUTE_APOSTERIORI", "ASTROMETRY_APPLY_APRIORI"), "off")
        run = make_run(dataset, PATH=os.environ["PATH"], **switches, **environ)
        inputs = fetch(run, f"file:{folder}")
        return run, inputs, lambda: calibrate(run, inputs, References("", "", (), run.workspace.references))

    return direct_run


DirectRun = Callable[..., tuple[Run, Inputs, Callable[[], Products]]]


def test_plan_of_a_set(direct_run: DirectRun, folder: Path) -> None:
    members = ("j8bt09jcq", "j8bt09jdq")
    rows = [(root, "EXP-CRJ", True) for root in members]
    write_asn(folder, "j8bt09040", *rows, ("j8bt09041", "PROD-CRJ", True))
    for root in members:
        direct.write_direct(folder, root)
    run, inputs, go = direct_run("j8bt09040")
    assert commands(run, inputs) == [
        ["calacs.e", "j8bt09040_asn.fits"],
        ["runastrodriz", "-n", "1", "j8bt09040_asn.fits"],
    ]
    wanted = ["j8bt09jcq_flt.fits", "j8bt09jdq_flt.fits", "j8bt09041_crj.fits", "j8bt09041_drz.fits"]
    assert expected(run, inputs) == wanted
    products = go()
    assert {*wanted, "j8bt09jcq_flt_hlet.fits", "j8bt09jdq_flt_hlet.fits"} == set(names(products.calibrated))
    trailers = {name for name in names(products.files) if name.endswith(".tra")}
    assert trailers == {"j8bt09040.tra", "j8bt09041.tra", "j8bt09jcq.tra", "j8bt09jdq.tra"}
    assert "j8bt09040_pydriz_copy.log" not in names(products.files)
    previewed = {name.removesuffix(".fits") for name in names(products.previewed)}
    assert previewed == {"j8bt09041_crj", "j8bt09041_drz"} | {f"{r}_{s}" for r in members for s in ("raw", "flt")}
    assert [p.name for p in run.telemetry.stages[-1].programs] == ["calacs.e", "runastrodriz"]


def test_a_program_that_the_headers_do_not_ask_for_is_not_planned(direct_run: DirectRun, folder: Path) -> None:
    direct.write_direct(folder, "j8bt05njq", DRIZCORR="OMIT")
    run, inputs, _ = direct_run("j8bt05njq")
    assert commands(run, inputs) == [["calacs.e", "j8bt05njq_raw.fits"]]
    assert expected(run, inputs) == ["j8bt05njq_flt.fits"]


@pytest.mark.parametrize(("dataset", "kind"), [("j8bt05njq", direct.HRC), ("ibc604b9q", direct.UVIS)])
def test_the_archive_has_a_trailer_of_every_image(
    direct_run: DirectRun, folder: Path, dataset: str, kind: dict[str, Any]
) -> None:
    direct.write_direct(folder, dataset, kind | direct.OMIT)
    _, _, go = direct_run(dataset)
    products = go()
    assert names(products.files) == [f"{dataset}.tra", f"{dataset}_raw.fits"]
    assert "No calibration switch was set to PERFORM" in products.files[0].read_text()
    assert products.calibrated == ()
    assert names(products.previewed) == [f"{dataset}_raw.fits"]


def test_the_trailer_of_a_program_is_left_as_it_is(direct_run: DirectRun, folder: Path) -> None:
    direct.write_direct(folder, "j8bt05njq", DRIZCORR="OMIT")
    _, _, go = direct_run("j8bt05njq")
    (trailer,) = [f for f in go().files if f.suffix == ".tra"]
    assert trailer.read_text() == "Input    j8bt05njq_raw.fits\n"


def test_the_second_program_is_not_run_where_the_first_failed(direct_run: DirectRun, folder: Path) -> None:
    direct.write_direct(folder, "j8bt05njq")
    run, _, go = direct_run("j8bt05njq", FAKE_CALACS="exit-2")
    with pytest.raises(Stage1Error, match=r"calacs\.e: exit status 2 \(ERROR: +SATUFILE `N/A' not found"):
        go()
    assert [p.name for p in run.telemetry.stages[-1].programs] == ["calacs.e"]


def test_the_failure_of_the_second_program_is_its_own(direct_run: DirectRun, folder: Path) -> None:
    direct.write_direct(folder, "j8bt05njq")
    _, _, go = direct_run("j8bt05njq", FAKE_RUNASTRODRIZ="exit-1")
    with pytest.raises(Stage2Error, match="runastrodriz: exit status 1") as caught:
        go()
    assert caught.value.exit_code == 24
