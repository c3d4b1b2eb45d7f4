"""Fetch: exactly this dataset's files, checked before any program runs; alike from a directory and from a bucket."""

from __future__ import annotations

import gzip
import hashlib
import os
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from astropy.io import fits

from caldp.errors import InputError, S3DownloadError, S3DownloadRefusedError
from caldp.expectations import Material, Member, Raw
from caldp.inputs import Inputs, fetch
from caldp.run import Run
from caldp.store import Entry
from tests.conftest import RunFactory
from tests.fakes import direct, mosaic, stis
from tests.fakes.bucket import BUCKET, FakeBucket
from tests.fakes.cos import compress, truncate, write_asn, write_raw, write_support
from tests.fakes.reporter import FakeReporter

Fetch = Callable[..., Inputs]

ASN = "ldfd01010"
MEMBERS = (("ldfd01vnq", "EXP-FP", True), ("ldfd01vpq", "EXP-FP", True), (ASN, "PROD-FP", True))


#: How the tests call the folder: set by ``bucket``.
_places: dict[str, Path] = {}

on_disk_only = pytest.mark.parametrize("bucket", ["file"], indirect=True)
in_a_bucket_only = pytest.mark.parametrize("bucket", ["s3"], indirect=True)


@pytest.fixture(autouse=True, params=["file", "s3"])
def bucket(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> type[FakeBucket]:
    """Run each test twice: the folder is a directory, and it is a prefix of a bucket."""
    fake = FakeBucket.of(tmp_path)
    monkeypatch.setattr("caldp.folders.S3Store", fake)
    monkeypatch.setitem(globals(), "_places", {request.param: tmp_path})
    return fake


def at(path: Path) -> str:
    """Return the URI of a folder or file."""
    return f"file:{path}" if "file" in _places else shown(path)


def shown(path: Path) -> str:
    """Return what messages call it."""
    return str(path) if "file" in _places else f"{BUCKET}/{path.relative_to(_places['s3'])}"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "raw: data"
    path.mkdir()
    return path


@pytest.fixture
def run(make_run: RunFactory) -> Run:
    return make_run("ldfd01vnq")


@pytest.fixture
def asn_run(make_run: RunFactory) -> Run:
    return make_run(ASN)


@pytest.fixture
def association(folder: Path) -> Path:
    write_asn(folder, ASN, *MEMBERS)
    for number, (root, _, _) in enumerate(MEMBERS[:2]):
        write_raw(folder, root, FPPOS=number + 1)
        write_support(folder, root)
    write_support(folder, ASN)
    return folder


def names(inputs: Inputs) -> list[str]:
    listed = sorted(f.name for f in inputs.files)
    assert sorted(p.name for p in inputs.directory.iterdir()) == listed
    return listed


def exposures(inputs: Inputs) -> tuple[str, ...]:
    """Exposures among the members of an association."""
    listed = tuple(m.root for m in inputs.members if not m.is_product)
    assert listed == inputs.exposures
    return listed


def warnings(run: Run) -> list[str]:
    assert isinstance(run.telemetry.reporter, FakeReporter)
    return [e[2] for e in run.telemetry.reporter.events if e[:2] == ("message", "WARNING")]


def content(folder: Path) -> dict[Path, tuple[bytes, int]]:
    return {p: (p.read_bytes(), p.stat().st_mtime_ns) for p in folder.rglob("*") if p.is_file()}


def refused(run: Run, folder: Path, *words: str) -> InputError:
    with pytest.raises(InputError) as caught:
        fetch(run, at(folder))
    assert caught.value.exit_code == 21
    for word in (run.dataset.name, *words):
        assert word in str(caught.value)
    assert caught.value.remedy
    return caught.value


# ---- which files


def test_an_exposure(run: Run, folder: Path) -> None:
    path = write_raw(folder, "ldfd01vnq", FPPOS=2)
    write_support(folder, "ldfd01vnq")
    inputs = fetch(run, at(folder))
    assert names(inputs) == ["ldfd01vnq_rawtag_a.fits", "ldfd01vnq_spt.fits"]
    assert (inputs.kind, inputs.association, inputs.members) == ("exposure", None, ())
    assert (inputs.exposures, inputs.roots) == (("ldfd01vnq",), ("ldfd01vnq",))
    assert (inputs.poller, inputs.settings_file, inputs.settings) == (None, None, {})
    raw = inputs.raw[0]
    assert (raw.root, raw.suffix, raw.source) == ("ldfd01vnq", "rawtag_a", shown(path))
    assert raw.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert raw.size == path.stat().st_size
    facts = {k: raw.facts[k] for k in ("FPPOS", "EXPTYPE", "NUMFLASH", "EVENTS", "INSTRUME")}
    assert facts == {"FPPOS": 2, "EXPTYPE": "EXTERNAL/SCI", "NUMFLASH": 2, "EVENTS": 5, "INSTRUME": "COS"}
    assert run.telemetry.stages[0].bytes_in == sum(f.size for f in inputs.files)


def test_d4_siblings_are_left_alone(run: Run, folder: Path) -> None:
    write_raw(folder, "ldfd01vnq")
    for sibling in ("ldfd01vpq", "ldfd01vnp", "ldfd02vnq", "ldfd0xvnq"):
        write_raw(folder, sibling)
        write_support(folder, sibling)
    write_asn(folder, ASN, *MEMBERS)
    assert names(fetch(run, at(folder))) == ["ldfd01vnq_rawtag_a.fits"]


@pytest.mark.parametrize(
    "name",
    ["ldfd01vnq_jit.fits", "ldfd01vnq_jif.fits", "ldfd01vnj_jit.fits", "ldfd01vnq_x1d.fits", "ldfd01vnq_raw.txt",
     "ldfd01vnq_rawtag_a.fits.bak", "xldfd01vnq_rawtag_a.fits", "ldfd01vnq_rawtag_c.fits", "copy of ldfd01vnq_spt"],
)  # fmt: skip
def test_other_files_are_ignored(run: Run, folder: Path, name: str) -> None:
    write_raw(folder, "ldfd01vnq")
    (folder / name).write_bytes(b"junk")
    (folder / "ldfd01vnq_spt.fits").mkdir()
    assert names(fetch(run, at(folder))) == ["ldfd01vnq_rawtag_a.fits"]


def test_d7_raw_in_the_name_of_a_directory_means_nothing(run: Run, tmp_path: Path) -> None:
    folder = tmp_path / "ldfd01vnq_raw" / "ldfd01vnq_rawtag_a.fits"
    folder.mkdir(parents=True)
    write_support(folder, "ldfd01vnq")
    refused(run, folder, "no ldfd01vnq_asn.fits or ldfd01vnq_raw*.fits")


def test_support_beside_a_tarball_does_not_hide_it(run: Run, folder: Path, tmp_path: Path) -> None:
    (tmp_path / "packed").mkdir()
    raw = write_raw(tmp_path / "packed", "ldfd01vnq")
    with tarfile.open(folder / "ldfd01vnq.tar.gz", "w:gz") as tar:
        tar.add(raw, raw.name)
    write_support(folder, "ldfd01vnq")
    assert [f.name for f in fetch(run, at(folder)).files] == ["ldfd01vnq_rawtag_a.fits"]


@on_disk_only
def test_d22_raw_fits_in_the_current_directory(run: Run, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_raw(folder, "ldfd01vnq")
    monkeypatch.chdir(folder)
    assert names(fetch(run, "file:.")) == ["ldfd01vnq_rawtag_a.fits"]


@pytest.mark.parametrize("suffix", ["rawtag", "rawtag_b", "rawaccum", "rawaccum_a", "rawimage", "rawacq"])
def test_every_kind_of_raw_data(run: Run, folder: Path, suffix: str) -> None:
    write_raw(folder, "ldfd01vnq", suffix)
    assert [f.suffix for f in fetch(run, at(folder)).raw] == [suffix]


def test_an_association(asn_run: Run, association: Path) -> None:
    write_raw(association, "ldfd01vrq")
    inputs = fetch(asn_run, at(association))
    assert names(inputs) == [
        "ldfd01010_asn.fits",
        "ldfd01010_spt.fits",
        "ldfd01vnq_rawtag_a.fits",
        "ldfd01vnq_spt.fits",
        "ldfd01vpq_rawtag_a.fits",
        "ldfd01vpq_spt.fits",
    ]
    assert (inputs.kind, exposures(inputs)) == ("association", ("ldfd01vnq", "ldfd01vpq"))
    assert inputs.members == tuple(Member(root, kind) for root, kind, _ in MEMBERS)
    assert inputs.roots == (ASN, "ldfd01vnq", "ldfd01vpq")
    assert str(inputs).startswith("association, 2 exposure(s), 6 files, ")
    assert [f.facts["FPPOS"] for f in inputs.raw] == [1, 2]


def test_what_decides_what_a_dataset_costs(asn_run: Run, association: Path) -> None:
    inputs = fetch(asn_run, at(association))
    assert (inputs.detector, len(inputs.exposures)) == ("fuv", 2)
    assert asn_run.telemetry.facts == {"detector": "fuv", "exposures": 2}


@pytest.mark.parametrize(
    ("header", "detector"),
    [({"DETECTOR": "NUV"}, "nuv"), ({"DETECTOR": " Fuv "}, "fuv"), ({"DETECTOR": ""}, ""), ({"DETECTOR": None}, "")],
)
def test_the_detector_is_that_of_the_header(run: Run, folder: Path, header: dict[str, Any], detector: str) -> None:
    write_raw(folder, "ldfd01vnq", **header)
    assert fetch(run, at(folder)).detector == detector
    assert run.telemetry.facts == {"detector": detector, "exposures": 1}


def test_segments_of_an_exposure_are_one(run: Run, folder: Path) -> None:
    for suffix in ("rawtag_a", "rawtag_b"):
        write_raw(folder, "ldfd01vnq", suffix)
    fetch(run, at(folder))
    assert run.telemetry.facts == {"detector": "fuv", "exposures": 1}


def test_nothing_is_known_of_inputs_that_are_not_there(run: Run, folder: Path) -> None:
    refused(run, folder)
    assert run.telemetry.facts == {}


def test_inputs_stay_as_they_were(asn_run: Run, association: Path) -> None:
    compress(association / "ldfd01vpq_rawtag_a.fits")
    before = content(association)
    inputs = fetch(asn_run, at(association))
    with fits.open(inputs.directory / inputs.raw[0].name, mode="update") as hdus:
        hdus[0].header["CHANGED"] = True
    assert content(association) == before
    assert not [f for f in inputs.directory.iterdir() if f.is_symlink()]


def test_read_only_inputs_become_writable_copies(run: Run, folder: Path) -> None:
    path = write_raw(folder, "ldfd01vnq")
    path.chmod(0o444)
    inputs = fetch(run, at(folder))
    assert (inputs.directory / path.name).stat().st_mode & 0o200


# ---- compressed


def test_gz(run: Run, folder: Path) -> None:
    plain = write_raw(folder, "ldfd01vnq")
    data = plain.read_bytes()
    compress(plain)
    raw = fetch(run, at(folder)).raw[0]
    assert raw.name == "ldfd01vnq_rawtag_a.fits"
    assert (run.workspace.inputs / raw.name).read_bytes() == data
    assert (raw.size, raw.sha256) == (len(data), hashlib.sha256(data).hexdigest())
    assert raw.source.endswith(".fits.gz")


def test_plain_is_preferred_to_gz(run: Run, folder: Path) -> None:
    compress(write_raw(folder, "ldfd01vnq", FPPOS=1))
    write_raw(folder, "ldfd01vnq", FPPOS=2)
    inputs = fetch(run, at(folder))
    assert [f.facts["FPPOS"] for f in inputs.raw] == [2]
    assert any("ldfd01vnq_rawtag_a.fits.gz" in text for text in warnings(run))


def test_plain_is_preferred_to_gz_for_members_too(asn_run: Run, association: Path) -> None:
    (association / "ldfd01vpq_rawtag_a.fits.gz").write_bytes(b"whatever")
    fetch(asn_run, at(association))
    assert any("ldfd01vpq_rawtag_a.fits.gz" in text for text in warnings(asn_run))


@pytest.mark.parametrize("share", [0, 0.01, 0.5, 0.99])
def test_truncated_gz(run: Run, folder: Path, share: float) -> None:
    truncate(compress(write_raw(folder, "ldfd01vnq", events=5000)), share)
    refused(run, folder, "ldfd01vnq_rawtag_a.fits")


def test_gz_that_is_none(run: Run, folder: Path) -> None:
    (folder / "ldfd01vnq_rawtag_a.fits.gz").write_bytes(b"\x1f\x8b\x08" + b"\xff" * 100)
    refused(run, folder, "ldfd01vnq_rawtag_a.fits.gz")


# ---- tarballs


def pack(folder: Path, name: str = "ldfd01vnq.tar.gz", mode: str = "w:gz") -> Path:
    tarball = folder / name
    with tarfile.open(tarball, mode) as archive:  # type: ignore[call-overload]
        for path in sorted(folder.glob("*.fits")):
            archive.add(path, f"some/folder/{path.name}")
            path.unlink()
    return tarball


@pytest.mark.parametrize(
    ("name", "mode"), [("ldfd01vnq.tar.gz", "w:gz"), ("ldfd01vnq.tgz", "w:gz"), ("ldfd01vnq.tar", "w")]
)
def test_a_tarball(run: Run, folder: Path, name: str, mode: str) -> None:
    write_raw(folder, "ldfd01vnq")
    write_raw(folder, "ldfd01vpq")
    write_support(folder, "ldfd01vnq")
    before = pack(folder, name, mode).read_bytes()
    assert names(fetch(run, at(folder))) == ["ldfd01vnq_rawtag_a.fits", "ldfd01vnq_spt.fits"]
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == {name: before}


def test_a_tarball_of_an_association(asn_run: Run, association: Path) -> None:
    pack(association, f"{ASN}.tar.gz")
    assert exposures(fetch(asn_run, at(association))) == ("ldfd01vnq", "ldfd01vpq")


def test_the_tarball_of_another_dataset_is_not_touched(run: Run, folder: Path) -> None:
    write_raw(folder, "ldfd01vnq")
    pack(folder, "ldfd01vpq.tar.gz")
    refused(run, folder, "no ldfd01vnq_asn.fits or ldfd01vnq_raw*.fits and no ldfd01vnq.tar.gz")


def test_the_right_tarball_with_the_wrong_content(run: Run, folder: Path) -> None:
    write_raw(folder, "ldfd01vpq")
    pack(folder)
    refused(run, folder, "ldfd01vnq")


def test_a_tarball_is_not_asked_for_where_the_files_are(run: Run, folder: Path) -> None:
    write_raw(folder, "ldfd01vnq")
    (folder / "ldfd01vnq.tar.gz").write_bytes(b"whatever")
    assert names(fetch(run, at(folder))) == ["ldfd01vnq_rawtag_a.fits"]


def test_d26_a_tarball_that_tries_to_write_elsewhere_is_refused(run: Run, folder: Path) -> None:
    path = write_raw(folder, "ldfd01vnq")
    with tarfile.open(folder / "ldfd01vnq.tar.gz", "w:gz") as archive:
        archive.add(path, path.name)
        archive.add(path, "../ldfd01vnq_spt.fits")
    path.unlink()
    refused(run, folder, "ldfd01vnq.tar.gz")
    assert [p.name for p in folder.iterdir()] == ["ldfd01vnq.tar.gz"]
    assert not list(run.workspace.inputs.iterdir())


def test_only_inputs_are_taken_out_of_a_tarball(run: Run, folder: Path, tmp_path: Path) -> None:
    write_raw(folder, "ldfd01vnq")
    with tarfile.open(folder / "ldfd01vnq.tar.gz", "w:gz") as archive:
        archive.add(folder / "ldfd01vnq_rawtag_a.fits", "a/ldfd01vnq_rawtag_a.fits")
        for name in ("setup.py", "ldfd01vnq_raw.txt", ".bashrc"):
            (tmp_path / name).write_text("no")
            archive.add(tmp_path / name, f"a/{name}")
    (folder / "ldfd01vnq_rawtag_a.fits").unlink()
    fetch(run, at(folder))
    assert [p.name for p in (run.workspace.root / "unpacked").iterdir()] == ["ldfd01vnq_rawtag_a.fits"]


@pytest.mark.parametrize(
    ("mode", "share"),
    [(mode, share) for mode in ("w:gz", "w") for share in (0, 0.001, 0.1, 0.5, 0.9)] + [("w:gz", 0.99)],
)
def test_a_truncated_tarball(run: Run, folder: Path, mode: str, share: float) -> None:
    write_raw(folder, "ldfd01vnq", events=20_000)
    write_raw(folder, "ldfd01vnq", "rawtag_b", events=100)
    tarball = pack(folder, "ldfd01vnq.tar", mode)
    truncate(tarball, share)
    refused(run, folder)


def test_a_tarball_that_is_none(run: Run, folder: Path) -> None:
    (folder / "ldfd01vnq.tar.gz").write_bytes(os.urandom(5000))
    refused(run, folder, "ldfd01vnq.tar.gz")


# ---- associations


def test_a_missing_member(asn_run: Run, association: Path) -> None:
    (association / "ldfd01vpq_rawtag_a.fits").unlink()
    refused(asn_run, association, "no raw data for ldfd01vpq", "_rawtag_a.fits")


def test_a_member_that_was_not_taken(asn_run: Run, folder: Path) -> None:
    write_asn(folder, ASN, ("ldfd01vnq", "EXP-FP", True), ("ldfd01vpq", "EXP-FP", False), (ASN, "PROD-FP", True))
    write_raw(folder, "ldfd01vnq")
    write_raw(folder, "ldfd01vpq")
    inputs = fetch(asn_run, at(folder))
    assert exposures(inputs) == ("ldfd01vnq",)
    assert names(inputs) == ["ldfd01010_asn.fits", "ldfd01vnq_rawtag_a.fits"]
    assert any("ldfd01vpq" in text for text in warnings(asn_run))


def test_a_product_that_is_not_there_yet(asn_run: Run, folder: Path) -> None:
    write_asn(folder, ASN, ("ldfd01vnq", "EXP-FP", True), (ASN, "PROD-FP", False))
    write_raw(folder, "ldfd01vnq")
    assert exposures(fetch(asn_run, at(folder))) == ("ldfd01vnq",)
    assert warnings(asn_run) == []


def test_a_table_without_the_column_memprsnt(asn_run: Run, folder: Path) -> None:
    write_asn(folder, ASN, *MEMBERS, present=False)
    write_raw(folder, "ldfd01vnq")
    write_raw(folder, "ldfd01vpq")
    assert exposures(fetch(asn_run, at(folder))) == ("ldfd01vnq", "ldfd01vpq")


@pytest.mark.parametrize(
    ("members", "word"),
    [
        ([(ASN, "PROD-FP", True)], "lists no exposure"),
        ([("ldfd01vnq", "EXP-FP", False)], "lists no exposure"),
        ([("../../etc", "EXP-FP", True)], "'../../etc'"),
        ([("ldfd01vn", "EXP-FP", True)], "'ldfd01vn'"),
        ([("", "EXP-FP", True)], "''"),
    ],
)
def test_odd_association_tables(asn_run: Run, folder: Path, members: list[tuple[str, str, bool]], word: str) -> None:
    write_asn(folder, ASN, *members)
    refused(asn_run, folder, "ldfd01010_asn.fits", word)


def test_an_association_without_a_table(asn_run: Run, folder: Path) -> None:
    write_support(folder, ASN, "asn")
    refused(asn_run, folder, "ldfd01010_asn.fits", "not an association table")


def test_an_association_table_with_other_columns(asn_run: Run, folder: Path) -> None:
    path = write_raw(folder, ASN)
    path.rename(folder / f"{ASN}_asn.fits")
    refused(asn_run, folder, "ldfd01010_asn.fits", "not an association table")


# ---- damage


@on_disk_only
def test_no_directory(run: Run, tmp_path: Path) -> None:
    refused(run, tmp_path / "nowhere", "no input directory", "nowhere")
    (tmp_path / "file").touch()
    refused(run, tmp_path / "file", "no input directory")


def test_no_file(run: Run, folder: Path) -> None:
    refused(run, folder, f"no ldfd01vnq_asn.fits or ldfd01vnq_raw*.fits and no ldfd01vnq.tar.gz in {shown(folder)}")


def test_support_alone_is_not_enough(run: Run, folder: Path) -> None:
    write_support(folder, "ldfd01vnq")
    refused(run, folder, "no ldfd01vnq_asn.fits or ldfd01vnq_raw*.fits")


@pytest.mark.parametrize("share", [0, 0.05, 0.4, 0.7, 0.95])
def test_d10_truncated_raw(run: Run, folder: Path, share: float) -> None:
    truncate(write_raw(folder, "ldfd01vnq", events=5000), share)
    refused(run, folder, "ldfd01vnq_rawtag_a.fits", "not whole FITS")


@pytest.mark.parametrize("data", [b"garbage", b"\0" * 10_000, b"SIMPLE  =                    T" + b" " * 2850])
def test_d10_garbage_raw(run: Run, folder: Path, data: bytes) -> None:
    (folder / "ldfd01vnq_rawtag_a.fits").write_bytes(data)
    refused(run, folder, "ldfd01vnq_rawtag_a.fits")


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b"TFORM1  = '1E      '", b"TFORM1  = 'ZZ      '"),
        (b"TFIELDS =                    1", b"TFIELDS =                    7"),
        (b"NAXIS2  =                    5", b"NAXIS2  =                   -5"),
        (b"INSTRUME= 'COS     '", b"INSTRUME= COS       "),
    ],
)
def test_d10_a_damaged_header(run: Run, folder: Path, old: bytes, new: bytes) -> None:
    path = write_raw(folder, "ldfd01vnq")
    assert path.read_bytes().count(old) == 1
    path.write_bytes(path.read_bytes().replace(old, new))
    refused(run, folder, "ldfd01vnq_rawtag_a.fits")


