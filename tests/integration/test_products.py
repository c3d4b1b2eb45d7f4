"""Nine datasets, and exactly the files that the archive's own calibration delivers of them.

Small raw data whose headers lead to these products, fake programs, real previews.  The lists of names are those of
``expected-products/conformance_outputs.json`` beside the real data.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.fakes import direct, mosaic, stis
from tests.fakes.bench import Bench, make_bench
from tests.fakes.cos import write_asn, write_raw, write_support

#: What a dataset's folder holds besides.
OURS = {
    "manifest.json",
    "report.html",
    "logs/preview_metrics.txt",
    "logs/process.txt",
    "logs/process_metrics.txt",
    "logs/preview.txt",
    "logs/metrics.json",
}


@pytest.fixture
def bench(tmp_path: Path, clean_environment: pytest.MonkeyPatch) -> Bench:
    return make_bench(tmp_path, clean_environment)


def acs_association(folder: Path) -> None:
    exposures = ("j8cb01u2q", "j8cb01u3q")
    rows = [(root, "EXP-CRJ", True) for root in exposures]
    write_asn(folder, "j8cb010b0", *rows, ("j8cb010b1", "PROD-CRJ", True))
    for root in exposures:
        direct.write_direct(folder, root, direct.HRC, CRCORR="PERFORM")


def acs_exposure(folder: Path) -> None:
    direct.write_direct(folder, "j8f54obeq", direct.HRC, DRIZCORR="OMIT")


def ir_association(folder: Path) -> None:
    exposures = ("ib8t01htq", "ib8t01hwq")
    rows = [(root, "EXP-DTH", True) for root in exposures]
    write_asn(folder, "ib8t01010", *rows, ("ib8t01010", "PROD-DTH", True))
    for root in exposures:
        direct.write_direct(folder, root, direct.IR)


def ir_exposure(folder: Path) -> None:
    direct.write_direct(folder, "iacs01t4q", direct.IR)
    (folder / "iacs01t4q_cal_env.txt").write_text("BadKey|ValuePair\nGoodKey=ValuePair\n")


def uncalibrated(folder: Path) -> None:
    direct.write_direct(folder, "ibc604b9q", direct.UVIS | direct.OMIT)


def cos_association(folder: Path) -> None:
    write_asn(folder, "la8q99030", ("la8q99ixq", "EXP-FP", True), ("la8q99030", "PROD-FP", True))
    write_raw(folder, "la8q99ixq", "rawtag", DETECTOR="NUV", FPPOS=3, OPT_ELEM="G230L")
    write_support(folder, "la8q99ixq")


def stis_association(folder: Path) -> None:
    # Its table names exposures that have no files of their own.
    write_asn(folder, "obes03010", ("obes03cxq", "CRSPLIT", True), ("obes03010", "PRODUCT", True))
    stis.write_stis(folder, "obes03010", exposures=2)
    stis.write_stis(folder, "obes03010", "wav", EXPTYPE="WAVECAL", WAVECAL="N/A")
    stis.write_stis(folder, "obes03010", "epc")


def visit(folder: Path) -> None:
    filters = {"g3": "F435W", "g5": "F435W", "g7": "F555W", "g9": "F555W", "g0": "F814W", "g1": "F814W"}
    exposures = {f"j8ph01{end}q_flc.fits": f"{element};CLEAR2L" for end, element in filters.items()}
    for name in exposures:
        mosaic.write_calibrated(folder, name)
    mosaic.write_visit(folder, "acs_8ph_01", "9774", exposures)


def cell(folder: Path) -> None:
    exposures = {
        "hst_11657_01_wfc3_uvis_f547m_ib8t01aa_flc.fits": "F547M",
        "hst_11657_01_wfc3_uvis_f547m_ib8t01ab_flc.fits": "F547M",
        "hst_11657_01_wfc3_uvis_f657n_ib8t01ac_flc.fits": "F657N",
    }
    for name in exposures:
        mosaic.write_calibrated(folder, name, "WFC3", "UVIS")
    mosaic.write_cell(folder, "skycell-p2381x06y09", "11657", exposures)


MAKERS: dict[str, Callable[[Path], None]] = {
    "j8cb010b0": acs_association,
    "j8f54obeq": acs_exposure,
    "ib8t01010": ir_association,
    "iacs01t4q": ir_exposure,
    "ibc604b9q": uncalibrated,
    "la8q99030": cos_association,
    "obes03010": stis_association,
    "acs_8ph_01": visit,
    "skycell-p2381x06y09": cell,
}


#: Programs and what each is given.
COMMANDS = {
    "j8cb010b0": [["calacs.e", "j8cb010b0_asn.fits"], ["runastrodriz", "-n", "1", "j8cb010b0_asn.fits"]],
    "j8f54obeq": [["calacs.e", "j8f54obeq_raw.fits"]],
    "ib8t01010": [["calwf3.e", "ib8t01010_asn.fits"], ["runastrodriz", "-n", "1", "ib8t01010_asn.fits"]],
    "iacs01t4q": [["calwf3.e", "iacs01t4q_raw.fits"], ["runastrodriz", "-n", "1", "iacs01t4q_raw.fits"]],
    "ibc604b9q": [["calwf3.e", "ibc604b9q_raw.fits"]],
    "la8q99030": [["calcos", "-o", "products", "la8q99030_asn.fits"]],
    "obes03010": [["cs0.e", "-tv", "obes03010_raw.fits"]],
    "acs_8ph_01": [["runsinglehap", "acs_8ph_01_input.out"]],
    "skycell-p2381x06y09": [["runmultihap", "skycell-p2381x06y09_input.out"]],
}


def listed(shared_data: Path) -> dict[str, set[str]]:
    """Return the names of the list, in the places where we put such files."""
    path = shared_data / "expected-products" / "conformance_outputs.json"

    def placed(name: str) -> str:
        if name.endswith((".jpg", ".png")):
            return f"previews/{name.removeprefix('previews/')}"
        return name.removeprefix("env/")

    return {dataset: set(map(placed, names)) for dataset, names in json.loads(path.read_text()).items()}


@pytest.mark.parametrize("dataset", MAKERS)
def test_exactly_the_listed_files_are_delivered(bench: Bench, shared_data: Path, dataset: str) -> None:
    MAKERS[dataset](bench.inputs)
    before = {path: path.read_bytes() for path in bench.inputs.iterdir()}
    outcome = bench.process(dataset)
    assert (outcome.exit_code, outcome.state) == (0, "processed"), outcome.reason
    delivered = bench.tree(dataset)
    assert delivered - OURS == listed(shared_data)[dataset]
    assert delivered >= OURS
    manifest = bench.manifest(dataset)
    assert {entry["name"] for entry in (*manifest["products"], *manifest["previews"])} == delivered - OURS
    assert {path: path.read_bytes() for path in bench.inputs.iterdir()} == before
    assert not list((bench.root / "home").rglob("*"))
    assert [[Path(word).name for word in command] for command in bench.commands] == COMMANDS[dataset]
    if dataset.startswith(("acs", "sky")):  # relative names were never tried in the archive's pipeline
        assert Path(bench.commands[0][1]).is_absolute()


def test_every_listed_dataset_is_tested(shared_data: Path) -> None:
    assert MAKERS.keys() == listed(shared_data).keys()


def test_the_reason_of_the_dataset_without_products(bench: Bench) -> None:
    bench.environment.setattr("caldp.create_preview.preview", lambda run, products: [])
    uncalibrated(bench.inputs)
    outcome = bench.process("ibc604b9q")
    assert (outcome.exit_code, outcome.state) == (0, "processed")
    assert outcome.reason == "nothing was calibrated: the headers ask calwf3.e for no calibration step"
    assert "did NOT process" in (bench.folder("ibc604b9q") / "ibc604b9q.tra").read_text()


def test_settings_that_come_with_the_data_are_judged_and_delivered(bench: Bench) -> None:
    bench.environment.setattr("caldp.create_preview.preview", lambda run, products: [])
    ir_exposure(bench.inputs)
    with (bench.inputs / "iacs01t4q_cal_env.txt").open("a") as stream:
        stream.write("OMP_NUM_THREADS=3\nLD_PRELOAD=/evil.so\n")
    bench.process("iacs01t4q")
    for call in bench.log:
        assert call["environ"]["OMP_NUM_THREADS"] == "3"
        assert not {"GoodKey", "LD_PRELOAD"} & call["environ"].keys()
    warnings = " ".join(bench.manifest("iacs01t4q")["warnings"])
    assert all(word in warnings for word in ("line 1", "GoodKey", "LD_PRELOAD"))
    assert "OMP_NUM_THREADS" in (bench.folder("iacs01t4q") / "iacs01t4q_cal_env.txt").read_text()
