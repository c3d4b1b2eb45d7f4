"""Successes that are none, and failures that must be told for what they are: each trap on the whole line of a run.

Every one of these was seen of the real programs, or in the pipeline that this one replaces (the numbers D1 and so on).
Fake programs show them; nothing of the line but CRDS and the drawing of previews is replaced.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from caldp import calibrate, inputs, programs
from caldp.references import References
from tests.conftest import RunFactory
from tests.fakes import direct, mosaic, smallfits, stis
from tests.fakes.bench import Bench, make_bench
from tests.fakes.cos import write_asn, write_raw
from tests.fakes.programs import install

ACS = "j8bt05njq"
UVIS = "i8bt05njq"
STIS = "ocmv0lw6q"
COS = "ldfd01vnq"
VISIT = "acs_8bt_05"
CELL = "skycell-p0047x20y18"


@pytest.fixture
def bench(tmp_path: Path, clean_environment: pytest.MonkeyPatch) -> Bench:
    clean_environment.setattr("caldp.create_preview.preview", lambda run, products: [])
    return make_bench(tmp_path, clean_environment)


def acs(folder: Path, **header: Any) -> str:
    direct.write_direct(folder, ACS, **header)
    return ACS


def uvis(folder: Path, **header: Any) -> str:
    direct.write_direct(folder, UVIS, direct.UVIS, **header)
    return UVIS


def spectrum(folder: Path, **header: Any) -> str:
    stis.write_stis(folder, STIS, **header)
    stis.write_stis(folder, STIS, "wav", EXPTYPE="WAVECAL")
    return STIS


def cos(folder: Path, **header: Any) -> str:
    write_raw(folder, COS, **header)
    return COS


def visit(folder: Path, detector: str = "HRC") -> str:
    mosaic.write_calibrated(folder, "j8bt05njq_flt.fits", detector=detector)
    mosaic.write_visit(folder, VISIT, "9019", {"j8bt05njq_flt.fits": "F555W;CLEAR2S"}, detector)
    return VISIT


def cell(folder: Path) -> str:
    name = "hst_9019_05_acs_hrc_f555w_j8bt05nj_flt.fits"
    mosaic.write_calibrated(folder, name, detector="HRC")
    mosaic.write_cell(folder, CELL, "9019", {name: "F555W;CLEAR2S"}, "HRC")
    return CELL


def pair(folder: Path, kind: str = "CRJ", product: str = "j8bt09041", **header: Any) -> str:
    """Write an association of two exposures."""
    members = ("j8bt09jcq", "j8bt09jdq")
    rows = [(root, f"EXP-{kind}", True) for root in members]
    write_asn(folder, "j8bt09040", *rows, (product, f"PROD-{kind}", True))
    for root in members:
        direct.write_direct(folder, root, **header)
    return "j8bt09040"


Maker = Callable[[Path], str]


# ---- success, so that every failure below is the trap's


@pytest.mark.parametrize("make", [acs, uvis, spectrum, cos, visit, cell, pair])
def test_without_a_trap_all_is_well(bench: Bench, make: Maker) -> None:
    dataset = make(bench.inputs)
    outcome = bench.process(dataset)
    assert (outcome.exit_code, outcome.state) == (0, "processed"), outcome.reason
    assert outcome.products
    assert not outcome.reason
    assert bench.states(dataset) == ["datasets-processed"]


# ---- how programs end


@pytest.mark.parametrize(
    ("make", "program", "name", "code"),
    [
        (acs, "calacs", "calacs.e", 23),
        (uvis, "calwf3", "calwf3.e", 23),
        (spectrum, "cs0", "cs0.e", 23),
        (cos, "calcos", "calcos", 23),
        (acs, "runastrodriz", "runastrodriz", 24),
        (visit, "runsinglehap", "runsinglehap", 40),
        (cell, "runmultihap", "runmultihap", 41),
    ],
)
@pytest.mark.parametrize(
    ("behaviour", "words"),
    [
        ("exit-40", "exit status 40"),
        ("kill-after", "killed by SIGKILL"),
        ("segv", "killed by SIGSEGV"),
        ("nothing", "did not write"),
    ],
)
def test_d1_d8_no_ending_of_a_program_passes_for_success(
    bench: Bench, make: Maker, program: str, name: str, code: int, behaviour: str, words: str
) -> None:
    dataset = make(bench.inputs)
    bench.assert_failed(dataset, bench.process(dataset, **{program: behaviour}), code, name, words)


def test_d1_missing_references_of_calwf3_are_115_without_an_error_line(bench: Bench) -> None:
    dataset = uvis(bench.inputs)
    bench.assert_failed(dataset, bench.process(dataset, calwf3="exit-115"), 23, "calwf3.e: exit status 115")


@pytest.mark.parametrize("code", [1, 15])
@pytest.mark.parametrize(("make", "program", "exit_code"), [(visit, "runsinglehap", 40), (cell, "runmultihap", 41)])
def test_d18_other_codes_of_mosaics_are_failures(
    bench: Bench, make: Maker, program: str, exit_code: int, code: int
) -> None:
    dataset = make(bench.inputs)
    outcome = bench.process(dataset, **{program: f"exit-{code}"})
    bench.assert_failed(dataset, outcome, exit_code, program, f"exit status {code}")


@pytest.mark.parametrize(
    ("make", "program", "name"),
    [
        (acs, "calacs", "calacs.e"),
        (uvis, "calwf3", "calwf3.e"),
        (spectrum, "cs0", "cs0.e"),
    ],
)
def test_d17_memory_of_hstcal_is_exit_status_2_in_words(bench: Bench, make: Maker, program: str, name: str) -> None:
    dataset = make(bench.inputs)
    outcome = bench.process(dataset, **{program: "memory"})
    bench.assert_failed(dataset, outcome, 31, name, "ran out of memory", "exit status 2")
    assert "more memory" in outcome.remedy


@pytest.mark.parametrize(
    ("make", "program"), [(acs, "runastrodriz"), (visit, "runsinglehap"), (cell, "runmultihap"), (cos, "calcos")]
)
def test_d17_memory_of_python_programs_is_an_exception(bench: Bench, make: Maker, program: str) -> None:
    dataset = make(bench.inputs)
    bench.assert_failed(dataset, bench.process(dataset, **{program: "python-memory"}), 31, program, "ran out of memory")


def test_a_full_disk_is_no_fault_of_the_data(bench: Bench) -> None:
    dataset = acs(bench.inputs)
    bench.assert_failed(dataset, bench.process(dataset, calacs="full"), 29, "calacs.e", "no space left")


@pytest.mark.parametrize(
    ("make", "program"), [(acs, "calacs"), (uvis, "calwf3"), (spectrum, "cs0"), (visit, "runsinglehap")]
)
def test_d9_output_that_is_not_text_harms_nothing(bench: Bench, make: Maker, program: str) -> None:
    dataset = make(bench.inputs)
    assert bench.process(dataset, **{program: "bytes"}).exit_code == 0
    assert "caf\ufffd \ufffd\ufffd" in (bench.folder(dataset) / "logs" / "process.txt").read_text()


# ---- exit status 0, and yet no success


@pytest.mark.parametrize(
    ("make", "program", "missing", "code"),
    [
        (acs, "calacs", f"{ACS}_flt.fits", 23),
        (uvis, "calwf3", f"{UVIS}_flc.fits", 23),
        (pair, "calacs", "j8bt09041_crj.fits", 23),
        (spectrum, "cs0", f"{STIS}_x1d.fits", 23),
        (spectrum, "cs0", f"{STIS}_x2d.fits", 23),
        (cos, "calcos", f"{COS}_lampflash.fits", 23),
        (acs, "runastrodriz", f"{ACS}_drz.fits", 24),
        (uvis, "runastrodriz", f"{UVIS}_drc.fits", 24),
        (pair, "runastrodriz", "j8bt09041_drz.fits", 24),
        (visit, "runsinglehap", "hst_9019_05_acs_hrc_f555w_j8bt05nj_drz.fits", 40),
        (cell, "runmultihap", f"hst_{CELL}_acs_hrc_f555w_all_drz.fits", 41),
    ],
)
def test_d8_each_product_must_be_there(bench: Bench, make: Maker, program: str, missing: str, code: int) -> None:
    dataset = make(bench.inputs)
    suffix = missing.removesuffix(".fits").rpartition("_")[2]
    outcome = bench.process(dataset, **{program: f"without-{suffix}"})
    bench.assert_failed(dataset, outcome, code, program, "did not write", missing)


@pytest.mark.parametrize(
    ("make", "program", "product", "code"),
    [
        (acs, "calacs", f"{ACS}_flt.fits", 23),
        (uvis, "calwf3", f"{UVIS}_flt.fits", 23),
        (spectrum, "cs0", f"{STIS}_flt.fits", 23),
        (acs, "runastrodriz", f"{ACS}_drz.fits", 24),
        (visit, "runsinglehap", "hst_9019_05_acs_hrc_f555w_j8bt05nj_drz.fits", 40),
        (cell, "runmultihap", f"hst_{CELL}_acs_hrc_f555w_all_drz.fits", 41),
    ],
)
def test_d8_a_product_that_is_cut_off_is_none(bench: Bench, make: Maker, program: str, product: str, code: int) -> None:
    dataset = make(bench.inputs)
    outcome = bench.process(dataset, **{program: "truncated"})
    bench.assert_failed(dataset, outcome, code, product, "not whole FITS")


@pytest.mark.parametrize(("make", "program", "name"), [(acs, "calacs", "calacs.e"), (uvis, "calwf3", "calwf3.e")])
def test_d8_a_temporary_file_that_is_left_means_that_it_did_not_finish(
    bench: Bench, make: Maker, program: str, name: str
) -> None:
    dataset = make(bench.inputs)
    outcome = bench.process(dataset, **{program: "tmp-left"})
    bench.assert_failed(dataset, outcome, 23, name, f"{dataset}_blv_tmp.fits", "did not finish")


def test_d8_the_partial_product_of_a_crashed_cs0_is_not_delivered(bench: Bench) -> None:
    dataset = spectrum(bench.inputs)
    bench.assert_failed(dataset, bench.process(dataset, cs0="segv-partial"), 23, "cs0.e", "SIGSEGV")


def test_d6_pixels_of_another_exposure_under_this_name(bench: Bench) -> None:
    dataset = spectrum(bench.inputs)
    outcome = bench.process(dataset, cs0="other-exposure")
    bench.assert_failed(dataset, outcome, 23, f"{STIS}_flt.fits holds ocmv0lw6z, another exposure")


def test_d8_the_raw_image_drizzled_for_want_of_a_calibrated_one(bench: Bench) -> None:
    dataset = acs(bench.inputs)
    outcome = bench.process(dataset, runastrodriz="raw")
    bench.assert_failed(dataset, outcome, 24, f"{ACS}_drz.fits", f"{ACS}_raw.fits[sci,1]", "not calibrated")


def test_d8_nothing_is_drizzled_where_nothing_is_calibrated(bench: Bench) -> None:
    dataset = acs(bench.inputs, **direct.OMIT | {"DRIZCORR": "PERFORM"})
    outcome = bench.process(dataset)
    assert (outcome.exit_code, outcome.state) == (0, "processed")
    assert outcome.reason.startswith("nothing was calibrated")
    assert [name for name, *_ in bench.commands] == ["calacs.e"]
    assert not [name for name in bench.tree(dataset) if "_drz" in name]


def test_d8_a_drizzled_image_in_three_parts(bench: Bench) -> None:
    dataset = acs(bench.inputs)
    outcome = bench.process(dataset, runastrodriz="no-build")
    bench.assert_failed(dataset, outcome, 24, "runastrodriz", "did not write", f"{ACS}_drz.fits")


def test_d8_a_manifest_without_an_image(bench: Bench) -> None:
    dataset = cell(bench.inputs)
    outcome = bench.process(dataset, runmultihap="empty")
    bench.assert_failed(dataset, outcome, 41, "runmultihap", f"{CELL}_manifest.txt", "made no image")


def test_d8_mosaics_without_catalogues(bench: Bench) -> None:
    dataset = visit(bench.inputs)
    outcome = bench.process(dataset, runsinglehap="no-catalogues")
    bench.assert_failed(dataset, outcome, 40, "runsinglehap", "exit status 1", "KeyError: 'xcentroid'")


def test_d8_a_member_that_is_not_there(bench: Bench) -> None:
    dataset = pair(bench.inputs)
    (bench.inputs / "j8bt09jdq_raw.fits").unlink()
    bench.assert_failed(dataset, bench.process(dataset), 21, "no raw data for j8bt09jdq")
    assert bench.commands == []


# ---- nothing to do, and said so


@pytest.mark.parametrize(
    ("make", "steps", "program"),
    [(acs, direct.OMIT, "calacs.e"), (uvis, direct.OMIT, "calwf3.e"), (spectrum, stis.OMIT, "cs0.e")],
)
def test_d8_all_switches_omitted(bench: Bench, make: Callable[..., str], steps: dict[str, str], program: str) -> None:
    dataset = make(bench.inputs, **steps)
    outcome = bench.process(dataset)
    assert (outcome.exit_code, outcome.state) == (0, "processed"), outcome.reason
    assert program in outcome.reason
    assert [entry["name"] for entry in bench.manifest(dataset)["products"] if "_raw" not in entry["name"]] in (
        [f"{dataset}.tra"],
        [f"{dataset}_wav.fits"],
    )
    assert bench.manifest(dataset)["warnings"] == [outcome.reason]


@pytest.mark.parametrize(("make", "program"), [(acs, "calacs"), (uvis, "calwf3"), (spectrum, "cs0")])
def test_d8_a_program_that_says_why_it_did_nothing_is_believed(bench: Bench, make: Maker, program: str) -> None:
    dataset = make(bench.inputs)
    outcome = bench.process(dataset, **{program: "not-asked"})
    assert (outcome.exit_code, outcome.state) == (0, "processed")
    assert f"{program}.e found nothing to do: 'Warning    No calibration switch was set to PERFORM.'" in outcome.reason


def test_d8_drizzling_that_is_not_asked_for(bench: Bench) -> None:
    dataset = acs(bench.inputs, DRIZCORR="OMIT")
    outcome = bench.process(dataset)
    assert (outcome.exit_code, outcome.state, outcome.reason) == (0, "processed", "")
    assert [name for name, *_ in bench.commands] == ["calacs.e"]
    assert f"{ACS}_flt.fits" in bench.tree(dataset)


def test_d8_everything_that_a_manifest_lists_is_delivered(bench: Bench) -> None:
    # Crossed filters are joined by a hyphen.
    exposures = {"j8bt05njq_flc.fits": "F555W;POL0V", "j8bt05nkq_flc.fits": "F814W;CLEAR2L"}
    for name in exposures:
        mosaic.write_calibrated(bench.inputs, name)
    mosaic.write_visit(bench.inputs, VISIT, "9019", exposures)
    assert bench.process(VISIT).exit_code == 0
    manifest = (bench.folder(VISIT) / f"{VISIT}_manifest.txt").read_text().split()
    assert "hst_9019_05_acs_wfc_f555w-pol0v_j8bt05_drc.fits" in manifest
    assert set(manifest) <= bench.tree(VISIT)


def test_d4_mosaics_of_another_visit_are_no_products_of_this_one(bench: Bench) -> None:
    mosaic.write_calibrated(bench.inputs, "j8bt06njq_flt.fits", detector="HRC")
    mosaic.write_visit(bench.inputs, VISIT, "9019", {"j8bt06njq_flt.fits": "F555W;CLEAR2S"}, "HRC")
    outcome = bench.process(VISIT)
    bench.assert_failed(VISIT, outcome, 21, "j8bt06njq_flt.fits", "no calibrated exposure of it")


@pytest.mark.parametrize("code", [55, 65])
@pytest.mark.parametrize(("make", "program"), [(visit, "runsinglehap"), (cell, "runmultihap")])
def test_55_and_65_mean_that_there_is_nothing_to_make(bench: Bench, make: Maker, program: str, code: int) -> None:
    dataset = make(bench.inputs)
    (bench.inputs / f"{dataset}_cal_env.txt").write_text("ASTROMETRY_APPLY_APRIORI=off\n")
    outcome = bench.process(dataset, **{program: f"no-viable-{code}"})
    assert (outcome.exit_code, outcome.state) == (0, "processed")
    assert f"{program} ended with {code}" in outcome.reason
    assert bench.states(dataset) == ["datasets-processed"]
    manifest = bench.manifest(dataset)
    assert (manifest["products"], manifest["previews"], manifest["reason"]) == ([], [], outcome.reason)
    assert not {
        name for name in bench.tree(dataset) if name.endswith((".fits", ".txt")) and not name.startswith("logs/")
    }


def test_d8_an_empty_drizzled_image_is_no_product(bench: Bench) -> None:
    acs(bench.inputs)
    bench.assert_failed(ACS, bench.process(ACS, runastrodriz="empty"), 24, f"{ACS}_drz.fits", "no exposure has pixels")


def test_a_reference_that_rules_do_not_know_can_be_given(bench: Bench) -> None:
    acs(bench.inputs)
    outcome = bench.process(ACS, calacs="exit-2")
    bench.assert_failed(ACS, outcome, 23, "SATUFILE")
    assert "--override SATUFILE=<file>" in outcome.remedy


def test_15_of_a_mosaic_is_a_failure(bench: Bench) -> None:
    dataset = visit(bench.inputs)
    bench.assert_failed(dataset, bench.process(dataset, runsinglehap="no-viable-15"), 40, "exit status 15")


# ---- one name in one command


def test_d5_two_exposures_of_a_visit_are_two_datasets(bench: Bench) -> None:
    acs(bench.inputs)
    direct.write_direct(bench.inputs, "j8bt05nkq")
    for dataset in (ACS, "j8bt05nkq"):
        assert bench.process(dataset).exit_code == 0
        assert {name for name in bench.tree(dataset) if name.startswith("j8bt05")} == {
            f"{dataset}{end}" for end in (".tra", "_drz.fits", "_flt.fits", "_flt_hlet.fits", "_raw.fits")
        }
    assert bench.commands == [
        ["calacs.e", f"{ACS}_raw.fits"],
        ["runastrodriz", "-n", "1", f"{ACS}_raw.fits"],
        ["calacs.e", "j8bt05nkq_raw.fits"],
        ["runastrodriz", "-n", "1", "j8bt05nkq_raw.fits"],
    ]


def test_d5_an_association_is_named_and_its_raw_files_are_not(bench: Bench) -> None:
    dataset = pair(bench.inputs)
    assert bench.process(dataset).exit_code == 0
    assert [argv[-1] for argv in bench.commands] == ["j8bt09040_asn.fits"] * 2


@pytest.mark.parametrize(("kind", "dataset"), [("calacs.e", ACS), ("calwf3.e", UVIS), ("calcos", COS), ("cs0.e", STIS)])
def test_d5_d6_no_two_raw_files_share_a_command(make_run: RunFactory, tmp_path: Path, kind: str, dataset: str) -> None:
    run = make_run(dataset)
    suffixes = {"calcos": ("rawtag_a", "rawtag_b"), "cs0.e": ("wav", "tag")}.get(kind, ("raw",))
    raws = tuple(
        inputs.InputFile(f"{dataset}_{s}.fits", dataset, s, 1, "", "", {"DRIZCORR": "PERFORM"}) for s in suffixes
    )
    material = inputs.Inputs(dataset, tmp_path, raws)
    commands = calibrate.commands(run, material)
    assert commands[0][0] == kind
    names = [[word for word in argv if word.endswith(".fits")] for argv in commands]
    assert all(len(given) == 1 for given in names)
    if kind == "cs0.e":
        assert names == [[raw.name] for raw in raws]


def test_d6_several_raw_files_of_stis_are_one_call_each(
    bench: Bench, make_run: RunFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make_run(STIS)
    directory = run.workspace.inputs
    raws = []
    for root in (STIS, "ocmv0lw7q"):
        path = stis.write_stis(directory, root, **stis.IMAGE)
        raws.append(inputs.InputFile(path.name, root, "raw", 1, "", str(path), stis.IMAGE | {"NEXTEND": 3}))
    given = inputs.Inputs(STIS, directory, tuple(raws))
    monkeypatch.setitem(run.config.environment, "PATH", f"{bench.root / 'bin'}")  # type: ignore[arg-type]
    products = calibrate.calibrate(run, given, References("", "", (), run.workspace.references))
    assert bench.commands == [["cs0.e", "-tv", raw.name] for raw in raws]
    for root in (STIS, "ocmv0lw7q"):
        (product,) = [p for p in products.calibrated if p.name == f"{root}_flt.fits"]
        assert smallfits.read_header(product)["ROOTNAME"] == root.upper()


def test_two_names_make_the_fakes_go_wrong_as_the_programs_do(tmp_path: Path) -> None:
    """The fakes would notice: this is what two names in one command come to."""
    found = install(tmp_path / "bin")
    for root in (ACS, "j8bt05nkq"):
        direct.write_direct(tmp_path, root)
    for root in (STIS, "ocmv0lw7q"):
        stis.write_stis(tmp_path, root, **stis.IMAGE)

    def run(*argv: str) -> int:
        env = {"jref": "x/", "oref": "x/"}
        return subprocess.run([found / argv[0], *argv[1:]], cwd=tmp_path, env=env, stdout=subprocess.DEVNULL).returncode

    assert run("calacs.e", f"{ACS}_raw.fits", "j8bt05nkq_raw.fits") == 2
    assert run("runastrodriz", "-n", "1", f"{ACS}_raw.fits", "j8bt05nkq_raw.fits") == 1
    assert run("cs0.e", "-tv", f"{STIS}_raw.fits", "ocmv0lw7q_raw.fits") == 0
    assert smallfits.read_header(tmp_path / "ocmv0lw7q_flt.fits")["ROOTNAME"] == STIS.upper()
    assert not (tmp_path / f"{STIS}_flt.fits").exists()
    assert run("calacs.e", f"{ACS}_raw.fits") == 0
    assert run("calacs.e", f"{ACS}_raw.fits") == 2  # its output is there already


# ---- a clean place for every attempt


@pytest.mark.parametrize(
    ("make", "program", "behaviour"),
    [
        (acs, "calacs", "memory"),
        (acs, "calacs", "kill-after"),
        (acs, "runastrodriz", "exit-1"),
        (uvis, "calwf3", "tmp-left"),
        (spectrum, "cs0", "segv-partial"),
        (visit, "runsinglehap", "no-catalogues"),
    ],
)
def test_d34_the_next_attempt_finds_a_clean_place(bench: Bench, make: Maker, program: str, behaviour: str) -> None:
    dataset = make(bench.inputs)
    before = {path: path.read_bytes() for path in bench.inputs.iterdir()}
    assert bench.process(dataset, **{program: behaviour}).state == "error"
    outcome = bench.process(dataset)
    assert (outcome.exit_code, outcome.attempt) == (0, 2), outcome.reason
    assert len({call["cwd"] for call in bench.log}) == 2
    assert {path: path.read_bytes() for path in bench.inputs.iterdir()} == before
    assert not [name for name in bench.tree(dataset) if "_tmp" in name]


def test_d34_a_failed_attempt_leaves_what_was_published_before(bench: Bench) -> None:
    dataset = acs(bench.inputs)
    bench.process(dataset)
    good = {path: path.read_bytes() for path in bench.folder(dataset).iterdir() if path.is_file()}
    assert bench.process(dataset, calacs="kill").exit_code == 23
    assert {path: path.read_bytes() for path in bench.folder(dataset).iterdir() if path.is_file()} == good


def test_d34_hstcal_is_never_told_to_overwrite(bench: Bench) -> None:
    dataset = acs(bench.inputs)
    (bench.inputs / f"{dataset}_cal_env.txt").write_text("imclobber=yes\n")
    assert bench.process(dataset).exit_code == 0
    assert not [call for call in bench.log if "imclobber" in call["environ"]]


def test_d14_inputs_are_never_published_for_products(bench: Bench) -> None:
    dataset = acs(bench.inputs)
    bench.process(dataset, calacs="nothing")
    assert {name for name in bench.tree(dataset) if not name.startswith("logs/")} == set()


# ---- what the programs are told


@pytest.mark.parametrize(("make", "variable"), [(acs, "jref"), (uvis, "iref"), (spectrum, "oref")])
def test_references_are_named_with_a_slash_at_the_end(bench: Bench, make: Maker, variable: str) -> None:
    assert bench.process(make(bench.inputs)).exit_code == 0
    for call in bench.log:
        folder = call["environ"][variable]
        assert folder.endswith("/references/")
        assert Path(folder).parent == Path(call["cwd"]).parent


def test_mosaics_keep_the_folders_of_the_cache(bench: Bench) -> None:
    bench.process(visit(bench.inputs))
    (call,) = bench.log
    assert call["environ"]["jref"].startswith(f"{bench.root}/crds/references/hst/")
    assert call["environ"]["jref"].endswith("/")


@pytest.mark.parametrize(("make", "program"), [(acs, "runastrodriz"), (visit, "runsinglehap"), (cell, "runmultihap")])
@pytest.mark.parametrize("there", [True, False])
def test_d35_the_astrometry_service_is_asked_where_it_can_be_reached(
    bench: Bench, make: Maker, program: str, there: bool
) -> None:
    names = ("ASTROMETRY_COMPUTE_APOSTERIORI", "ASTROMETRY_APPLY_APRIORI")
    for name in names:
        bench.environment.delenv(name)
    bench.environment.setattr("caldp.calibrate._reaches", lambda environment: there)
    dataset = make(bench.inputs)
    assert bench.process(dataset).exit_code == 0
    calls = {call["name"]: call["environ"] for call in bench.log}
    assert [calls[program].get(name) for name in names] == ([None, None] if there else ["off", "off"])
    assert all(names[0] not in environ for name, environ in calls.items() if name != program)
    warned = [text for text in bench.manifest(dataset)["warnings"] if "astrometry service" in text]
    assert len(warned) == (not there)


def test_d35_one_switch_is_the_users_decision(bench: Bench) -> None:
    bench.environment.delenv("ASTROMETRY_COMPUTE_APOSTERIORI")
    bench.environment.setattr("caldp.calibrate._reaches", lambda environment: pytest.fail("asked"))
    assert bench.process(acs(bench.inputs)).exit_code == 0
    assert "ASTROMETRY_COMPUTE_APOSTERIORI" not in bench.log[-1]["environ"]


def test_d35_a_service_that_cannot_be_reached(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **kwargs: object) -> None:
        raise OSError("no network")

    monkeypatch.setattr("socket.create_connection", refuse)
    assert not calibrate._reaches({})
    assert calibrate._reaches({"https_proxy": "http://proxy:3128"})
    assert calibrate._reaches({"ASTROMETRY_SERVICE_URL": "http://here"})


@pytest.mark.parametrize(
    ("make", "program", "code"),
    [(acs, "calacs.e", 23), (uvis, "runastrodriz", 24), (spectrum, "cs0.e", 23), (visit, "runsinglehap", 40)],
)
def test_a_program_that_is_not_installed(bench: Bench, make: Maker, program: str, code: int) -> None:
    find = programs.find
    bench.environment.setattr(programs, "find", lambda name, path: None if name == program else find(name, path))
    dataset = make(bench.inputs)
    outcome = bench.process(dataset)
    bench.assert_failed(dataset, outcome, code, f"{program} is not installed")
    assert "install" in outcome.remedy
    assert "caldp doctor" in outcome.remedy


def test_versions_come_from_the_products(bench: Bench) -> None:
    dataset = acs(bench.inputs)
    bench.process(dataset)
    assert bench.manifest(dataset)["versions"]["calacs.e"] == "10.5.0 (16-Mar-2026)"
    assert "runsinglehap" not in json.dumps(bench.manifest(dataset)["versions"])


def test_the_versions_in_the_raw_headers_of_every_instrument(bench: Bench) -> None:
    bench.environment.setenv("CSYS_VER", "sys-1")
    for make in (acs, uvis, spectrum):
        dataset = make(bench.inputs)
        assert bench.process(dataset).exit_code == 0
        header = smallfits.read_header(bench.folder(dataset) / f"{dataset}_flt.fits")
        assert header["CSYS_VER"] == "sys-1"