def test_damaged_support(run: Run, folder: Path) -> None:
    write_raw(folder, "ldfd01vnq")
    (folder / "ldfd01vnq_spt.fits").write_bytes(b"garbage")
    refused(run, folder, "ldfd01vnq_spt.fits")


@pytest.mark.parametrize("instrument", ["ACS", "STIS", "", 5])
def test_another_instrument(run: Run, folder: Path, instrument: Any) -> None:
    write_raw(folder, "ldfd01vnq", INSTRUME=instrument)
    refused(run, folder, "ldfd01vnq_rawtag_a.fits", "not COS")


def test_no_instrument(run: Run, folder: Path) -> None:
    fits.PrimaryHDU().writeto(folder / "ldfd01vnq_rawtag_a.fits")
    refused(run, folder, "ldfd01vnq_rawtag_a.fits", "names no instrument, not COS")


def test_a_file_under_a_wrong_name(run: Run, folder: Path) -> None:
    write_raw(folder, "ldfd01vnq", ROOTNAME="LDFD01VPQ")
    refused(run, folder, "ldfd01vnq_rawtag_a.fits", "LDFD01VPQ")


# ---- empty tables


def test_no_events(run: Run, folder: Path) -> None:
    write_raw(folder, "ldfd01vnq", events=0)
    refused(run, folder, "ldfd01vnq_rawtag_a.fits", "no events")


def test_no_events_in_one_segment(run: Run, folder: Path) -> None:
    write_raw(folder, "ldfd01vnq", "rawtag_a")
    write_raw(folder, "ldfd01vnq", "rawtag_b", events=0)
    inputs = fetch(run, at(folder))
    assert inputs.empty == ("ldfd01vnq_rawtag_b.fits",)
    assert [text for text in warnings(run) if "ldfd01vnq_rawtag_b.fits" in text]


def test_no_events_in_both_segments(run: Run, folder: Path) -> None:
    write_raw(folder, "ldfd01vnq", "rawtag_a", events=0)
    write_raw(folder, "ldfd01vnq", "rawtag_b", events=0)
    refused(run, folder, "no events")


def test_no_events_in_one_member(asn_run: Run, association: Path) -> None:
    (association / "ldfd01vpq_rawtag_a.fits").unlink()
    write_raw(association, "ldfd01vpq", events=0)
    refused(asn_run, association, "ldfd01vpq_rawtag_a.fits", "no events")


# ---- what programs are given, and how it is told


def test_the_material_leaves_out_what_is_empty(run: Run, folder: Path) -> None:
    write_raw(folder, "ldfd01vnq", "rawtag_a")
    write_raw(folder, "ldfd01vnq", "rawtag_b", events=0)
    inputs = fetch(run, at(folder))
    assert inputs.material == Material("ldfd01vnq", (Raw("ldfd01vnq", "rawtag_a", inputs.raw[0].facts),))


def test_the_material_of_an_association(asn_run: Run, association: Path) -> None:
    material = fetch(asn_run, at(association)).material
    assert material.dataset == ASN
    assert [(raw.root, raw.facts["FPPOS"]) for raw in material.raws] == [("ldfd01vnq", 1), ("ldfd01vpq", 2)]
    assert material.members == tuple(Member(root, kind) for root, kind, _ in MEMBERS)


@pytest.mark.parametrize("product", ["j8bt09041", "j8bt09040"])
def test_an_association_may_be_of_another_name_in_its_last_place(
    make_run: RunFactory, folder: Path, product: str
) -> None:
    members = ("j8bt09jcq", "j8bt09jdq")
    write_asn(folder, "j8bt09040", *[(root, "EXP-CRJ", True) for root in members], (product, "PROD-CRJ", False))
    for root in members:
        direct.write_direct(folder, root)
    inputs = fetch(make_run("j8bt09040"), at(folder))
    assert inputs.members[-1] == Member(product, "PROD-CRJ")
    assert product in inputs.roots
    assert exposures(inputs) == members


@pytest.mark.parametrize("product", ["j8bt08040", "../../etc", "j8bt0904"])
def test_the_table_of_another_association(make_run: RunFactory, folder: Path, product: str) -> None:
    write_asn(folder, "j8bt09040", ("j8bt09jcq", "EXP-CRJ", True), (product, "PROD-CRJ", True))
    direct.write_direct(folder, "j8bt09jcq")
    refused(make_run("j8bt09040"), folder, "j8bt09040_asn.fits", f"is the table of '{product}'")


@pytest.mark.parametrize(
    ("dataset", "kind", "other"), [("j8bt05njq", direct.UVIS, "WFC3"), ("i8bt05njq", direct.HRC, "ACS")]
)
def test_the_wrong_camera(make_run: RunFactory, folder: Path, dataset: str, kind: dict[str, Any], other: str) -> None:
    direct.write_direct(folder, dataset, kind)
    refused(make_run(dataset), folder, f"{dataset}_raw.fits is {other} data")


@pytest.mark.parametrize("value", ["three", 2.5, None])
def test_a_number_that_is_none(make_run: RunFactory, folder: Path, value: Any) -> None:
    write_raw(folder, "ldfd01vnq", FPPOS=value)
    if value == 2.5:
        assert fetch(make_run("ldfd01vnq"), at(folder)).raw[0].facts["FPPOS"] == 2
    else:
        refused(make_run("ldfd01vnq"), folder, "ldfd01vnq_rawtag_a.fits", "damaged header")


# ---- settings that come with the data


@pytest.mark.parametrize("packed", [False, True])
def test_settings(run: Run, folder: Path, packed: bool) -> None:
    write_raw(folder, "ldfd01vnq")
    text = "OMP_NUM_THREADS=2\nBadKey|ValuePair\nPATH=/evil\nLD_PRELOAD=/evil.so\n"
    (folder / "ldfd01vnq_cal_env.txt").write_text(text)
    if packed:
        with tarfile.open(folder / "ldfd01vnq.tar.gz", "w:gz") as archive:
            for path in (folder / "ldfd01vnq_cal_env.txt", folder / "ldfd01vnq_rawtag_a.fits"):
                archive.add(path, path.name)
                path.unlink()
    inputs = fetch(run, at(folder))
    assert names(inputs) == ["ldfd01vnq_cal_env.txt", "ldfd01vnq_rawtag_a.fits"]
    assert inputs.settings == {"OMP_NUM_THREADS": "2"}
    assert inputs.settings_file is not None
    assert inputs.settings_file.sha256 == hashlib.sha256(text.encode()).hexdigest()
    assert [number for number in (2, 3, 4) if any(f"line {number}" in text for text in warnings(run))] == [2, 3, 4]
    assert "/evil" not in repr(run.config.program_environment())


def test_settings_beside_a_tarball_count_too(run: Run, folder: Path) -> None:
    write_raw(folder, "ldfd01vnq")
    pack(folder)
    (folder / "ldfd01vnq_cal_env.txt").write_text("OMP_NUM_THREADS=2\n")
    assert fetch(run, at(folder)).settings == {"OMP_NUM_THREADS": "2"}


def test_an_association_table_or_a_wavecal_alone_does_not_hide_a_tarball(
    run: Run, stis_run: Run, folder: Path, tmp_path: Path
) -> None:
    packed = tmp_path / "packed"
    packed.mkdir()
    write_raw(packed, "ldfd01vnq")
    stis.write_stis(packed, SPECTRUM, WAVECORR="OMIT")
    for root in ("ldfd01vnq", SPECTRUM):
        with tarfile.open(folder / f"{root}.tar.gz", "w:gz") as tar:
            for path in packed.glob(f"{root}*"):
                tar.add(path, path.name)
    write_asn(folder, "ldfd01vnq", ("ldfd01vpq", "EXP-FP", True))
    write_support(folder, SPECTRUM, "wav")
    assert [f.name for f in fetch(run, at(folder)).raw] == ["ldfd01vnq_rawtag_a.fits"]
    assert [f.name for f in fetch(stis_run, at(folder)).raw] == [f"{SPECTRUM}_raw.fits"]


def test_a_tarball_may_be_named_itself(run: Run, folder: Path, tmp_path: Path) -> None:
    write_raw(folder, "ldfd01vnq")
    pack(folder)
    tarball = (folder / "ldfd01vnq.tar.gz").rename(tmp_path / "mine.tgz")
    (tmp_path / "ldfd01vnq_rawtag_b.fits").write_bytes(b"not looked at")
    assert names(fetch(run, at(tarball))) == ["ldfd01vnq_rawtag_a.fits"]


@on_disk_only
def test_a_file_that_is_no_tarball(run: Run, folder: Path) -> None:
    raw = write_raw(folder, "ldfd01vnq")
    with pytest.raises(InputError, match="it is a file"):
        fetch(run, at(raw))


def test_loose_raw_data_come_before_a_tarball_with_a_warning(run: Run, folder: Path) -> None:
    write_raw(folder, "ldfd01vnq")
    (folder / "ldfd01vnq.tar.gz").write_bytes(b"not looked at")
    assert names(fetch(run, at(folder))) == ["ldfd01vnq_rawtag_a.fits"]
    assert "ldfd01vnq.tar.gz" in run.telemetry.warnings[0]


def test_a_compressed_file_that_unpacks_to_far_too_much(
    run: Run, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("caldp.tarball._SMALL", 1 << 20)
    (folder / "ldfd01vnq_rawtag_a.fits.gz").write_bytes(gzip.compress(bytes(16 << 20)))
    refused(run, folder, "ldfd01vnq_rawtag_a.fits.gz", "far too much")


def test_exposures_of_another_visit_are_refused(visit_run: Run, visit: Path) -> None:
    poller = visit / f"{VISIT}_input.out"
    poller.write_text("j8bt06njq_flc.fits,9019,8BT,06,60.0,F555W;CLEAR2L,WFC,j8bt06njq_flc.fits\n")
    refused(visit_run, visit, "j8bt06njq_flc.fits", "no calibrated exposure of it")


def test_settings_of_another_dataset(run: Run, folder: Path) -> None:
    write_raw(folder, "ldfd01vnq")
    (folder / "ldfd01vpq_cal_env.txt").write_text("OMP_NUM_THREADS=2\n")
    assert fetch(run, at(folder)).settings_file is None


# ---- STIS: files are named after the association, and go with others

SPECTRUM = "obes03010"


@pytest.fixture
def stis_run(make_run: RunFactory) -> Run:
    return make_run(SPECTRUM)


@pytest.fixture
def spectra(folder: Path) -> Path:
    """An association whose table names exposures that have no files of their own."""
    write_asn(folder, SPECTRUM, ("obes03cxq", "CRSPLIT", True), ("obes03czq", "AUTO-WAVECAL", True))
    stis.write_stis(folder, SPECTRUM, exposures=2)
    stis.write_stis(folder, SPECTRUM, "wav", EXPTYPE="WAVECAL", WAVECAL="N/A")
    return folder


def test_stis_files_are_named_after_the_association(stis_run: Run, spectra: Path) -> None:
    write_support(spectra, SPECTRUM, "epc")
    write_support(spectra, "obes03cxq", "epc")
    stis.write_stis(spectra, "obes03020")
    inputs = fetch(stis_run, at(spectra))
    assert names(inputs) == [f"{SPECTRUM}_{suffix}.fits" for suffix in ("asn", "epc", "raw", "wav")]
    assert (inputs.kind, inputs.members, inputs.exposures) == ("association", (), (SPECTRUM,))
    assert [(f.suffix, f.facts["NEXTEND"]) for f in inputs.raw] == [("raw", 6)]
    assert sorted(f.suffix for f in inputs.support) == ["epc", "wav"]


def test_stis_without_a_table(stis_run: Run, spectra: Path) -> None:
    (spectra / f"{SPECTRUM}_asn.fits").unlink()
    assert fetch(stis_run, at(spectra)).kind == "exposure"


def test_stis_with_a_damaged_table(stis_run: Run, spectra: Path) -> None:
    truncate(spectra / f"{SPECTRUM}_asn.fits", 0.6)
    refused(stis_run, spectra, f"{SPECTRUM}_asn.fits", "not whole FITS")


def test_stis_without_its_wavelength_calibration(stis_run: Run, spectra: Path) -> None:
    (spectra / f"{SPECTRUM}_wav.fits").unlink()
    refused(stis_run, spectra, f"{SPECTRUM}_raw.fits needs {SPECTRUM}_wav.fits")


@pytest.mark.parametrize("header", [{"WAVECORR": "OMIT"}, {"WAVECAL": "N/A"}, {"OBSTYPE": "IMAGING"}])
def test_stis_that_needs_no_wavelength_calibration(stis_run: Run, folder: Path, header: dict[str, str]) -> None:
    stis.write_stis(folder, SPECTRUM, **header)
    assert names(fetch(stis_run, at(folder))) == [f"{SPECTRUM}_raw.fits"]


def test_stis_wavelength_calibration_alone(stis_run: Run, folder: Path) -> None:
    stis.write_stis(folder, SPECTRUM, "wav", EXPTYPE="WAVECAL", WAVECAL="N/A")
    write_support(folder, SPECTRUM, "spt")
    inputs = fetch(stis_run, at(folder))
    assert [(f.name, f.suffix) for f in inputs.raw] == [(f"{SPECTRUM}_wav.fits", "wav")]
    assert [f.suffix for f in inputs.support] == ["spt"]


def test_stis_support_alone_is_not_enough(stis_run: Run, folder: Path) -> None:
    write_support(folder, SPECTRUM, "epc")
    refused(stis_run, folder, "no obes03010_asn.fits or obes03010_raw*.fits")


def test_a_stis_file_that_is_cut_between_two_exposures(stis_run: Run, folder: Path) -> None:
    path = stis.write_stis(folder, SPECTRUM, exposures=2, WAVECORR="OMIT")
    with fits.open(path) as hdus:
        end = hdus[4].fileinfo()["hdrLoc"]
    path.write_bytes(path.read_bytes()[:end])
    refused(stis_run, folder, f"{SPECTRUM}_raw.fits", "3 of 6 extensions")


# ---- mosaics: a list of calibrated exposures

VISIT = "acs_8ph_01"
CELL = "skycell-p2381x06y09"
FLCS = {"j8ph01g3q_flc.fits": "F435W;CLEAR2L", "j8ph01g7q_flc.fits": "F555W;CLEAR2L"}


@pytest.fixture
def visit_run(make_run: RunFactory) -> Run:
    return make_run(VISIT)


@pytest.fixture
def visit(folder: Path) -> Path:
    for name in FLCS:
        mosaic.write_calibrated(folder, name)
    mosaic.write_visit(folder, VISIT, "9774", FLCS)
    return folder


def test_a_visit(visit_run: Run, visit: Path) -> None:
    mosaic.write_calibrated(visit, "j8ph01g5q_flc.fits")
    inputs = fetch(visit_run, at(visit))
    assert names(inputs) == [f"{VISIT}_input.out", *FLCS]
    assert (inputs.kind, inputs.association, inputs.members) == ("mosaic", None, ())
    assert inputs.poller is not None
    assert (inputs.directory / inputs.poller.name).read_bytes() == (visit / f"{VISIT}_input.out").read_bytes()
    assert [(f.root, f.suffix) for f in inputs.raw] == [("j8ph01g3q", "flc"), ("j8ph01g7q", "flc")]


def test_several_detectors_of_a_mosaic_are_all_named(visit_run: Run, visit: Path) -> None:
    mosaic.write_calibrated(visit, "j8ph01g5q_flt.fits", detector="HRC")
    rows = (visit / f"{VISIT}_input.out").read_text().split()
    mosaic.write_poller(visit, VISIT, *rows, rows[0].replace("j8ph01g3q_flc", "j8ph01g5q_flt"))
    assert fetch(visit_run, at(visit)).detector == "hrc+wfc"
    assert visit_run.telemetry.facts == {"detector": "hrc+wfc", "exposures": 3}


def test_a_sky_cell(make_run: RunFactory, folder: Path) -> None:
    exposure = "hst_11657_01_wfc3_uvis_f547m_ib8t01aa_flc.fits"
    mosaic.write_calibrated(folder, exposure, "WFC3", "UVIS", ROOTNAME="ib8t01aaq")
    mosaic.write_cell(folder, CELL, "11657", {exposure: "F547M"})
    inputs = fetch(make_run(CELL), at(folder))
    assert names(inputs) == [exposure, f"{CELL}_input.out"]
    assert inputs.raw[0].root == exposure.removesuffix("_flc.fits")


def test_a_sky_cell_of_another_instrument(make_run: RunFactory, folder: Path) -> None:
    exposure = "hst_11657_01_wfc3_uvis_f547m_ib8t01aa_flc.fits"
    mosaic.write_calibrated(folder, exposure, "STIS", "CCD")
    mosaic.write_cell(folder, CELL, "11657", {exposure: "F547M"})
    refused(make_run(CELL), folder, exposure, "is STIS data, not ACS or WFC3")


def test_exposures_of_a_mosaic_may_be_compressed_and_are_taken_once(visit_run: Run, visit: Path) -> None:
    compress(visit / "j8ph01g3q_flc.fits")
    rows = (visit / f"{VISIT}_input.out").read_text().split()
    mosaic.write_poller(visit, VISIT, *rows, "", rows[0])
    assert [f.name for f in fetch(visit_run, at(visit)).raw] == list(FLCS)


def test_a_mosaic_in_a_tarball(visit_run: Run, visit: Path) -> None:
    with tarfile.open(visit / f"{VISIT}.tar.gz", "w:gz") as archive:
        for path in (visit / f"{VISIT}_input.out", *(visit / name for name in FLCS)):
            archive.add(path, path.name)
            path.unlink()
    assert names(fetch(visit_run, at(visit))) == [f"{VISIT}_input.out", *FLCS]


def test_a_mosaic_without_its_list(visit_run: Run, visit: Path) -> None:
    (visit / f"{VISIT}_input.out").rename(visit / "acs_8ph_02_input.out")
    refused(visit_run, visit, f"no {VISIT}_input.out and no {VISIT}.tar.gz")


def test_an_exposure_that_is_listed_and_missing(visit_run: Run, visit: Path) -> None:
    (visit / "j8ph01g7q_flc.fits").unlink()
    refused(visit_run, visit, f"{VISIT}_input.out lists j8ph01g7q_flc.fits, which is not in")


@pytest.mark.parametrize("content", ["", "\n\n", "  \n"])
def test_a_list_of_nothing(visit_run: Run, visit: Path, content: str) -> None:
    (visit / f"{VISIT}_input.out").write_text(content)
    refused(visit_run, visit, f"{VISIT}_input.out lists no exposure")


@pytest.mark.parametrize(
    "name",
    ["rubbish", "../j8ph01g3q_flc.fits", "/etc/passwd", "j8ph01g3q_raw.fits", "j8ph01g3q_flc.fits.gz", "~/x_flc.fits",
     "J8PH01G3Q_FLC.FITS", "hst_../../x_flc.fits", "hst_a/b_flc.fits", ",,", "$(id)_flc.fits", "caf\xe9", "a" * 5000],
)  # fmt: skip
def test_strange_names_in_a_list(visit_run: Run, visit: Path, name: str) -> None:
    (visit / f"{VISIT}_input.out").write_bytes(f"{name},9774,8PH,01,60.0,F435W,WFC,x\n".encode("latin-1"))
    error = refused(visit_run, visit, f"{VISIT}_input.out", "which is no calibrated exposure")
    assert len(error.message) < 400


@pytest.mark.parametrize(
    ("header", "word"),
    [
        ({"instrument": "STIS"}, "is STIS data, not ACS"),
        ({"instrument": "WFC3"}, "is WFC3 data, not ACS"),
        ({"ROOTNAME": "j8ph01g9q"}, "says it is j8ph01g9q"),
    ],
)
def test_exposures_of_a_mosaic_are_checked(visit_run: Run, visit: Path, header: dict[str, str], word: str) -> None:
    (visit / "j8ph01g3q_flc.fits").unlink()
    mosaic.write_calibrated(visit, "j8ph01g3q_flc.fits", **header)
    refused(visit_run, visit, "j8ph01g3q_flc.fits", word)


def test_an_exposure_of_a_mosaic_that_is_cut_off(visit_run: Run, visit: Path) -> None:
    truncate(visit / "j8ph01g3q_flc.fits", 0.7)
    refused(visit_run, visit, "j8ph01g3q_flc.fits", "not whole FITS")


# ---- in a bucket


@in_a_bucket_only
def test_of_a_full_prefix_only_the_visit_is_listed(asn_run: Run, association: Path, bucket: type[FakeBucket]) -> None:
    for number in range(300):
        (association / f"lxyz01{number:03}_rawtag_a.fits").touch()
    write_raw(association, "ldfd01vrq")
    inputs = fetch(asn_run, at(association))
    assert bucket.listed == ["ldfd01"]
    assert sorted(bucket.downloaded) == names(inputs)
    assert not list((asn_run.workspace.root / "downloaded").iterdir())


@in_a_bucket_only
def test_a_member_of_another_visit(asn_run: Run, folder: Path, bucket: type[FakeBucket]) -> None:
    write_asn(folder, ASN, ("ldfd01vnq", "EXP-FP", True), ("ldfd02vpq", "EXP-FP", True), (ASN, "PROD-FP", True))
    for root in ("ldfd01vnq", "ldfd02vpq"):
        write_raw(folder, root)
    assert exposures(fetch(asn_run, at(folder))) == ("ldfd01vnq", "ldfd02vpq")
    assert bucket.listed == ["ldfd01", "ldfd02"]


@in_a_bucket_only
def test_exposures_of_a_mosaic_are_listed_by_visit(
    make_run: RunFactory, visit_run: Run, visit: Path, bucket: type[FakeBucket]
) -> None:
    fetch(visit_run, at(visit))
    assert bucket.listed == [VISIT, "j8ph01"]
    bucket.listed.clear()
    exposure = "hst_11657_01_wfc3_uvis_f547m_ib8t01aa_flc.fits"
    mosaic.write_calibrated(visit, exposure, "WFC3", "UVIS", ROOTNAME="ib8t01aaq")
    mosaic.write_cell(visit, CELL, "11657", {exposure: "F547M"})
    fetch(make_run(CELL), at(visit))
    assert bucket.listed == [CELL, "hst_11657_01_"]


@in_a_bucket_only
@pytest.mark.parametrize("form", ["{0}/", "{0}/ldfd01vnq.tar.gz"])
def test_a_tarball_of_a_bucket(run: Run, folder: Path, bucket: type[FakeBucket], form: str) -> None:
    write_raw(folder, "ldfd01vnq")
    pack(folder)
    inputs = fetch(run, form.format(at(folder)))
    assert [f.source for f in inputs.files] == [f"{shown(folder)}/ldfd01vnq.tar.gz:ldfd01vnq_rawtag_a.fits"]
    assert bucket.downloaded == ["ldfd01vnq.tar.gz"]
    assert not list((run.workspace.root / "downloaded").iterdir())


@in_a_bucket_only
def test_settings_beside_a_tarball_that_is_named(run: Run, folder: Path) -> None:
    write_raw(folder, "ldfd01vnq")
    pack(folder)
    (folder / "ldfd01vnq_cal_env.txt").write_text("OMP_NUM_THREADS=2\n")
    assert fetch(run, f"{at(folder)}/ldfd01vnq.tar.gz").settings == {"OMP_NUM_THREADS": "2"}


@in_a_bucket_only
@pytest.mark.parametrize("uri", ["s3://fake", "s3://fake/"])
def test_inputs_that_are_the_whole_bucket(run: Run, tmp_path: Path, uri: str) -> None:
    write_raw(tmp_path, "ldfd01vnq")
    assert [f.source for f in fetch(run, uri).raw] == ["s3://fake/ldfd01vnq_rawtag_a.fits"]


@in_a_bucket_only
def test_a_tarball_that_is_named_and_not_there(run: Run, folder: Path) -> None:
    write_raw(folder, "ldfd01vnq")
    with pytest.raises(InputError, match=f"ldfd01vnq: there is no object {BUCKET}/raw: data/no.tgz"):
        fetch(run, f"{at(folder)}/no.tgz")


@in_a_bucket_only
def test_progress(asn_run: Run, association: Path) -> None:
    inputs = fetch(asn_run, at(association))
    assert isinstance(asn_run.telemetry.reporter, FakeReporter)
    told = asn_run.telemetry.reporter.progressed
    rest = sum(f.size for f in inputs.files if f.suffix != "asn")
    assert told[0] == ("download", told[0][2], told[0][2])  # the table alone: it names the others
    assert [total for _, _, total in told[1:]] == [rest] * 5
    assert told[-1] == ("download", rest, rest)


@in_a_bucket_only
def test_an_object_that_is_removed_meanwhile(run: Run, folder: Path, bucket: type[FakeBucket]) -> None:
    path = write_raw(folder, "ldfd01vnq")
    listing = bucket.beginning

    def vanishing(self: FakeBucket, stem: str) -> dict[str, Entry]:
        found = listing(self, stem)
        path.unlink()
        return found

    bucket.beginning = vanishing  # type: ignore[method-assign]
    refused(run, folder, f"{shown(path)} has just been removed")


@in_a_bucket_only
@pytest.mark.parametrize("operation", ["beginning", "download"])
@pytest.mark.parametrize("kind", [S3DownloadError, S3DownloadRefusedError])
def test_errors_of_s3_name_the_dataset(
    run: Run, folder: Path, bucket: type[FakeBucket], operation: str, kind: type[S3DownloadError]
) -> None:
    write_raw(folder, "ldfd01vnq")

    def fail(*_: object) -> None:
        raise kind("s3://fake/x: access denied", remedy="ask")

    setattr(bucket, operation, fail)
    with pytest.raises(S3DownloadError) as caught:
        fetch(run, at(folder))
    assert type(caught.value) is kind
    assert str(caught.value) == "ldfd01vnq: s3://fake/x: access denied; ask"
